"""What is told of a model that was asked for."""

from enum import StrEnum

from xgen_ray.placement.types import Backend
from xgen_ray.schema.plans import PlanReport
from xgen_ray.schema.requests import Origin
from xgen_ray.schema.wire import Wire


class Phase(StrEnum):
    """Where a model is on its way.

    RESOLVING (finding or downloading files) -> LOADING -> READY -> UNLOADING. RECOVERING: an engine
    died and is being started again. SLEEPING: nobody used it for long, it has no engine; a request wakes
    it. FAILED stays, with its reason, until it is loaded again or unloaded.
    """

    RESOLVING = "resolving"
    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"
    SLEEPING = "sleeping"
    UNLOADING = "unloading"
    FAILED = "failed"


class Progress(Wire):
    """How far a load is. ``stage`` is one of resolve, download, start, load, canary."""

    stage: str
    message: str
    done_bytes: int | None = None
    total_bytes: int | None = None


class FailureReport(Wire):
    """A death in plain words. ``backend``, ``node`` and ``replica_id`` say which engine's; ``at`` is Unix
    seconds. ``log_end`` is how many lines the engine has printed, of which ``log_tail`` are the last.
    """

    failure: str
    message: str
    backend: Backend | None = None
    node: str | None = None
    replica_id: str | None = None
    advice: str | None = None
    exit_code: int | None = None
    evidence: str | None = None
    log_tail: tuple[str, ...] = ()
    log_end: int | None = None
    at: float


class ReplicaStatus(Wire):
    """One engine. ``pid`` is the engine's own process, ``url`` where it listens (for the router
    only); ``running`` and ``waiting`` are the requests it had when it was last asked, at ``load_at``, and
    ``cache_used`` is the part of its cache that was in use, from 0 to 1, where it tells.
    """

    replica_id: str
    node: str
    state: str
    pid: int | None = None
    url: str | None = None
    since: float
    running: int | None = None
    waiting: int | None = None
    cache_used: float | None = None
    load_at: float | None = None
    progress: Progress | None = None


class ExclusionReport(Wire):
    """A backend that failed on a model and is left out on nodes of this kind until an operator lifts it."""

    model: str
    backend: Backend
    node_kind: str
    reason: str


class EngineStatus(Wire):
    """One engine of a model and its place. ``app`` is its application in Ray Serve; while it starts again,
    it is there without being ``ready``.
    """

    app: str
    node: str
    backend: Backend
    phase: str
    why: str
    gpus: tuple[str, ...]
    context: int
    slots: int
    ready: bool
    footprint_bytes: int


class AwaitedNodes(Wire):
    """Nodes that a model waits for: how many of each of the autoscaler's types, since when."""

    types: dict[str, int]
    since: float


class ModelStatus(Wire):
    """Everything an operator asks about one model. ``shortfall`` says why replicas have no place."""

    name: str
    model: str
    origin: Origin
    phase: Phase
    reason: str
    endpoint: str | None = None
    task: str | None = None
    format: str | None = None
    backend: Backend | None = None
    plan: PlanReport | None = None
    engines: tuple[EngineStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    wanted_replicas: int = 1
    shortfall: str | None = None
    awaited_nodes: AwaitedNodes | None = None
    progress: Progress | None = None
    failures: tuple[FailureReport, ...] = ()
    exclusions: tuple[ExclusionReport, ...] = ()
    since: float


class StatusReport(Wire):
    models: tuple[ModelStatus, ...]
    version: str


class LogPage(Wire):
    """Lines of an engine's output. To follow, ask again with ``after=next`` and ``of=replica_id``: another
    engine's log, of one that was started in its place, is then read from its start.
    """

    model: str
    replica_id: str | None
    lines: tuple[str, ...]
    next: int
