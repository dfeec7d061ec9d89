"""What is told of traffic, and to whom measures it."""

from enum import StrEnum

from pydantic import Field

from xgen_ray.schema.wire import Wire


class Outcome(StrEnum):
    """How a request ended on an engine, or without one. One that was wrong before an engine was asked has no
    outcome.

    FULL: it took no more for now. NOT_READY: it was still loading, and another is asked. FAILED: it broke
    off, refused, or answered with a fault of its own. CLIENT_ERROR: it answered that the request was wrong.
    CANCELLED: the client left, with an engine or while it waited for one. UNSERVED: there was no engine for
    it, until it was refused.
    """

    OK = "ok"
    CLIENT_ERROR = "client_error"
    FAILED = "failed"
    CANCELLED = "cancelled"
    FULL = "full"
    NOT_READY = "not_ready"
    UNSERVED = "unserved"

    @property
    def well(self) -> bool:
        """The engine did what it should."""
        return self not in _FAULTS


_FAULTS = frozenset({Outcome.FAILED, Outcome.NOT_READY})


class FigurePoint(Wire):
    """One step of the recent past. ``at`` is its end, in Unix seconds; ``ended`` leaves zeros out.

    ``first_*_s`` are the median and the 95th percentile of the time from the choice of an engine to the first
    byte of a stream, ``between_*_s`` of the mean time between two tokens of a stream; None if none ended.
    ``in_flight`` requests are on engines, ``waiting`` have none yet.
    """

    at: float
    ended: dict[Outcome, int] = Field(default_factory=dict)
    tokens: int = 0
    first_p50_s: float | None = None
    first_p95_s: float | None = None
    between_p50_s: float | None = None
    between_p95_s: float | None = None
    in_flight: int = 0
    waiting: int = 0


class StreamFigures(Wire):
    """What has gone to one backend of one pool of a model since control started."""

    model: str
    pool: str
    backend: str
    ended: dict[Outcome, int]
    tokens: int
    in_flight: int


class FiguresReport(Wire):
    """Answer of ``GET /api/management/figures``: steps that are over, oldest first. One in which nothing
    happened is left out. ``started`` is when the counting began. Ask again with ``since`` the last ``at``.
    """

    now: float
    started: float
    step_s: float
    fleet: tuple[FigurePoint, ...]
    models: dict[str, tuple[FigurePoint, ...]]
    streams: tuple[StreamFigures, ...]


class TargetGroup(Wire):
    """Part of the answer of ``GET /api/management/metrics/targets``, in the words of Prometheus."""

    targets: tuple[str, ...]
    labels: dict[str, str]
