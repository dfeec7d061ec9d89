"""Everything one router knows of one engine, and how long the next request would take there."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from xgen_ray.schema import RequestHints
from xgen_ray.serving.routing.affinity import seed_of
from xgen_ray.serving.routing.health import Health
from xgen_ray.serving.routing.rules import RoutingRules
from xgen_ray.serving.routing.speeds import MIN_UNITS, REQUEST_BYTES, SpeedMeter
from xgen_ray.serving.table import ReportedLoad, RoutedEngine

# A prompt is not read in proportion to its bytes beyond this: such bodies carry pictures.
_MOST_BYTES: Final = 128 * 1024
# The share that the newest sample has in a mean.
_NEWEST: Final = 0.3
_DEMAND_NEWEST: Final = 0.05
_ENDED_KEPT: Final = 64


class Demand:
    """What the requests of one model are like: the means that stand for what is not known of one, and
    how many there have been.
    """

    __slots__ = ("size", "turns", "units")

    def __init__(self) -> None:
        self.size = 2048.0
        self.units = 128.0
        self.turns = 0

    def asked(self, size: float | None) -> None:
        self.turns += 1
        if size is not None:
            self.size += _DEMAND_NEWEST * (size - self.size)

    def answered(self, units: int) -> None:
        self.units += _DEMAND_NEWEST * (units - self.units)


@dataclass(slots=True)
class UnderWay:
    """A request on its way. ``to_read`` are its bytes that the engine has not cached, ``ahead`` those of
    other requests that it had still to read, ``expected_s`` when its first byte was expected, if nothing
    is late there. ``queued``: it had to wait for a slot.
    """

    ticket: int
    facts: "EngineFacts"
    started: float
    to_read: float
    ahead: float
    expected_s: float
    queued: bool
    hints: RequestHints
    first: float | None = None
    busy_at_first: float = 0.0

    @property
    def tells_reading(self) -> bool:
        """Its first byte comes once its prompt is read; else it comes with the whole answer."""
        return self.hints.streamed if self.hints.generates else self.hints.reads


class EngineFacts:
    """One engine. ``fixed_s`` + ``byte_s`` * bytes + ``unit_s`` * units is when a request that starts now
    should be done; the three are kept up to date, for choices look at every engine. ``fullness`` is its
    load for its slots.
    """

    __slots__ = (
        "_ended",
        "_heard",
        "_late_at",
        "_late_s",
        "_lateness",
        "_others",
        "_others_at",
        "_pending",
        "_pending_bytes",
        "_rules",
        "_under_way",
        "byte_s",
        "demand",
        "engine",
        "fixed_s",
        "fullness",
        "health",
        "meter",
        "seed",
        "turn",
        "turn_at",
        "unit_s",
    )

    def __init__(self, engine: RoutedEngine, demand: Demand, rules: RoutingRules, now: float) -> None:
        self._rules = rules
        self.engine = engine
        self.demand = demand
        self.seed = seed_of(engine.replica_id)
        self.health = Health(rules)
        self.meter = SpeedMeter(rules)
        self.turn = demand.turns
        self.turn_at = now
        self._under_way: dict[int, UnderWay] = {}
        # The latest that are over: a report may still count them.
        self._ended: deque[tuple[float, float]] = deque(maxlen=_ENDED_KEPT)
        self._pending: dict[int, UnderWay] = {}
        self._pending_bytes = 0.0
        self._late_s = self._lateness = 0.0
        self._late_at = now
        self._heard: ReportedLoad | None = None
        self._others = 0.0
        self._others_at = now
        self.fixed_s = self.byte_s = self.unit_s = self.fullness = 0.0
        self.refresh(now)

    @property
    def under_way(self) -> int:
        """This router's requests on the engine."""
        return len(self._under_way)

    def load(self, now: float) -> float:
        """All requests on the engine, those of other routers as far as known."""
        if not self._others:
            return len(self._under_way)
        age = max(0.0, now - self._others_at)
        return len(self._under_way) + self._others * math.exp(-age / self._rules.report_life_s)

    def update(self, engine: RoutedEngine, reported_at: float, now: float) -> None:
        """The table's newest word; ``reported_at`` is when its load was seen, on this router's clock."""
        # The same word comes again with every table, and not in every name's row.
        if engine.load is not None and engine.load != self._heard:
            self._hear(engine.load, reported_at)
        self.engine = engine
        self.refresh(now)

    def _hear(self, load: ReportedLoad, at: float) -> None:
        own = sum(1 for one in self._under_way.values() if one.started <= at)
        own += sum(1 for started, ended in self._ended if started <= at < ended)
        self._heard = load
        self._others = float(max(0, load.running + load.waiting - own))
        self._others_at = at

    def refresh(self, now: float) -> None:
        """Work out the expected times anew."""
        speed, slots = self.meter.speed, self.engine.slots
        load = self.load(now)
        self.fullness = load / slots
        self.byte_s = speed.byte_s
        self.unit_s = speed.per_unit(min(load + 1, slots))
        reading = self._pending_bytes * speed.byte_s
        if load >= slots:
            # One after another gets a free slot; to read their prompts takes at least its time.
            demand = self.demand
            service = (demand.size + REQUEST_BYTES) * speed.byte_s + demand.units * self.unit_s
            reading = max(reading, (load - slots + 1) / slots * service)
        late = self._late_s * math.exp(-max(0.0, now - self._late_at) / self._rules.lateness_life_s)
        if self._pending:
            oldest = next(iter(self._pending.values()))
            late = max(late, now - oldest.started - oldest.expected_s)
        self._lateness = late
        self.fixed_s = reading + REQUEST_BYTES * speed.byte_s + late

    def pace(self) -> float | None:
        """How many requests like those of its model it answers in a second with all slots busy; None while
        nothing of that is measured. Prompts are read one after another, answers are written at once.
        """
        if not self.meter.measured:
            return None
        speed, slots = self.meter.speed, self.engine.slots
        reading = (self.demand.size + REQUEST_BYTES) * speed.byte_s if self.meter.reads else 0.0
        writing = self.demand.units * speed.per_unit(slots) if self.meter.writes else 0.0
        return 1 / max(reading, (reading + writing) / slots)

    def request(self, ticket: int, hints: RequestHints, to_read: float, now: float) -> UnderWay:
        """A request that goes to this engine now."""
        request = UnderWay(
            ticket=ticket,
            facts=self,
            started=now,
            to_read=to_read,
            ahead=self._pending_bytes,
            expected_s=self.fixed_s - self._lateness + self.byte_s * to_read,
            queued=self.load(now) >= self.engine.slots,
            hints=hints,
        )
        self.health.chosen(ticket)
        self.turn, self.turn_at = self.demand.turns, now
        self._under_way[ticket] = request
        if request.tells_reading:
            self._pending[ticket] = request
            self._pending_bytes += to_read
        self.refresh(now)
        return request

    def answering(self, request: UnderWay, now: float) -> None:
        """The first byte of the answer has come."""
        request.first = now
        request.busy_at_first = min(self.load(now), self.engine.slots)
        self._read(request)
        took = now - request.started
        if request.tells_reading:
            self._late(took - request.expected_s, now)
            if not request.queued:
                self.meter.read(request.ahead + request.to_read + REQUEST_BYTES, took, now)
        self.refresh(now)

    def leave(self, request: UnderWay, now: float, units: int, *, learn: bool) -> None:
        """``request`` is over; ``units`` is how much was written, if that is something to learn from."""
        if request.first is None:
            self._read(request)
            if learn and request.tells_reading:
                # It might have taken longer still.
                self._late(max(0.0, now - request.started - request.expected_s), now, at_least=True)
        elif learn and request.hints.generates and units >= MIN_UNITS:
            self.demand.answered(units)
            self._wrote(request, now, units)
        self._under_way.pop(request.ticket, None)
        self._ended.append((request.started, now))
        self.refresh(now)

    def _wrote(self, request: UnderWay, now: float, units: int) -> None:
        busy = (request.busy_at_first + min(self.load(now), self.engine.slots)) / 2
        if request.hints.streamed and request.first is not None:
            self.meter.wrote((now - request.first) / (units - 1), max(1.0, busy), now)
        elif (writing := now - request.started - request.expected_s) > 0:
            # All of the answer came at once: what reading did not take went into writing.
            self.meter.wrote(writing / units, max(1.0, busy), now)

    def _read(self, request: UnderWay) -> None:
        if self._pending.pop(request.ticket, None):
            self._pending_bytes = self._pending_bytes - request.to_read if self._pending else 0.0

    def _late(self, late: float, now: float, *, at_least: bool = False) -> None:
        """The first byte came so much later than expected: more is going on there than is known here."""
        old = self._late_s * math.exp(-max(0.0, now - self._late_at) / self._rules.lateness_life_s)
        new = (1 - _NEWEST) * old + _NEWEST * max(0.0, late)
        self._late_s = max(old, new) if at_least else new
        self._late_at = now


def size_of(hints: RequestHints) -> float:
    """How much there is to read in a request, at most."""
    return float(min(len(hints.body), _MOST_BYTES)) if hints.reads else 0.0
