"""What has gone through one router: requests by their end, and how fast answers came, as running totals.

Totals only grow within one life of a router, as counters of Prometheus do; who hears of a life for the
first time knows by ``RouterReport.started`` whether it has missed some of it.
"""

import time
import uuid
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from xgen_ray.schema import Endpoint, Outcome

# Upper bounds in seconds of the buckets; one more has what is beyond them.
FIRST_BOUNDS_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 25.0, 60.0, 120.0, 300.0)
BETWEEN_BOUNDS_S: Final = (0.002, 0.004, 0.007, 0.012, 0.02, 0.035, 0.06, 0.1, 0.2, 0.5, 1.0, 3.0)
# Shorter answers say little of the time between two tokens.
MIN_UNITS: Final = 4
OUTCOMES: Final = tuple(Outcome)
_RANK: Final = {outcome: rank for rank, outcome in enumerate(OUTCOMES)}
# Totals of what is not served any more are kept for so long after the last request.
KEPT_S: Final = 600.0
# Of the times that nobody has fetched, only the newest are of use.
_FRESH: Final = 4096


@dataclass(frozen=True, slots=True)
class Stream:
    """Where requests went: a model as clients name it, one of its pools, and the backend there.

    ``pool`` and ``backend`` are empty for requests that no engine was found for.
    """

    model: str
    pool: str = ""
    backend: str = ""


@dataclass(frozen=True, slots=True)
class Times:
    """A histogram: how many there were in each bucket, and their sum in seconds."""

    counts: tuple[int, ...]
    sum_s: float

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Totals:
    """One stream since the router started, and what it is doing now.

    ``ended`` counts in the order of ``OUTCOMES``; ``units`` are events, about tokens. ``first`` is from the
    choice of an engine to the first byte of a streamed answer, ``between`` the mean time between two of its
    events.
    """

    stream: Stream
    ended: tuple[int, ...]
    units: int
    first: Times
    between: Times
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What a router tells control with every call for the table.

    ``router`` names one life of it, which began at ``started``; ``used`` is when each model was last asked
    for; ``waiting`` how many requests wait for each model to have an engine; ``paces`` how many requests each
    engine answers in a second when all its slots are busy, by its replica, as far as that is measured. Times
    are in Unix seconds.
    """

    router: str
    started: float
    used: Mapping[str, float] = field(default_factory=dict)
    totals: tuple[Totals, ...] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)
    paces: Mapping[str, float] = field(default_factory=dict)


class _Histogram:
    __slots__ = ("_bounds", "counts", "fresh", "sum_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum_s = 0.0
        self.fresh: deque[float] = deque(maxlen=_FRESH)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.sum_s += seconds
        self.fresh.append(seconds)

    def take_fresh(self) -> tuple[float, ...]:
        """Those since the last call."""
        taken = tuple(self.fresh)
        self.fresh.clear()
        return taken

    def read(self) -> Times:
        return Times(tuple(self.counts), self.sum_s)


class _Tally:
    __slots__ = ("between", "ended", "first", "last", "stream", "units")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.ended = [0] * len(OUTCOMES)
        self.units = 0
        self.first = _Histogram(FIRST_BOUNDS_S)
        self.between = _Histogram(BETWEEN_BOUNDS_S)
        self.last = 0.0


class Traffic:
    """The counts of one life of a router. Belongs to its event loop; ``now`` is one monotonic clock."""

    def __init__(self) -> None:
        self.router = uuid.uuid4().hex
        self.started = time.time()
        self._tallies: dict[Stream, _Tally] = {}
        # A shortcut: an engine's stream does not change.
        self._by_engine: dict[str, _Tally] = {}
        self._waiting: dict[str, int] = {}

    def know(self, streams: Mapping[str, Stream]) -> None:
        """These engines there are now, by the ids of their replicas."""
        self._by_engine = {key: self._tally(stream) for key, stream in streams.items()}

    def ended(
        self,
        endpoint: Endpoint,
        outcome: Outcome,
        *,
        started: float,
        first: float | None,
        now: float,
        streamed: bool,
        units: int,
    ) -> None:
        """A request is over on this engine. ``first`` is when the first byte of a good answer came."""
        tally = self._by_engine.get(endpoint.replica_id)
        if tally is None:
            # It has left the table meanwhile.
            tally = self._tally(Stream(served_as(endpoint.model), endpoint.pool, endpoint.backend))
        tally.ended[_RANK[outcome]] += 1
        tally.units += units
        tally.last = now
        if streamed and first is not None:
            tally.first.add(first - started)
            if units >= MIN_UNITS:
                tally.between.add((now - first) / (units - 1))

    def unserved(self, model: str, outcome: Outcome, now: float) -> None:
        """A request to ``model`` got no engine, and ended as ``outcome`` says."""
        tally = self._tally(Stream(served_as(model)))
        tally.ended[_RANK[outcome]] += 1
        tally.last = now

    @contextmanager
    def waiting(self, model: str) -> Iterator[None]:
        """Around the wait of one request for an engine of ``model``."""
        name = served_as(model)
        self._waiting[name] = self._waiting.get(name, 0) + 1
        try:
            yield
        finally:
            left = self._waiting.pop(name) - 1
            if left:
                self._waiting[name] = left

    def report(
        self, used: Mapping[str, float], under_way: Iterable[Stream], served: Collection[str], now: float
    ) -> RouterReport:
        """Everything until now. ``under_way`` has one entry for each request that an engine has; ``served``
        are the models that there are.
        """
        in_flight: dict[Stream, int] = {}
        for stream in under_way:
            in_flight[stream] = in_flight.get(stream, 0) + 1
        self._tallies = {
            stream: tally
            for stream, tally in self._tallies.items()
            if stream.model in served or stream in in_flight or now - tally.last < KEPT_S
        }
        return RouterReport(
            self.router,
            self.started,
            used,
            tuple(_totals(tally, in_flight.get(stream, 0)) for stream, tally in self._tallies.items()),
            dict(self._waiting),
        )

    def fresh(self) -> Iterator[tuple[Stream, tuple[float, ...], tuple[float, ...]]]:
        """For each stream the times to the first token, and between two, seen since the last call."""
        for stream, tally in self._tallies.items():
            yield stream, tally.first.take_fresh(), tally.between.take_fresh()

    def _tally(self, stream: Stream) -> _Tally:
        tally = self._tallies.get(stream)
        if tally is None:
            tally = self._tallies[stream] = _Tally(stream)
        return tally


def served_as(name: str) -> str:
    """The model's own name, of one that may name a pool of it as well."""
    return name.partition("@")[0]


def _totals(tally: _Tally, in_flight: int) -> Totals:
    return Totals(
        tally.stream, tuple(tally.ended), tally.units, tally.first.read(), tally.between.read(), in_flight
    )
