"""The recent past of the whole fleet, from what routers report. Pure: time comes in with each call."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from xgen_ray.schema import FigurePoint, FiguresReport, Outcome, StreamFigures
from xgen_ray.serving.traffic import (
    BETWEEN_BOUNDS_S,
    FIRST_BOUNDS_S,
    OUTCOMES,
    RouterReport,
    Stream,
    Totals,
)

STEP_S: Final = 5.0
STEPS: Final = 720
# A router reports every few seconds; one that has not for so long is gone, and so are its requests.
SILENCE_S: Final = 30.0


@dataclass(slots=True)
class _Sum:
    """What happened in a time."""

    ended: list[int] = field(default_factory=lambda: [0] * len(OUTCOMES))
    units: int = 0
    first: list[int] = field(default_factory=lambda: [0] * (len(FIRST_BOUNDS_S) + 1))
    between: list[int] = field(default_factory=lambda: [0] * (len(BETWEEN_BOUNDS_S) + 1))
    in_flight: int = 0
    waiting: int = 0

    def grow(self, new: Totals, old: Totals | None) -> None:
        """Adds what ``new`` has more than ``old``."""
        _add(self.ended, new.ended, old.ended if old else ())
        _add(self.first, new.first.counts, old.first.counts if old else ())
        _add(self.between, new.between.counts, old.between.counts if old else ())
        self.units += new.units - (old.units if old else 0)

    def include(self, other: "_Sum") -> None:
        _add(self.ended, other.ended)
        _add(self.first, other.first)
        _add(self.between, other.between)
        self.units += other.units
        self.in_flight += other.in_flight
        self.waiting += other.waiting


@dataclass(slots=True)
class _Life:
    """What was last heard of one life of a router."""

    totals: Mapping[Stream, Totals]
    waiting: Mapping[str, int]
    at: float


class History:
    """The last ``steps`` steps of each model, and totals since ``started``. Times are in Unix seconds.

    A router's first report counts from zero if its life began after this history did; before that, what
    it has done already is nobody's news.
    """

    def __init__(self, started: float, *, step_s: float = STEP_S, steps: int = STEPS) -> None:
        self._started = started
        self._step_s = step_s
        self._steps: deque[tuple[int, dict[str, _Sum]]] = deque(maxlen=steps)
        self._lives: dict[str, _Life] = {}
        self._sums: dict[Stream, _Sum] = {}

    def hear(self, report: RouterReport, at: float) -> None:
        """A router's word. Hearing it twice changes nothing."""
        totals = {one.stream: one for one in report.totals}
        life = self._lives.get(report.router)
        # What a life did before this one began is nobody's news.
        before = totals if report.started < self._started else {}
        known = life.totals if life is not None else before
        step = self._step(at)
        for stream, new in totals.items():
            old = known.get(stream)
            if old is not None and sum(new.ended) < sum(old.ended):
                # Forgotten there meanwhile, and begun anew.
                old = None
            if new.ended != (old.ended if old else (0,) * len(OUTCOMES)):
                step.setdefault(stream.model, _Sum()).grow(new, old)
                self._sums.setdefault(stream, _Sum()).grow(new, old)
        self._lives[report.router] = _Life(totals, report.waiting, at)
        self._lives = {key: one for key, one in self._lives.items() if at - one.at < SILENCE_S}
        self._note_gauges(step)

    def figures(self, since: float, at: float) -> FiguresReport:
        """Every step that is over and ended after ``since``."""
        closed = int(at // self._step_s)
        fleet: list[FigurePoint] = []
        models: dict[str, list[FigurePoint]] = {}
        for index, sums in self._steps:
            end = (index + 1) * self._step_s
            if index >= closed or end <= since or not sums:
                continue
            whole = _Sum()
            for model, one in sums.items():
                models.setdefault(model, []).append(_point(one, end))
                whole.include(one)
            fleet.append(_point(whole, end))
        return FiguresReport(
            now=at,
            started=self._started,
            step_s=self._step_s,
            fleet=tuple(fleet),
            models={model: tuple(points) for model, points in sorted(models.items())},
            streams=self._streams(),
        )

    def _step(self, at: float) -> dict[str, _Sum]:
        index = int(at // self._step_s)
        if not self._steps or self._steps[-1][0] < index:
            self._steps.append((index, {}))
        while self._steps[0][0] <= self._steps[-1][0] - (self._steps.maxlen or 0):
            self._steps.popleft()
        return self._steps[-1][1]

    def _note_gauges(self, step: dict[str, _Sum]) -> None:
        """What is under way now is what the step ends with, unless a later word says another."""
        in_flight: dict[str, int] = {}
        waiting: dict[str, int] = {}
        for life in self._lives.values():
            for one in life.totals.values():
                in_flight[one.stream.model] = in_flight.get(one.stream.model, 0) + one.in_flight
            for model, count in life.waiting.items():
                waiting[model] = waiting.get(model, 0) + count
        busy = {model for counts in (in_flight, waiting) for model, count in counts.items() if count}
        for model in busy | step.keys():
            sums = step.setdefault(model, _Sum())
            sums.in_flight, sums.waiting = in_flight.get(model, 0), waiting.get(model, 0)

    def _streams(self) -> tuple[StreamFigures, ...]:
        in_flight: dict[Stream, int] = {}
        for life in self._lives.values():
            for stream, one in life.totals.items():
                in_flight[stream] = in_flight.get(stream, 0) + one.in_flight
        streams = sorted(
            self._sums.keys() | {stream for stream, count in in_flight.items() if count},
            key=lambda stream: (stream.model, stream.pool, stream.backend),
        )
        return tuple(
            StreamFigures(
                model=stream.model,
                pool=stream.pool,
                backend=stream.backend,
                ended=_named(self._sums[stream].ended) if stream in self._sums else {},
                tokens=self._sums[stream].units if stream in self._sums else 0,
                in_flight=in_flight.get(stream, 0),
            )
            for stream in streams
        )


def quantile(share: float, counts: Sequence[int], bounds: Sequence[float]) -> float | None:
    """About the value below which ``share`` of a histogram lies, as Prometheus reckons it; the last bound for
    what is beyond all. None for an empty one.
    """
    rank = share * sum(counts)
    if not rank:
        return None
    below = 0
    for at, count in enumerate(counts[: len(bounds)]):
        if below + count >= rank:
            low = bounds[at - 1] if at else 0.0
            return low + (bounds[at] - low) * (rank - below) / count
        below += count
    return bounds[-1]


def _point(one: _Sum, end: float) -> FigurePoint:
    return FigurePoint(
        at=end,
        ended=_named(one.ended),
        tokens=one.units,
        first_p50_s=quantile(0.5, one.first, FIRST_BOUNDS_S),
        first_p95_s=quantile(0.95, one.first, FIRST_BOUNDS_S),
        between_p50_s=quantile(0.5, one.between, BETWEEN_BOUNDS_S),
        between_p95_s=quantile(0.95, one.between, BETWEEN_BOUNDS_S),
        in_flight=one.in_flight,
        waiting=one.waiting,
    )


def _named(ended: Iterable[int]) -> dict[Outcome, int]:
    return {outcome: count for outcome, count in zip(OUTCOMES, ended, strict=True) if count}


def _add(sums: list[int], new: Sequence[int], old: Sequence[int] = ()) -> None:
    for at, count in enumerate(new):
        sums[at] += count - (old[at] if old else 0)
