"""An engine that is a process of its own: started, watched while it loads, tried out, and stopped."""

import asyncio
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import httpx

from xgen_ray.backends.engine import EngineAddress, EngineStatus, OnProgress
from xgen_ray.backends.engine_client import EngineClient
from xgen_ray.backends.launch import Launcher, base_url
from xgen_ray.backends.loading import report_loading
from xgen_ray.errors import EngineFailed, WrongState
from xgen_ray.placement.types import Backend, Plan
from xgen_ray.process import ChildProcess, Failure, FailureClass, LogRing, free_port, loading_deadline
from xgen_ray.schema import Progress

# Between choosing a port and binding it, another process can take it.
PORT_ATTEMPTS: Final = 3
# From a broken connection to the news that the engine has ended.
_OBITUARY_S: Final = 5.0


class ChildEngine:
    """``EngineAdapter`` over a child process; what it runs is the launcher's business."""

    def __init__(self, plan: Plan, launcher: Launcher, *, host: str, base_env: Mapping[str, str]) -> None:
        self._plan = plan
        self._launcher = launcher
        self._host = host
        self._base_env = base_env
        self._logs = LogRing()
        self._child: ChildProcess | None = None
        self._client: EngineClient | None = None
        self._loading = False
        self._loaded = False

    @property
    def backend(self) -> Backend:
        return self._plan.backend

    @property
    def is_loaded(self) -> bool:
        return self._loaded and self._child is not None and self._child.exit_code is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = False
        try:
            if self._child is not None:
                await self._child.stop()
        finally:
            if self._client is not None:
                await self._client.__aexit__(None, None, None)
                self._client = None

    async def load(self, on_progress: OnProgress) -> EngineAddress:
        if self._loading:
            raise WrongState(
                "an engine is loaded once; make a new adapter for another model or another attempt"
            )
        self._loading = True
        on_progress(Progress(stage="start", message=f"starting {self.backend}"))
        address, child = await self._start(on_progress)
        on_progress(Progress(stage="canary", message="computing a first answer"))
        self._client = EngineClient(address)
        await self._try_out(child, self._client)
        self._loaded = True
        return address

    async def health(self) -> bool:
        return self.is_loaded and self._client is not None and await self._client.healthy()

    async def status(self) -> EngineStatus:
        pid = None if self._child is None or self._child.exit_code is not None else self._child.pid
        if not self.is_loaded or self._client is None:
            return EngineStatus(pid, False, None)
        return EngineStatus(pid, True, await self._client.load(self._plan.options.slots))

    async def trouble(self, patience_s: float) -> str | None:
        if not self.is_loaded or self._client is None:
            return None
        try:
            return await self._client.trouble(self._plan.facts, self._plan.options.task, patience_s)
        except (TimeoutError, httpx.TransportError):
            return None

    async def wait(self) -> Failure:
        if self._child is None:
            raise WrongState("the engine was not started: call load first")
        return await self._child.wait()

    def logs(self) -> LogRing:
        return self._logs

    async def _start(self, on_progress: OnProgress) -> tuple[EngineAddress, ChildProcess]:
        """Start until one has its port to itself, and return when it says that it is ready."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port, key = free_port(self._host), secrets.token_hex(24)
            launch = await self._launcher(port, key)
            for note in launch.notes:
                self._logs.append(note)
            child = ChildProcess(launch.spec, self._logs, base_env=self._base_env)
            self._child = child
            try:
                await child.start()
                async with report_loading(
                    self._plan.facts.weight_bytes, child, on_progress, maps_model=launch.maps_model
                ):
                    await child.wait_ready()
            except EngineFailed as error:
                await child.stop()
                if error.failure != FailureClass.PORT_IN_USE or attempt == PORT_ATTEMPTS:
                    raise
                self._logs.append(f"port {port} was taken in the meantime; starting again with another")
            else:
                return EngineAddress(base_url(self._host, port), key), child
        raise AssertionError("the last attempt either returns or raises")

    async def _try_out(self, child: ChildProcess, client: EngineClient) -> None:
        deadline_s = loading_deadline(self._plan.facts.weight_bytes)
        try:
            await client.canary(self._plan.facts, self._plan.options.task, deadline_s)
            await client.refuses_strangers(self._plan.facts, self._plan.options.task, deadline_s)
        except httpx.TransportError as error:
            raise await self._died_of(child, error) from error
        except EngineFailed as error:
            raise EngineFailed(error.message, error.failure, self._logs.tail()) from error

    async def _died_of(self, child: ChildProcess, error: httpx.TransportError) -> EngineFailed:
        """The engine hung up on its first request: its end says why, if it has ended."""
        try:
            async with asyncio.timeout(_OBITUARY_S):
                return engine_failed(await child.wait())
        except TimeoutError:
            return EngineFailed(
                f"the engine started but closed the connection of its first request ({error!r})",
                FailureClass.CANARY_FAILED,
                self._logs.tail(),
            )


def engine_failed(failure: Failure) -> EngineFailed:
    """A diagnosis as the error to raise."""
    words = [failure.message, failure.advice] if failure.advice else [failure.message]
    return EngineFailed(" ".join(words), failure.failure, failure.log_tail)
