"""What control wants done. Data only; carried out by ``hands`` and ``loop``. See ``machine``."""

from collections.abc import Mapping
from dataclasses import dataclass

from xgen_ray.errors import XgenRayError
from xgen_ray.placement import (
    Exclusion,
    Observation,
)
from xgen_ray.placement.types import Plan
from xgen_ray.schema import LoadRequest
from xgen_ray.serving.state import Record
from xgen_ray.serving.table import RoutingTable


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
class RememberDrained:
    """Write to the registry which nodes are drained, by name, since when: all of them."""

    drained: Mapping[str, float]


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
class PrepareApp:
    """Have the node hold the lease and get the files."""

    app: str
    name: str
    node_id: str
    request: LoadRequest
    plan: Plan


@dataclass(frozen=True, slots=True)
class StartApp:
    app: str
    name: str
    node_id: str
    node: str


@dataclass(frozen=True, slots=True)
class StopApp:
    """End the application if there is one, cancel its preparation, give its lease back."""

    app: str
    node_id: str | None


@dataclass(frozen=True, slots=True)
class AskForNodes:
    """Tell the autoscaler how many nodes of each type there must be, until it is told otherwise."""

    counts: Mapping[str, int]


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
    | RememberDrained
    | Look
    | CancelLook
    | PrepareApp
    | StartApp
    | StopApp
    | AskForNodes
    | Publish
    | Answer
)
