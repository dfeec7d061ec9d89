"""The engine replica: one engine, its life tied to one Ray actor's."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from xgen_ray.backends import EngineAdapter, EngineAddress, create_adapter
from xgen_ray.errors import NotReady, XgenRayError
from xgen_ray.placement import RAM, Observation, observe
from xgen_ray.schema import FailureReport, Progress, ReplicaStatus
from xgen_ray.serving.leases import Lease, NoLease
from xgen_ray.serving.log_pages import Answer, where_to_start
from xgen_ray.serving.metrics.rows import Sample
from xgen_ray.serving.metrics.samples import engine_samples
from xgen_ray.serving.node_state import Settled
from xgen_ray.serving.owner_link import OwnerLink
from xgen_ray.serving.state import Replica
from xgen_ray.serving.traffic import served_as
from xgen_ray.serving.vitals import end_of_life, report_of, report_of_start

logger = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 3.0
DRAIN_POLL_S = 0.1
REPORT_INTERVAL_S = 0.5
# The owner of a node may be starting anew.
CLAIM_PATIENCE_S = 20.0
CLAIM_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class AppSpec:
    """What every replica of an app is started with. ``drain_s`` bounds the wait for running requests."""

    app: str
    model: str
    node_id: str
    node: str
    cache_dir: str
    control_app: str
    control_deployment: str
    drain_s: float = 30.0


class EngineReplica:
    """Takes one of the app's leases, starts the engine of its plan, reports to control, and dies with it.

    A dead engine takes the actor along: Serve starts another, and a half-alive replica never exists. The
    actor is there from the first moment, so that its log can be read while the engine loads.
    ``engine_env`` is this node's environment, as far as engines may see it.
    """

    def __init__(self, spec: AppSpec, engine_env: Mapping[str, str]) -> None:
        self._spec = spec
        self._engine_env = engine_env
        self._replica_id = serve.get_replica_context().replica_id.unique_id
        self._since = time.time()
        self._state = "loading"
        self._control: DeploymentHandle[object] = serve.get_deployment_handle(
            spec.control_deployment, spec.control_app
        )
        self._owner = OwnerLink(spec.node_id)
        self._latest: Progress | None = None
        self._adapter: EngineAdapter | None = None
        self._address: EngineAddress | None = None
        self._doubted = asyncio.Event()
        self._loaded_in_s: float | None = None
        self._life = asyncio.get_running_loop().create_task(self._live())

    def check_health(self) -> None:
        """For Serve. The engine's own health is watched by ``_live``; an end of that ends the actor."""
        if self._life.done() and self._state != "draining":
            raise RuntimeError(f"{self._spec.model}: nobody looks after the engine any more")

    async def describe(self) -> Replica:
        """How this replica is, for control."""
        adapter, address = self._adapter, self._address
        status = await adapter.status() if adapter is not None else None
        load = status.load if status is not None else None
        return Replica(
            ReplicaStatus(
                replica_id=self._replica_id,
                node=self._spec.node,
                state=self._state,
                pid=status.pid if status is not None else None,
                url=address.url if address is not None else None,
                since=self._since,
                running=load.running if load else None,
                waiting=load.waiting if load else None,
                cache_used=load.cache_used if load else None,
                load_at=time.time() if load else None,
                progress=self._latest if address is None else None,
            ),
            address.key if address is not None else None,
        )

    async def logs(self, after: int, limit: int, of: str | None) -> Answer:
        """The engine's own lines, for one who has read the log of the replica ``of`` up to ``after``."""
        if self._adapter is None:
            return self._replica_id, (), 0
        start = where_to_start(self._replica_id, after, of)
        lines, position = self._adapter.logs().read(start, limit)
        return self._replica_id, lines, position

    async def samples(self) -> tuple[Sample, ...]:
        """What this engine adds to the metrics. For one caller."""
        adapter, spec = self._adapter, self._spec
        if adapter is None:
            return ()
        backend, samples = adapter.backend.value, []
        if self._loaded_in_s is not None:
            labels = (served_as(spec.model), backend, spec.node)
            samples.append(Sample("xgen_load_seconds", labels, self._loaded_in_s))
            self._loaded_in_s = None
        if (load := (await adapter.status()).load) is not None:
            samples += engine_samples(spec.model, backend, spec.node, self._replica_id, load)
        return tuple(samples)

    async def doubt(self, replica_ids: frozenset[str]) -> None:
        """A router's requests have failed on these replicas."""
        if self._replica_id in replica_ids:
            self._doubted.set()

    async def __del__(self) -> None:
        """Serve's graceful stop: running requests finish, then the engine goes."""
        self._state = "draining"
        self._life.cancel()
        adapter = self._adapter
        if adapter is None:
            return
        deadline = time.monotonic() + self._spec.drain_s
        while self._address is not None and time.monotonic() < deadline:
            load = (await adapter.status()).load
            if load is None or load.running + load.waiting == 0:
                break
            await asyncio.sleep(DRAIN_POLL_S)
        await adapter.__aexit__(None, None, None)

    async def _live(self) -> None:
        reporter = asyncio.create_task(self._report_progress())
        try:
            lease = await self._claim()
            adapter, address = await self._start(lease)
        except XgenRayError as error:
            await self._give_up(await report_of_start(error, self._adapter))
            return
        except Exception as error:
            logger.exception("starting an engine failed: model=%s", self._spec.model)
            unforeseen = XgenRayError(f"starting the engine failed: {error!r}")
            await self._give_up(await report_of_start(unforeseen, self._adapter))
            return
        finally:
            reporter.cancel()
        self._loaded_in_s = time.time() - self._since
        self._address, self._state, self._since = address, "ready", time.time()
        await self._report(await self.describe())
        await self._tell_what_it_took(lease, (await adapter.status()).pid)
        await self._die_with(adapter)

    async def _claim(self) -> Lease:
        """A lease of this app. Its plan is what the engine runs by."""
        until = time.monotonic() + CLAIM_PATIENCE_S
        while True:
            try:
                answer = await self._owner.claim(self._spec.app, self._replica_id, os.getpid())
            except NotReady:
                if time.monotonic() > until:
                    raise
            else:
                # One that a replica before this one is about to give up comes free in a moment.
                if not isinstance(answer, NoLease):
                    return answer
                if time.monotonic() > until:
                    raise NotReady(answer.message)
            await asyncio.sleep(CLAIM_AGAIN_S)

    async def _start(self, lease: Lease) -> tuple[EngineAdapter, EngineAddress]:
        adapter = create_adapter(
            lease.plan,
            host=_own_address(),
            base_env=self._engine_env,
            cache_dir=Path(self._spec.cache_dir),
            alias=self._spec.model,
        )
        self._adapter = adapter
        await adapter.__aenter__()
        return adapter, await adapter.load(self._note_progress)

    async def _tell_what_it_took(self, lease: Lease, pid: int | None) -> None:
        """The node's owner reads the engine's real use back, and control keeps the difference."""
        if pid is None:
            return
        try:
            settled = await self._owner.settle(lease.lease_id, pid)
        except XgenRayError as error:
            logger.warning("the lease was not settled: lease=%s error=%s", lease.lease_id, error)
            return
        await self._report(await self.describe(), observations=_observations(lease, settled))

    def _note_progress(self, progress: Progress) -> None:
        self._latest = progress

    async def _report_progress(self) -> None:
        reported: Progress | None = None
        while True:
            if self._latest is not reported:
                reported = self._latest
                await self._report(await self.describe())
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def _die_with(self, adapter: EngineAdapter) -> None:
        failure = await end_of_life(adapter, self._doubted)
        logger.error("engine died: model=%s failure=%s", self._spec.model, failure.failure.value)
        await self._give_up(report_of(failure))

    async def _give_up(self, report: FailureReport) -> None:
        self._state, self._address = "failed", None
        if self._adapter is not None:
            report = report.model_copy(update={"log_end": self._adapter.logs().total})
        await self._report(await self.describe(), report)
        if self._adapter is not None:
            await self._adapter.__aexit__(None, None, None)
        # exit_actor would wait for running calls; there is nothing left to wait for.
        os._exit(1)

    async def _report(
        self,
        replica: Replica,
        failure: FailureReport | None = None,
        observations: tuple[Observation, ...] = (),
    ) -> None:
        """Tells control, if it is there. It asks again by itself when it was not."""
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                await self._control.hear_replica.remote(self._spec.app, replica, failure, observations)
        except Exception:  # noqa: BLE001  # an engine must live on when control does not, whatever Ray raises
            logger.warning("control did not take a report: model=%s", self._spec.model)


def _own_address() -> str:
    """Where other nodes reach this one; loopback in a cluster that has no network."""
    address: Callable[[], str] = ray.util.get_node_ip_address
    return address()


def _observations(lease: Lease, settled: Settled) -> tuple[Observation, ...]:
    """What the engine took, of each kind of memory that is known for all of its devices."""
    measured = {claim.device: claim.size_bytes for claim in settled.use.claims}
    gpus = [claim.device for claim in lease.claims if claim.device != RAM]
    found = []
    if gpus and all(device in measured for device in gpus):
        found.append(observe(lease.plan, "gpu", sum(measured[device] for device in gpus)))
    if RAM in measured and not any(gpu.integrated for gpu in lease.plan.options.gpus):
        found.append(observe(lease.plan, "ram", measured[RAM]))
    return tuple(found)
