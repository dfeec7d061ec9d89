"""A world for routing policies: engines, requests and time, all of it computed. Seeded, so the same each run.

Engines are batching servers: so many slots, one prompt read at a time, all answers written side by side, each
slower the more there are; a cache of the latest prompts spares reading what a prompt shares with an earlier
one of its kind.
"""

import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tests.bench.routing_load import Asked


@dataclass(frozen=True, slots=True)
class Hardware:
    """A kind of engine. Reading a token takes ``read_s``, a step of n answers ``step_s + n * crowd_s``."""

    name: str
    slots: int
    read_s: float
    step_s: float
    crowd_s: float
    cache_tokens: int = 60_000

    def times(self, factor: float) -> "Hardware":
        """The same, so many times slower."""
        return Hardware(
            self.name,
            self.slots,
            self.read_s * factor,
            self.step_s * factor,
            self.crowd_s * factor,
            self.cache_tokens,
        )


# About a large and a small GPU with a model of some billion parameters.
LARGE = Hardware("large", 16, 0.0001, 0.010, 0.0004)
SMALL = Hardware("small", 4, 0.001, 0.100, 0.004)


@dataclass(slots=True)
class Outcome:
    """What the client saw."""

    asked: Asked
    engine: int = -1
    first_s: float | None = None
    total_s: float | None = None


@dataclass(slots=True)
class _Job:
    asked: Asked
    token: int


