"""Control's state, the events that change it and the effects it asks for. Data only.

Time, ids and chance come in with events; what must happen goes out as effects. See ``machine``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from xgen_ray.errors import XgenRayError
from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement import (
    DEFAULT_POLICY,
    Exclusion,
    FleetRefusal,
    NodeVerdict,
    NodeView,
    Observation,
    PlacementPolicy,
)
from xgen_ray.placement.types import Backend, BackendStatus, Plan
from xgen_ray.schema import FailureReport, LoadRequest, Origin, Phase, Progress, ReplicaStatus, Scaling
from xgen_ray.serving.scaling import STEADY, Trend
from xgen_ray.serving.table import RoutingTable


@dataclass(frozen=True, slots=True)
class Inventory:
    """What can run on one node, at the moment of a look, and the operator's rules for it.

    ``statuses`` are discovery's: the engines' word alone, before the hardware's.
    """

    snapshot: NodeSnapshot
    usage: NodeUsage | None
    statuses: tuple[BackendStatus, ...]
    policy: PlacementPolicy = DEFAULT_POLICY


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every node at the moment a plan is made, and the operator's rules. ``silent`` are the ids of the nodes
    that gave no answer in time.
    """

    nodes: tuple[NodeView, ...]
    policy: PlacementPolicy = DEFAULT_POLICY
    silent: frozenset[str] = frozenset()


class AppState(StrEnum):
    """A pool's Serve application, as Serve reports it."""

    STARTING = "starting"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    FAILED = "failed"
    STOPPING = "stopping"


class PoolPhase(StrEnum):
    """How far a pool has come. SERVING means that a replica is ready now."""

    PREPARING = "preparing"
    STARTING = "starting"
    SERVING = "serving"
    RECOVERING = "recovering"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica's own word. ``key`` opens its engine; None while that is loading."""

    status: ReplicaStatus
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Pool:
    """A model's engines on one node: one Serve application with one replica for each plan.

    ``node_kind`` says what its backend found there (``placement.node_kind``), which exclusions go by.
    ``app`` is Serve's last word, None before the first. ``deaths`` are the times at which an engine of it
    failed and what of, latest first.
    """

    pool: str
    node_id: str
    node: str
    node_kind: str
    plans: tuple[Plan, ...]
    phase: PoolPhase
    since: float
    why: str = ""
    app: AppState | None = None
    replicas: Mapping[str, Replica] = field(default_factory=dict)
    progress: Progress | None = None
    deaths: tuple[tuple[float, str], ...] = ()
    proven: bool = False

    @property
    def backend(self) -> Backend:
        return self.plans[0].backend

    @property
    def ready(self) -> int:
        return sum(1 for replica in self.replicas.values() if replica.status.state == "ready")


@dataclass(frozen=True, slots=True)
class Model:
    """One wish of the operator and how far it has come.

    ``attempt`` numbers the looks for a place within one life of control: the answer to an older one is
    ignored; ``looking`` says that one is under way. ``callers`` are answered when the load ends,
    ``leavers`` when the unload ends. ``proven`` means that it has served once: such a wish outlives a
    failure, a load that never worked does not. A wish that lives on, or lacks replicas, is tried again at
    ``retry_at``, later after each of its ``setbacks``. ``shortfall`` says why replicas are missing.
    ``wanted`` is how many replicas there should be now, and ``trend`` where its load is going.
    ``evicting`` are the models that are leaving to make room. ``context_limit`` is what is left of the
    context after running out of memory. ``last_rung`` is the failure that led to the newest exclusion.
    """

    name: str
    request: LoadRequest
    origin: Origin
    phase: Phase
    reason: str
    attempt: int
    since: float
    created: float
    wanted: int = 1
    trend: Trend = STEADY
    looking: bool = False
    facts: ModelFacts | None = None
    pools: Mapping[str, Pool] = field(default_factory=dict)
    refusal: FleetRefusal | None = None
    verdicts: tuple[NodeVerdict, ...] = ()
    progress: Progress | None = None
    failures: tuple[FailureReport, ...] = ()
    callers: frozenset[str] = frozenset()
    leavers: frozenset[str] = frozenset()
    evicting: frozenset[str] = frozenset()
    shortfall: str | None = None
    context_limit: int | None = None
    last_rung: tuple[Exclusion, XgenRayError] | None = None
    proven: bool = False
    setbacks: int = 0
    retry_at: float | None = None

    @property
    def served_as(self) -> str:
        """The name that clients use; several wishes may share it."""
        return self.name.partition("@")[0]

    @property
    def pool_name(self) -> str:
        """Which of the name's pools this is; empty for the one without a name."""
        return self.name.partition("@")[2]

    @property
    def live(self) -> tuple[Pool, ...]:
        """The pools that are wanted: all but those that are stopping."""
        return tuple(pool for pool in self.pools.values() if pool.phase is not PoolPhase.STOPPING)

    @property
    def ready(self) -> int:
        return sum(pool.ready for pool in self.live)


