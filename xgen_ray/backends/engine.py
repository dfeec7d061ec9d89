"""What the serving layer knows of an engine, whichever it is: the contract, and the way to get one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from xgen_ray.errors import ConfigError
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Backend, Engine, Plan
from xgen_ray.process import Failure, LogRing
from xgen_ray.schema import Progress

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where an engine listens, and the key that opens it. The key is not shown."""

    url: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Requests that an engine computes and holds back now; ``slots`` is how many it computes at most.

    ``cache_used`` is the part of its cache that is in use, from 0 to 1, ``prompt_tokens`` and
    ``generated_tokens`` are what it has read and written since it started; each where it tells.
    """

    running: int
    waiting: int
    slots: int
    cache_used: float | None = None
    prompt_tokens: float | None = None
    generated_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """``pid`` is the engine's own process. ``load`` is None when the engine does not tell in time."""

    pid: int | None
    loaded: bool
    load: EngineLoad | None


class EngineAdapter(Protocol):
    """One engine, for one model, once.

    Enter, ``load``, use, leave. Leaving stops the engine, however far it got, and returns when every
    process of it is gone. Belongs to one event loop; ``logs`` may be read from anywhere.
    """

    @property
    def backend(self) -> Backend: ...

    @property
    def is_loaded(self) -> bool:
        """Whether ``load`` has succeeded and the engine has not ended since."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def load(self, on_progress: OnProgress) -> EngineAddress:
        """Start the engine and return when it has computed one real token (vector, ranking).

        ``on_progress`` hears of the stages start, load and canary, on the event loop. Raises
        ``EngineFailed`` with the diagnosis and the last lines of the log; ``UnknownOption`` or
        ``InvalidRequest`` when the options cannot be put to this build of the engine.
        """
        ...

    async def health(self) -> bool:
        """Whether the engine answers its health check now. Never raises, never takes long."""
        ...

    async def status(self) -> EngineStatus:
        """How it is. Never raises, never takes long."""
        ...

    async def trouble(self, patience_s: float) -> str | None:
        """What a loaded engine does instead of computing, as words that follow "it"; None if it computes.

        None too where that is not known: it has ended, or gave no answer within ``patience_s``, which an
        engine with much to do may not. Never raises.
        """
        ...

    async def wait(self) -> Failure:
        """Return when the engine has ended, with why. One that was told to stop ends as STOPPED."""
        ...

    def logs(self) -> LogRing:
        """What it has printed."""
        ...


def create_adapter(
    plan: Plan, *, host: str, base_env: Mapping[str, str], cache_dir: Path, alias: str | None = None
) -> EngineAdapter:
    """The adapter for ``plan``; only that engine's module is imported. Nothing is started yet.

    ``host`` is the address to listen on, ``base_env`` the environment of the engine's process. ``alias``
    is the name under which the engine's answers speak of the model; by default made from the file's name.
    """
    engine = BACKENDS[plan.backend].engine
    if engine is Engine.LLAMA_SERVER:
        from xgen_ray.backends.child_engine import ChildEngine
        from xgen_ray.backends.llama_server import LlamaServerLauncher

        launcher = LlamaServerLauncher(plan, host=host, base_env=base_env, cache_dir=cache_dir, alias=alias)
        return ChildEngine(plan, launcher, host=host, base_env=launcher.environment)
    if engine is Engine.LLAMA_CPP_PYTHON:
        from xgen_ray.backends.llama_cpp_python import LlamaCppPython

        return LlamaCppPython(plan, host=host, alias=alias)
    if engine is Engine.VLLM:
        from xgen_ray.backends.child_engine import ChildEngine
        from xgen_ray.backends.vllm import VllmLauncher

        vllm = VllmLauncher(plan, host=host, base_env=base_env, cache_dir=cache_dir, alias=alias)
        return ChildEngine(plan, vllm, host=host, base_env=vllm.environment)
    raise ConfigError(f"{plan.backend} cannot be started: it has no adapter")
