"""The routing table: what control tells every router. Small, versioned, replaced as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xgen_ray.schema import Phase, ServedModel


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach one model. ``pool`` names the Serve application that runs it, once there is one."""

    model: ServedModel
    phase: Phase
    reason: str
    pool: str | None


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """``version`` grows with every change within one ``epoch`` (one life of control)."""

    epoch: str = ""
    version: int = 0
    routes: Mapping[str, Route] = field(default_factory=dict)

    @property
    def stamp(self) -> tuple[str, int]:
        return (self.epoch, self.version)
