"""The routing table: what control tells every router. Small, versioned, replaced as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xgen_ray.schema import Phase, ServedModel


@dataclass(frozen=True, slots=True)
class RoutedEngine:
    """One engine that answers: where, the key that opens it, and how many requests it computes at once."""

    replica_id: str
    url: str
    key: str = field(repr=False)
    backend: str
    slots: int


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach one model. ``engines`` are those that were ready when control last heard of them."""

    model: ServedModel
    phase: Phase
    reason: str
    engines: tuple[RoutedEngine, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """``version`` grows with every change within one ``epoch`` (one life of control)."""

    epoch: str = ""
    version: int = 0
    routes: Mapping[str, Route] = field(default_factory=dict)

    @property
    def stamp(self) -> tuple[str, int]:
        return (self.epoch, self.version)