@dataclass(frozen=True, slots=True)
class ControlState:
    """Everything control knows.

    ``stray_pools`` run although nobody asked for them: they are being stopped. ``epoch`` is unique to this
    life of control, ``pools_named`` counts its pools: together they make pool names that are never used
    twice. ``nodes`` are those alive, names by id; None until somebody has looked. ``used`` is when a model
    was last asked for, in Unix seconds.
    """

    epoch: str = ""
    attempts: int = 0
    pools_named: int = 0
    models: Mapping[str, Model] = field(default_factory=dict)
    stray_pools: frozenset[str] = frozenset()
    nodes: Mapping[str, str] | None = None
    exclusions: tuple[Exclusion, ...] = ()
    observations: tuple[Observation, ...] = ()
    used: Mapping[str, float] = field(default_factory=dict)
    table: RoutingTable = field(default_factory=RoutingTable)


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """What the registry keeps of a pool, enough to adopt it."""

    pool: str
    node_id: str
    node: str
    node_kind: str
    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What the registry keeps of a model, enough to bring it back or to adopt it."""

    name: str
    request: LoadRequest
    origin: Origin
    created: float
    proven: bool = False
    context_limit: int | None = None
    pools: tuple[PoolRecord, ...] = ()


# ---- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """First event of a life: the registry's content, the declared models, the pools Serve already runs."""

    records: tuple[Record, ...]
    declared: Mapping[str, LoadRequest]
    pools: Mapping[str, AppState]
    epoch: str
    at: float
    exclusions: tuple[Exclusion, ...] = ()
    observations: tuple[Observation, ...] = ()


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
class ExclusionsLifted:
    """An operator forgives: every exclusion of the model called ``name``, or of one backend of it."""

    name: str
    backend: Backend | None
    caller: str
    at: float


@dataclass(frozen=True, slots=True)
class LookProgressed:
    name: str
    attempt: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class LookDone:
    """The model's facts are read, and ``fleet`` was taken for the plan that follows."""

    name: str
    attempt: int
    facts: ModelFacts
    fleet: Fleet
    at: float


@dataclass(frozen=True, slots=True)
class LookFailed:
    name: str
    attempt: int
    error: XgenRayError
    at: float


@dataclass(frozen=True, slots=True)
class PoolProgressed:
    """A pool's files are on their way to its node."""

    pool: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class PoolPrepared:
    """Its node holds the leases and has the files. ``plans`` name the files as that node does."""

    pool: str
    plans: tuple[Plan, ...]
    at: float


@dataclass(frozen=True, slots=True)
class PoolRefused:
    """Its node could not prepare it. With ``again`` another look may end differently: the memory went to
    somebody else, or the node went away.
    """

    pool: str
    error: XgenRayError
    again: bool
    at: float


@dataclass(frozen=True, slots=True)
class ReplicaReported:
    """From a replica itself, or from asking it."""

    pool: str
    replica: Replica
    failure: FailureReport | None = None
    observations: tuple[Observation, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolsObserved:
    """What Serve runs of ours, and which replicas of each pool are alive. A missing pool is gone."""

    pools: Mapping[str, AppState]
    messages: Mapping[str, str]
    replicas: Mapping[str, frozenset[str]]
    at: float


@dataclass(frozen=True, slots=True)
class NodesObserved:
    """The nodes that are alive: names by id."""

    nodes: Mapping[str, str]
    at: float


@dataclass(frozen=True, slots=True)
class UseReported:
    """From a router: when each model was last asked for, in Unix seconds."""

    used: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class WakeAsked:
    """From a router: requests have come for models that sleep."""

    names: frozenset[str]
    at: float


@dataclass(frozen=True, slots=True)
class ScaleAsked:
    """An operator wants so many replicas of a model, or another rule for their number."""

    name: str
    replicas: int | None
    scaling: Scaling | None
    caller: str
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
    | ExclusionsLifted
    | LookProgressed
    | LookDone
    | LookFailed
    | PoolProgressed
    | PoolPrepared
    | PoolRefused
    | ReplicaReported
    | PoolsObserved
    | NodesObserved
    | UseReported
    | WakeAsked
    | ScaleAsked
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
class RememberLessons:
    """Write all exclusions and observations to the registry."""

    exclusions: tuple[Exclusion, ...]
    observations: tuple[Observation, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """Read the model's facts and take the fleet's inventory."""

    name: str
    attempt: int
    request: LoadRequest


@dataclass(frozen=True, slots=True)
class CancelLook:
    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class PreparePool:
    """Have the node hold the leases and get the files."""

    pool: str
    name: str
    node_id: str
    request: LoadRequest
    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class StartPool:
    pool: str
    name: str
    node_id: str
    node: str
    replicas: int


@dataclass(frozen=True, slots=True)
class StopPool:
    """End the application if there is one, cancel its preparation, give its leases back."""

    pool: str
    node_id: str | None


@dataclass(frozen=True, slots=True)
class Publish:
    table: RoutingTable


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell a caller how its request about ``name`` ended; ``error`` is None for success."""

    caller: str
    name: str
    error: XgenRayError | None = None


Effect = (
    Remember
    | Forget
    | RememberLessons
    | Look
    | CancelLook
    | PreparePool
    | StartPool
    | StopPool
    | Publish
    | Answer
)
