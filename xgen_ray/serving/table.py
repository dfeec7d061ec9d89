"""The routing table: what control tells every router. Small, versioned, replaced as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xgen_ray.schema import Phase, ServedModel


@dataclass(frozen=True, slots=True)
class ReportedLoad:
    """The requests an engine had, of all routers, when it was asked: ``at``, in Unix seconds."""

    running: int
    waiting: int
    at: float


@dataclass(frozen=True, slots=True)
class RoutedEngine:
    """One engine that answers: where, the key that opens it, and how many requests it computes at once.

    ``pool`` is what clients may call its pool. ``load`` is its own word, None if it has not said.
    ``wish`` is what control knows its model by, which is told when it was used last.
    ``caches_prefixes``: it keeps the beginnings of prompts.
    """

    replica_id: str
    url: str
    key: str = field(repr=False)
    backend: str
    slots: int
    pool: str = ""
    load: ReportedLoad | None = None
    wish: str = ""
    caches_prefixes: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach one model. ``engines`` are those that were ready when control last heard of them. One that
    is not ``listed`` is another name for some of the engines of one that is. ``will_retry``: what failed is
    tried again without being asked. ``wakes``: nothing of it serves or is about to, and a part of it sleeps,
    which a request that waits has woken.
    """

    model: ServedModel
    phase: Phase
    reason: str
    engines: tuple[RoutedEngine, ...] = ()
    listed: bool = True
    will_retry: bool = False
    wakes: bool = False


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """``version`` grows with every change within one ``epoch`` (one life of control)."""

    epoch: str = ""
    version: int = 0
    routes: Mapping[str, Route] = field(default_factory=dict)

    @property
    def stamp(self) -> tuple[str, int]:
        return (self.epoch, self.version)
