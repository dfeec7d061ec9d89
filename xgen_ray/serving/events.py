"""What changes control's state. Data only; time, ids and chance come in with them. See ``machine``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xgen_ray.errors import XgenRayError
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement import (
    Exclusion,
    NodeType,
    Observation,
)
from xgen_ray.placement.types import Backend, Plan
from xgen_ray.schema import FailureReport, LoadRequest, Progress, Scaling
from xgen_ray.serving.state import Fleet, Record, Replica, ServeState


@dataclass(frozen=True, slots=True)
class Restored:
    """First event of a life: the registry's content, the declared models, the apps Serve already runs."""

    records: tuple[Record, ...]
    declared: Mapping[str, LoadRequest]
    apps: Mapping[str, ServeState]
    epoch: str
    at: float
    exclusions: tuple[Exclusion, ...] = ()
    observations: tuple[Observation, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    node_types: Mapping[str, NodeType] = field(default_factory=dict)
    drained: Mapping[str, float] = field(default_factory=dict)


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
class RestartAsked:
    """An operator wants a model's engines, those of all pools of a name, to end and to be started anew."""

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
class DrainAsked:
    """An operator takes a node out of service; ``node`` is its name or its id."""

    node: str
    caller: str
    at: float


@dataclass(frozen=True, slots=True)
class DrainLifted:
    """An operator puts a node back into service, there or not; ``node`` is its name or its id."""

    node: str
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
class AppProgressed:
    """An app's files are on their way to its node."""

    app: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class AppPrepared:
    """Its node holds the lease and has the files. ``plan`` names the files as that node does."""

    app: str
    plan: Plan
    at: float


@dataclass(frozen=True, slots=True)
class AppRefused:
    """Its node could not prepare it. With ``again`` another look may end differently: the memory went to
    somebody else, or the node went away.
    """

    app: str
    error: XgenRayError
    again: bool
    at: float


@dataclass(frozen=True, slots=True)
class ReplicaReported:
    """From a replica itself, or from asking it."""

    app: str
    replica: Replica
    failure: FailureReport | None = None
    observations: tuple[Observation, ...] = ()


@dataclass(frozen=True, slots=True)
class AppsObserved:
    """What Serve runs of ours, and which replicas of each app are alive. A missing app is gone."""

    apps: Mapping[str, ServeState]
    messages: Mapping[str, str]
    replicas: Mapping[str, frozenset[str]]
    at: float


@dataclass(frozen=True, slots=True)
class NodesObserved:
    """The nodes that are alive: names by id, and types of those that the autoscaler has started."""

    nodes: Mapping[str, str]
    at: float
    kinds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UseReported:
    """From a router: when each model was last asked for, in Unix seconds."""

    used: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PacesReported:
    """From a router: how many requests each engine answers in a second at best, by its replica."""

    paces: Mapping[str, float]
    at: float


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
class AppStartFailed:
    """Serve refused the application itself."""

    app: str
    message: str
    at: float


Event = (
    Restored
    | LoadAsked
    | UnloadAsked
    | RestartAsked
    | ExclusionsLifted
    | DrainAsked
    | DrainLifted
    | LookProgressed
    | LookDone
    | LookFailed
    | AppProgressed
    | AppPrepared
    | AppRefused
    | ReplicaReported
    | AppsObserved
    | NodesObserved
    | UseReported
    | PacesReported
    | WakeAsked
    | ScaleAsked
    | AppStartFailed
)
