"""Control's state. Data only: ``events`` change it, and ask for ``effects``. See ``machine``."""

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
    NodeDemand,
    NodeType,
    NodeVerdict,
    NodeView,
    Observation,
    PlacementPolicy,
)
from xgen_ray.placement.types import Backend, BackendStatus, Plan
from xgen_ray.schema import FailureReport, LoadRequest, Origin, Phase, Progress, ReplicaStatus
from xgen_ray.serving.pace import Pace, Place
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


class ServeState(StrEnum):
    """An application, as Serve reports it."""

    STARTING = "starting"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    FAILED = "failed"
    STOPPING = "stopping"


class AppPhase(StrEnum):
    """How far an app has come. SERVING means that a replica is ready now."""

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
class App:
    """One engine of a model on one node: a Serve application with one replica, which Serve keeps alive.

    ``node_kind`` says what its backend found there (``placement.node_kind``), which exclusions go by.
    ``seen`` is Serve's last word, None before the first. ``ended`` are the ids of replicas that have failed,
    latest first: Serve never uses one again. ``deaths`` are the times at which its engine failed and what
    of, latest first. ``leaving``: its node is drained, and it serves until others do.
    """

    name: str
    node_id: str
    node: str
    node_kind: str
    plan: Plan
    phase: AppPhase
    since: float
    why: str = ""
    seen: ServeState | None = None
    replicas: Mapping[str, Replica] = field(default_factory=dict)
    ended: tuple[str, ...] = ()
    progress: Progress | None = None
    deaths: tuple[tuple[float, str], ...] = ()
    proven: bool = False
    leaving: bool = False

    @property
    def backend(self) -> Backend:
        return self.plan.backend

    @property
    def ready(self) -> int:
        return sum(1 for replica in self.replicas.values() if replica.status.state == "ready")


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a model waits for ``since`` then: nodes that the autoscaler is asked for."""

    demand: NodeDemand
    since: float


@dataclass(frozen=True, slots=True)
class Model:
    """One wish of the operator and how far it has come.

    ``attempt`` numbers the looks for a place within one life of control: the answer to an older one is
    ignored; ``looking`` says that one is under way. ``callers`` are answered when the load ends, ``leavers``
    when the unload ends. ``proven`` means that it has served once: such a wish outlives a failure, a load
    that never worked does not. A wish that lives on, or lacks replicas, is tried again at ``retry_at``, later
    after each of its ``setbacks``; None where time cannot mend what it failed of. ``shortfall`` says why
    replicas are missing. ``wanted`` is how many replicas there should be now, and ``trend`` where its load is
    going. ``evicting`` are the models that are leaving to make room; its own name is among them while former
    engines of it do. ``context_limit`` is what is left of the context after running out of memory.
    ``last_rung`` is the failure that led to the newest exclusion.
    ``declared`` is what the configuration said when it was last applied, None for a model that it does not
    know; ``request`` differs from it where an operator has changed the scale since. ``awaited`` are the nodes
    that it waits for, and ``unfit`` the types of which it has seen one that did not do, with why.
    """

    name: str
    request: LoadRequest
    phase: Phase
    reason: str
    attempt: int
    since: float
    created: float
    declared: LoadRequest | None = None
    wanted: int = 1
    trend: Trend = STEADY
    looking: bool = False
    facts: ModelFacts | None = None
    apps: Mapping[str, App] = field(default_factory=dict)
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
    awaited: Awaited | None = None
    unfit: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        return Origin.API if self.declared is None else Origin.DECLARED

    @property
    def is_kept(self) -> bool:
        """Whether the wish outlives a failure: it, and its hold on the name, end by an unload alone."""
        return self.proven or self.origin is Origin.DECLARED

    @property
    def served_as(self) -> str:
        """The name that clients use; several wishes may share it."""
        return self.name.partition("@")[0]

    @property
    def pool_name(self) -> str:
        """Which of the name's pools this is; empty for the one without a name."""
        return self.name.partition("@")[2]

    @property
    def is_coming(self) -> bool:
        """Whether it serves or is about to, so that nothing else need be woken in its place. A node that it
        waits for may be minutes away, or never come.
        """
        if self.phase is Phase.RESOLVING:
            return self.awaited is None or bool(self.live)
        if self.phase is Phase.RECOVERING:
            return bool(self.live)
        return self.phase in (Phase.READY, Phase.LOADING)

    @property
    def live(self) -> tuple[App, ...]:
        """The apps that are wanted: all but those that are stopping."""
        return tuple(app for app in self.apps.values() if app.phase is not AppPhase.STOPPING)

    @property
    def backends(self) -> frozenset[Backend]:
        """What its engines run by, or will. Empty while that is open: one that sleeps may come back by
        another than it had.
        """
        if self.live:
            return frozenset(app.backend for app in self.live)
        asked = self.request.options.backend
        return frozenset() if asked is None else frozenset({asked})

    @property
    def staying(self) -> tuple[App, ...]:
        """The apps that count as replicas: those that are wanted where they are."""
        return tuple(app for app in self.live if not app.leaving)

    @property
    def leaving(self) -> tuple[App, ...]:
        """The apps on drained nodes, each until another one serves in its place."""
        return tuple(app for app in self.live if app.leaving)

    @property
    def ready(self) -> int:
        return sum(app.ready for app in self.live)


@dataclass(frozen=True, slots=True)
class ControlState:
    """Everything control knows.

    ``stray_apps`` run although nobody asked for them: they are being stopped. ``epoch`` is unique to this
    life of control, ``apps_named`` counts its apps: together they make app names that are never used
    twice. ``nodes`` are those alive, names by id; None until somebody has looked. ``drained`` are the names
    of nodes that take nothing, there or not, and since when. ``used`` is when a model was last asked for, in
    Unix seconds. ``paces`` are measured in this life; ``costs`` are the operator's, of
    devices by their names in tags. ``node_types`` are those that the autoscaler may start, by name;
    ``node_kinds`` has the type of each node that is of one, by its id; ``asked_nodes`` is what it was last
    asked for, None before the first word.
    """

    epoch: str = ""
    attempts: int = 0
    apps_named: int = 0
    models: Mapping[str, Model] = field(default_factory=dict)
    stray_apps: frozenset[str] = frozenset()
    nodes: Mapping[str, str] | None = None
    drained: Mapping[str, float] = field(default_factory=dict)
    exclusions: tuple[Exclusion, ...] = ()
    observations: tuple[Observation, ...] = ()
    used: Mapping[str, float] = field(default_factory=dict)
    paces: Mapping[Place, Pace] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    node_types: Mapping[str, NodeType] = field(default_factory=dict)
    node_kinds: Mapping[str, str] = field(default_factory=dict)
    asked_nodes: Mapping[str, int] | None = None
    table: RoutingTable = field(default_factory=RoutingTable)

    def models_on(self, node: str) -> tuple[str, ...]:
        """Those that have an engine on the node of this name, or had one that is not gone yet; sorted."""
        on = (
            model.name for model in self.models.values() if any(a.node == node for a in model.apps.values())
        )
        return tuple(sorted(on))


@dataclass(frozen=True, slots=True)
class AppRecord:
    """What the registry keeps of an app, enough to adopt it."""

    name: str
    node_id: str
    node: str
    node_kind: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class Record:
    """What the registry keeps of a model, enough to bring it back or to adopt it."""

    name: str
    request: LoadRequest
    created: float
    declared: LoadRequest | None = None
    proven: bool = False
    context_limit: int | None = None
    last_rung: Exclusion | None = None
    apps: tuple[AppRecord, ...] = ()