class SimEngine:
    """One engine in virtual time. What it owes next is told by ``next_event``."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.dead = False
        self.waiting: deque[_Job] = deque()
        self.to_read: deque[_Job] = deque()
        self.reading: tuple[float, _Job] | None = None
        self.writing: list[tuple[float, int, _Job]] = []
        self._steps = 0.0
        self._at = 0.0
        self._cache: OrderedDict[int, int] = OrderedDict()

    @property
    def running(self) -> int:
        return len(self.to_read) + (self.reading is not None) + len(self.writing)

    def become(self, hardware: Hardware, now: float) -> None:
        self._advance(now)
        self.hardware = hardware

    def arrive(self, job: _Job, now: float) -> None:
        self._advance(now)
        self.waiting.append(job)
        self._admit(now)

    def next_event(self) -> float:
        """When something happens here by itself."""
        read = self.reading[0] if self.reading else math.inf
        if not self.writing:
            return read
        return min(read, self._at + max(0.0, self.writing[0][0] - self._steps) * self._step_s())

    def happen(self, now: float) -> tuple[_Job, bool]:
        """The job that has come so far, and whether it is at its end (or else at its first token)."""
        self._advance(now)
        if self.reading and self.reading[0] <= now:
            job = self.reading[1]
            self.reading = None
            heapq.heappush(self.writing, (self._steps + job.asked.answer, job.token, job))
            self._read_next(now)
            return job, False
        job = heapq.heappop(self.writing)[2]
        self._admit(now)
        return job, True

    def die(self) -> list[_Job]:
        self.dead = True
        jobs = [*self.waiting, *self.to_read, *(job for _, _, job in self.writing)]
        if self.reading:
            jobs.append(self.reading[1])
        self.waiting.clear()
        self.to_read.clear()
        self.writing.clear()
        self.reading = None
        return jobs

    def _step_s(self) -> float:
        return self.hardware.step_s + self.hardware.crowd_s * len(self.writing)

    def _advance(self, now: float) -> None:
        if self.writing:
            self._steps += (now - self._at) / self._step_s()
        self._at = now

    def _admit(self, now: float) -> None:
        while self.waiting and self.running < self.hardware.slots:
            self.to_read.append(self.waiting.popleft())
        self._read_next(now)

    def _read_next(self, now: float) -> None:
        if self.reading or not self.to_read:
            return
        job = self.to_read.popleft()
        tokens = max(16, job.asked.prompt - min(self._cache.pop(job.asked.kind, 0), job.asked.prompt))
        self._cache[job.asked.kind] = job.asked.prompt
        while sum(self._cache.values()) > self.hardware.cache_tokens and len(self._cache) > 1:
            self._cache.popitem(last=False)
        self.reading = (now + tokens * self.hardware.read_s, job)


@dataclass(frozen=True, slots=True)
class Mishap:
    """At ``at``, engine ``engine`` dies, or becomes ``slower`` times slower."""

    at: float
    engine: int
    slower: float | None = None


class Policy(Protocol):
    """What chooses. One for all routers: it keeps what they know apart itself."""

    def choose(self, asked: Asked, engines: Sequence[int], avoid: frozenset[int], now: float) -> int | None:
        """One of ``engines``, those in the table, but not of ``avoid``; None if there is no other."""

    def answering(self, asked: Asked, engine: int, now: float) -> None: ...

    def finished(self, asked: Asked, engine: int, now: float, *, ok: bool) -> None: ...

    def table(self, loads: Mapping[int, tuple[int, int]], seen_at: float, now: float) -> None:
        """A new table has come: the engines, and what they had running and waiting at ``seen_at``."""


@dataclass(frozen=True, slots=True)
class Delays:
    """How old news is. Engines are asked every ``report_s``; what is known reaches routers ``lag_s`` later, a
    death after ``death_s``.
    """

    report_s: float = 2.0
    lag_s: float = 0.5
    death_s: float = 6.0
    retry_s: float = 0.01


class World:
    """Runs requests through a policy to the end."""

    def __init__(
        self,
        engines: Sequence[Hardware],
        policy: Policy,
        mishaps: Sequence[Mishap] = (),
        delays: Delays | None = None,
    ) -> None:
        self.engines = [SimEngine(hardware) for hardware in engines]
        self.outcomes: list[Outcome] = []
        self._policy = policy
        self._delays = delays or Delays()
        self._listed = list(range(len(engines)))
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._tokens = itertools.count()
        self._open = 0
        self._more = True
        for mishap in mishaps:
            self._later(mishap.at, partial(self._befall, mishap))

    def run(self, asked: Iterator[Asked]) -> list[Outcome]:
        self._source = asked
        self._publish(self._loads(), 0.0, 0.0)
        self._later(self._delays.report_s, self._report)
        self._next_arrival()
        while self._more or self._open:
            engine = min(self.engines, key=SimEngine.next_event)
            due = engine.next_event()
            if self._events and self._events[0][0] <= due:
                at, _, act = heapq.heappop(self._events)
                act(at)
            else:
                self._progress(self.engines.index(engine), due)
        return self.outcomes

    def _later(self, at: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), act))

    def _next_arrival(self) -> None:
        asked = next(self._source, None)
        if asked is None:
            self._more = False
            return

        def arrive(now: float) -> None:
            outcome = Outcome(asked)
            self.outcomes.append(outcome)
            self._open += 1
            self._try(outcome, frozenset(), now)
            self._next_arrival()

        self._later(asked.at, arrive)

    def _try(self, outcome: Outcome, avoid: frozenset[int], now: float) -> None:
        chosen = self._policy.choose(outcome.asked, self._listed, avoid, now)
        if chosen is None:
            self._later(now + 0.25, partial(self._try, outcome, frozenset()))
            return
        outcome.engine = chosen
        if self.engines[chosen].dead:
            self._policy.finished(outcome.asked, chosen, now, ok=False)
            self._later(now + self._delays.retry_s, partial(self._try, outcome, avoid | {chosen}))
            return
        asked = outcome.asked
        self.engines[chosen].arrive(_Job(asked, next(self._tokens)), now)

    def _progress(self, index: int, now: float) -> None:
        job, ended = self.engines[index].happen(now)
        outcome = self.outcomes[job.asked.number]
        if not ended:
            outcome.first_s = now - job.asked.at
            self._policy.answering(job.asked, index, now)
            return
        outcome.total_s = now - job.asked.at
        self._open -= 1
        self._policy.finished(job.asked, index, now, ok=True)

    def _befall(self, mishap: Mishap, now: float) -> None:
        engine = self.engines[mishap.engine]
        if mishap.slower is not None:
            engine.become(engine.hardware.times(mishap.slower), now)
            return
        for job in engine.die():
            outcome = self.outcomes[job.asked.number]
            self._policy.finished(job.asked, mishap.engine, now, ok=False)
            if outcome.first_s is None:
                self._later(
                    now + self._delays.retry_s,
                    partial(self._try, outcome, frozenset({mishap.engine})),
                )
            else:
                self._open -= 1
        self._later(now + self._delays.death_s, partial(self._delist, mishap.engine))

    def _delist(self, engine: int, now: float) -> None:
        self._listed.remove(engine)
        self._publish(self._loads(), now, now)

    def _report(self, now: float) -> None:
        self._later(now + self._delays.lag_s, partial(self._publish, self._loads(), now))
        self._later(now + self._delays.report_s, self._report)

    def _loads(self) -> dict[int, tuple[int, int]]:
        return {one: (self.engines[one].running, len(self.engines[one].waiting)) for one in self._listed}

    def _publish(self, loads: Mapping[int, tuple[int, int]], seen_at: float, now: float) -> None:
        listed = {one: load for one, load in loads.items() if one in self._listed}
        self._policy.table(listed, seen_at, now)
