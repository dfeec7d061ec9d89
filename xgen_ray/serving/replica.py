"""The engine replica: one engine, its life tied to one Ray actor's."""

import asyncio
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray import serve
from ray.serve.handle import DeploymentHandle

from xgen_ray.backends import EngineAdapter, create_adapter
from xgen_ray.errors import EngineFailed, InvalidRequest, XgenRayError
from xgen_ray.placement.types import Plan
from xgen_ray.process.types import Failure, FailureClass
from xgen_ray.schema import FailureReport, Progress, ReplicaStatus

logger = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 3.0
DRAIN_POLL_S = 0.1
REPORT_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What every replica of a pool is started with. ``drain_s`` bounds the wait for running requests."""

    pool: str
    model: str
    plan: Plan
    host: str
    cache_dir: str
    engine_env: Mapping[str, str]
    control_app: str
    control_deployment: str
    drain_s: float = 30.0


class EngineReplica:
    """Starts the engine, answers for its health, reports to control, and dies with it.

    A dead engine takes the actor along: Serve starts another, and a half-alive replica never exists.
    """

    async def __init__(self, spec: PoolSpec) -> None:  # type: ignore[misc]  # Serve awaits it
        self._spec = spec
        context = serve.get_replica_context()
        self._replica_id = context.replica_id.unique_id
        self._node = platform.node()
        self._since = time.time()
        self._control: DeploymentHandle[object] = serve.get_deployment_handle(
            spec.control_deployment, spec.control_app
        )
        self._latest: Progress | None = None
        self._draining = False
        self._reporter = asyncio.create_task(self._report_progress())
        self._adapter: EngineAdapter = create_adapter(
            spec.plan,
            host=spec.host,
            base_env=spec.engine_env,
            cache_dir=Path(spec.cache_dir),
            alias=spec.model,
        )
        try:
            await self._adapter.__aenter__()
            self._address = await self._adapter.load(self._note_progress)
        except XgenRayError as error:
            await self._give_up(_report_of(error))
            raise
        finally:
            self._reporter.cancel()
        self._since = time.time()
        await self._report(await self.describe())
        self._watcher = asyncio.create_task(self._die_with_engine())

    async def record_replica_metadata(self) -> dict[str, str]:
        """What the router needs; Serve hands it out with its choice of a replica."""
        return {"url": self._address.url, "key": self._address.key}

    async def check_health(self) -> None:
        """For Serve. The watcher is faster when the process dies; this sees an engine that hangs."""
        if not self._draining and not await self._adapter.health():
            raise RuntimeError(f"{self._spec.model}: the engine does not answer its health check")

    async def choose(self) -> None:
        """Never called: a router chooses a replica by this method's name and talks HTTP to its engine."""

    async def describe(self) -> ReplicaStatus:
        """How this replica is, for control."""
        status = await self._adapter.status()
        return ReplicaStatus(
            replica_id=self._replica_id,
            node=self._node,
            state="draining" if self._draining else "ready",
            pid=status.pid,
            url=self._address.url,
            since=self._since,
            running=status.load.running if status.load else None,
            waiting=status.load.waiting if status.load else None,
        )

    async def logs(self, after: int, limit: int) -> tuple[str, tuple[str, ...], int]:
        """The engine's own lines: (replica id, lines, where to go on)."""
        lines, position = self._adapter.logs().read(after, limit)
        return self._replica_id, lines, position

    async def __del__(self) -> None:
        """Serve's graceful stop: running requests finish, then the engine goes."""
        self._draining = True
        if watcher := getattr(self, "_watcher", None):
            watcher.cancel()
        deadline = time.monotonic() + self._spec.drain_s
        while time.monotonic() < deadline:
            load = (await self._adapter.status()).load
            if load is None or load.running + load.waiting == 0:
                break
            await asyncio.sleep(DRAIN_POLL_S)
        await self._adapter.__aexit__(None, None, None)

    def _note_progress(self, progress: Progress) -> None:
        self._latest = progress

    async def _report_progress(self) -> None:
        reported: Progress | None = None
        while True:
            if self._latest is not reported:
                reported = self._latest
                await self._report(self._loading(reported))
            await asyncio.sleep(REPORT_INTERVAL_S)

    def _loading(self, progress: Progress | None) -> ReplicaStatus:
        return ReplicaStatus(
            replica_id=self._replica_id,
            node=self._node,
            state="loading",
            since=self._since,
            progress=progress,
        )

    async def _die_with_engine(self) -> None:
        failure: Failure = await self._adapter.wait()
        logger.error("engine died: model=%s failure=%s", self._spec.model, failure.failure.value)
        await self._give_up(
            FailureReport(
                failure=failure.failure.value,
                message=failure.message,
                advice=failure.advice,
                exit_code=failure.exit_code,
                evidence=failure.evidence,
                log_tail=failure.log_tail,
                at=time.time(),
            )
        )
        # exit_actor would wait for running calls; there is nothing left to wait for.
        os._exit(1)

    async def _give_up(self, report: FailureReport) -> None:
        status = self._loading(None).model_copy(update={"state": "failed"})
        await self._report(status, report)

    async def _report(self, status: ReplicaStatus, failure: FailureReport | None = None) -> None:
        """Tells control, if it is there. It asks again by itself when it was not."""
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                await self._control.hear_replica.remote(self._spec.pool, status, failure)
        except Exception:  # noqa: BLE001  # an engine must live on when control does not, whatever Ray raises
            logger.warning("control did not take a report: model=%s", self._spec.model)


def _report_of(error: XgenRayError) -> FailureReport:
    """An engine that could not be started, in the words of a failure."""
    if isinstance(error, EngineFailed):
        failure, log_tail = error.failure or FailureClass.CRASHED.value, error.log_tail
    else:
        bad_request = isinstance(error, InvalidRequest)
        failure = (FailureClass.UNKNOWN_FLAG if bad_request else FailureClass.CRASHED).value
        log_tail = ()
    return FailureReport(failure=failure, message=error.message, log_tail=log_tail, at=time.time())
