"""Control's state, the events that change it and the effects it asks for. Data only.

Time, ids and chance come in with events; what must happen goes out as effects. See ``machine``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from xgen_ray.errors import XgenRayError
from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.placement.types import BackendStatus, Plan, Refusal
from xgen_ray.schema import FailureReport, LoadRequest, Origin, Phase, Progress, ReplicaStatus
from xgen_ray.serving.table import RoutingTable


@dataclass(frozen=True, slots=True)
class Inventory:
    """What can run where, at the moment a plan is made, and the operator's rules for it.

    ``statuses`` are discovery's: the engines' word alone, before the hardware's.
    """

    snapshot: NodeSnapshot
    usage: NodeUsage | None
    statuses: tuple[BackendStatus, ...]
    policy: PlacementPolicy = DEFAULT_POLICY


class PoolState(StrEnum):
    """A pool's Serve application, as Serve reports it."""

    STARTING = "starting"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    FAILED = "failed"
    STOPPING = "stopping"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Model:
    """One wish of the operator and how far it has come.

    ``attempt`` numbers loads within one life of control: what belongs to an older one is ignored.
    ``callers`` are answered when the load ends, ``leavers`` when the unload ends. ``proven`` means that
    it has served once: such a wish outlives a failure, a load that never worked does not. A wish that
    lives on is tried again at ``retry_at``, later after each of its ``setbacks``.
    """

    name: str
    request: LoadRequest
    origin: Origin
    phase: Phase
    reason: str
    attempt: int
    since: float
    created: float
    facts: ModelFacts | None = None
    plan: Plan | None = None
    refusal: Refusal | None = None
    pool: str | None = None
    pool_state: PoolState | None = None
    replicas: Mapping[str, ReplicaStatus] = field(default_factory=dict)
    progress: Progress | None = None
    failures: tuple[FailureReport, ...] = ()
    callers: frozenset[str] = frozenset()
    leavers: frozenset[str] = frozenset()
    proven: bool = False
    setbacks: int = 0
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class ControlState:
    """Everything control knows. ``stray_pools`` run although nobody asked for them: they are being
    stopped. ``epoch`` is unique to this life of control, ``attempts`` counts its loads: together they
    make pool names that are never used twice.
    """

    epoch: str = ""
    attempts: int = 0
    models: Mapping[str, Model] = field(default_factory=dict)
    stray_pools: frozenset[str] = frozenset()
    table: RoutingTable = field(default_factory=RoutingTable)


@dataclass(frozen=True, slots=True)
class Record:
    """What the registry keeps of a model, enough to bring it back or to adopt it."""

    name: str
    request: LoadRequest
    origin: Origin
    created: float
    proven: bool = False
    plan: Plan | None = None
    pool: str | None = None


# ---- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """First event of a life: the registry's records, the declared models, the pools Serve already runs."""

    records: tuple[Record, ...]
    declared: Mapping[str, LoadRequest]
    pools: Mapping[str, PoolState]
    epoch: str
    at: float


@dataclass(frozen=True, slots=True)
class LoadAsked:
    name: str
    request: LoadRequest
    caller: str
    at: float


@dataclass(frozen=True, slots=True)
class UnloadAsked:
    name: str
    caller: str
    at: float


@dataclass(frozen=True, slots=True)
class SourceProgressed:
    name: str
    attempt: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class SourceResolved:
    """The files are on disk and read; ``inventory`` was taken for the plan that follows."""

    name: str
    attempt: int
    facts: ModelFacts
    inventory: Inventory
    at: float


@dataclass(frozen=True, slots=True)
class SourceFailed:
    name: str
    attempt: int
    error: XgenRayError
    at: float


@dataclass(frozen=True, slots=True)
class ReplicaReported:
    """From a replica itself, or from asking it."""

    pool: str
    status: ReplicaStatus
    failure: FailureReport | None = None


@dataclass(frozen=True, slots=True)
class PoolsObserved:
    """What Serve runs of ours, and which replicas of each pool are alive. A missing pool is gone."""

    pools: Mapping[str, PoolState]
    messages: Mapping[str, str]
    replicas: Mapping[str, frozenset[str]]
    at: float


@dataclass(frozen=True, slots=True)
class PoolStartFailed:
    """Serve refused the application itself."""

    pool: str
    message: str
    at: float


Event = (
    Restored
    | LoadAsked
    | UnloadAsked
    | SourceProgressed
    | SourceResolved
    | SourceFailed
    | ReplicaReported
    | PoolsObserved
    | PoolStartFailed
)


# ---- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remember:
    """Write this record to the registry, before anything that follows."""

    record: Record


@dataclass(frozen=True, slots=True)
class Forget:
    name: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Find or download the files, read the facts, take the inventory."""

    name: str
    attempt: int
    request: LoadRequest


@dataclass(frozen=True, slots=True)
class CancelResolve:
    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StartPool:
    pool: str
    name: str
    plan: Plan
    replicas: int


@dataclass(frozen=True, slots=True)
class StopPool:
    pool: str


@dataclass(frozen=True, slots=True)
class Publish:
    table: RoutingTable


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell a caller how its load or unload of ``name`` ended; ``error`` is None for success."""

    caller: str
    name: str
    error: XgenRayError | None = None


Effect = Remember | Forget | Resolve | CancelResolve | StartPool | StopPool | Publish | Answer
