"""The choice of an engine: the one expected to be done first, unless a session or old figures say another.

Cheap enough for every request: expected times are kept with each engine and renewed when something
happens there, so that a choice only adds and compares.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from xgen_ray.schema import RequestHints
from xgen_ray.serving.routing.affinity import PrefixIndex, blocks_of, rendezvous, seed_of
from xgen_ray.serving.routing.facts import Demand, EngineFacts, UnderWay, size_of
from xgen_ray.serving.routing.rules import Choice, RoutingRules, Why
from xgen_ray.serving.routing.speeds import Ranking, Speed
from xgen_ray.serving.table import RoutedEngine

# How often old figures are looked for, in requests.
_PROBE_EVERY: Final = 8
_SESSION_RELUCTANCE: Final = 4


class _Group:
    """The engines of one name."""

    __slots__ = ("demand", "engines", "refreshed_at")

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.engines: list[EngineFacts] = []
        self.refreshed_at = float("-inf")

    def replicas(self) -> frozenset[str]:
        return frozenset(one.engine.replica_id for one in self.engines)


class Balancer:
    """One router's judgement. ``now`` is any clock that only goes forward, the same in all calls.

    Every ``choose`` that returned a choice is followed by at most one ``answering`` and one ``finished``.
    """

    def __init__(self, rules: RoutingRules | None = None, rng: random.Random | None = None) -> None:
        self._rules = rules or RoutingRules()
        self._rng = rng or random.Random()  # noqa: S311  # spreads load, guards nothing
        self._groups: dict[str, _Group] = {}
        self._facts: dict[str, EngineFacts] = {}
        self._under_way: dict[int, UnderWay] = {}
        self._prefixes = PrefixIndex(self._rules.prefix_entries, self._rules.prefix_life_s)
        # Those with something held against them: nearly always none.
        self._doubtful: set[EngineFacts] = set()
        self._tickets = 0

    def know(
        self, engines: Mapping[str, Sequence[RoutedEngine]], now: float, *, reports_lag_s: float = 0.0
    ) -> None:
        """These are the engines now, by the name that clients ask for. One engine may have several names.

        ``reports_lag_s`` is what to add to the time of a report to have it on the clock of ``now``.
        """
        groups: dict[str, _Group] = {}
        facts: dict[str, EngineFacts] = {}
        for name, routed in engines.items():
            group = groups[name] = _Group(self._demand(name, routed, facts))
            for engine in routed:
                known = facts.get(engine.replica_id) or self._facts.get(engine.replica_id)
                if known is None:
                    known = EngineFacts(engine, group.demand, self._rules, now)
                at = engine.load.at + reports_lag_s if engine.load is not None else now
                known.update(engine, min(at, now), now)
                facts[engine.replica_id] = known
                group.engines.append(known)
            before = self._groups.get(name)
            if before is not None and before.replicas() == group.replicas():
                # Nobody is new, whom the others would have to speak for.
                group.refreshed_at = before.refreshed_at
        for gone in self._facts.keys() - facts.keys():
            self._prefixes.forget(gone)
            self._doubtful.discard(self._facts[gone])
        self._groups, self._facts = groups, facts

    def _demand(self, name: str, routed: Sequence[RoutedEngine], facts: Mapping[str, EngineFacts]) -> Demand:
        """Names that share engines share what is known of their requests."""
        for engine in routed:
            if known := facts.get(engine.replica_id):
                return known.demand
        old = self._groups.get(name)
        return old.demand if old else Demand()

    def under_way(self, replica_id: str) -> int:
        """How many requests of this router the engine has."""
        facts = self._facts.get(replica_id)
        return facts.under_way if facts else 0

    def at_work(self) -> Iterator[RoutedEngine]:
        """The engine of each request that is under way."""
        return (request.facts.engine for request in self._under_way.values())

    def paces(self) -> Mapping[str, float]:
        """How many requests each engine that is measured answers in a second at best, by its replica."""
        found = ((replica_id, facts.pace()) for replica_id, facts in self._facts.items())
        return {replica_id: pace for replica_id, pace in found if pace is not None}

    def choose(self, name: str, hints: RequestHints, avoid: frozenset[str], now: float) -> Choice | None:
        """An engine for a request to ``name``, None if all are in ``avoid`` or in another pool."""
        group = self._groups.get(name)
        if group is None:
            return None
        able = self._able(group.engines, hints.pool, avoid)
        if not able:
            return None
        if len(group.engines) == 1:
            return self._take(able[0], Why.ONLY, group, hints, (), 0.0, now)
        if now - group.refreshed_at > self._rules.refresh_s:
            self._refresh(group, now)
        well = [one for one in able if one.health.may_be_asked(now)] if self._doubtful else able
        blocks = blocks_of(hints.body) if hints.generates else ()
        if not well:
            least = min(able, key=lambda one: max(0.0, one.health.blocked_until - now) + one.fixed_s)
            return self._take(least, Why.LEAST_BAD, group, hints, blocks, 0.0, now)
        cached = self._prefixes.cached(blocks, now) if blocks else {}
        facts, why = self._best(group, well, hints, cached, now)
        saved = cached.get(facts.engine.replica_id, 0.0)
        return self._take(facts, why, group, hints, blocks, saved, now)

    def answering(self, ticket: int, now: float) -> None:
        """The first byte of the answer is there."""
        request = self._under_way.get(ticket)
        if request is not None and request.first is None:
            request.facts.answering(request, now)
            request.facts.health.answering(ticket)

    def finished(
        self, ticket: int, now: float, *, ok: bool, full: bool = False, units: int = 0
    ) -> UnderWay | None:
        """The request is over, and returned as it was. ``units`` is what was written of the answer, in events
        or about tokens.

        ``ok`` is False for what is the engine's fault; ``full`` when it only had no room.
        """
        request = self._under_way.pop(ticket, None)
        if request is None:
            return None
        facts, health = request.facts, request.facts.health
        if full:
            health.full(ticket, now)
        elif not ok:
            health.failed(ticket, request.started, now)
        elif request.first is not None:
            health.answered(ticket, request.started)
        else:
            health.undecided(ticket)
        facts.leave(request, now, units, learn=ok and not full)
        if health.well:
            self._doubtful.discard(facts)
        elif facts.engine.replica_id in self._facts:
            self._doubtful.add(facts)
        return request

    def _able(self, engines: list[EngineFacts], pool: str | None, avoid: frozenset[str]) -> list[EngineFacts]:
        if pool is None and not avoid:
            return engines
        return [
            one
            for one in engines
            if one.engine.replica_id not in avoid and (pool is None or one.engine.pool == pool)
        ]

    def _best(
        self,
        group: _Group,
        well: list[EngineFacts],
        hints: RequestHints,
        cached: Mapping[str, float],
        now: float,
    ) -> tuple[EngineFacts, Why]:
        if group.demand.turns % _PROBE_EVERY == 0 and (stale := self._stale(group, well, hints, now)):
            return stale, Why.PROBE
        size = size_of(hints)
        units = group.demand.units if hints.generates else 0.0
        if hints.max_tokens is not None:
            units = min(units, hints.max_tokens)
        scores = [one.fixed_s + one.byte_s * size + one.unit_s * units for one in well]
        if cached:
            for at, one in enumerate(well):
                if saved := cached.get(one.engine.replica_id):
                    scores[at] -= one.byte_s * min(saved, size)
        if hints.session and (kept := self._session(well, scores, seed_of(hints.session), now)):
            return kept, Why.SESSION
        limit = min(scores) * (1 + self._rules.tie)
        near = [one for one, score in zip(well, scores, strict=True) if score <= limit]
        best = self._emptier(near) if len(near) > 1 else near[0]
        return best, Why.PREFIX if best.engine.replica_id in cached else Why.SOONEST

    def _emptier(self, equals: Sequence[EngineFacts]) -> EngineFacts:
        """The emptier of any two: even among equals, no run on one."""
        draw = self._rng.random
        first, second = int(draw() * len(equals)), int(draw() * (len(equals) - 1))
        one, other = equals[first], equals[second + (second >= first)]
        return one if one.fullness < other.fullness else other

    def _stale(
        self, group: _Group, well: Iterable[EngineFacts], hints: RequestHints, now: float
    ) -> EngineFacts | None:
        """The engine that has been passed over for longest, if that is long."""
        # A session's turn costs its cache: it is spent on a probe only where there is nothing else to spend.
        reluctance = _SESSION_RELUCTANCE if hints.session else 1
        turn = group.demand.turns - self._rules.probe_turns * reluctance
        at = now - self._rules.probe_after_s * reluctance
        stale = [one for one in well if one.turn <= turn and one.turn_at <= at and not one.under_way]
        return min(stale, key=lambda one: one.turn_at, default=None)

    def _session(
        self, well: list[EngineFacts], scores: list[float], session: int, now: float
    ) -> EngineFacts | None:
        """The session's favourite among the engines that are neither much slower nor much fuller."""
        patience = min(scores) * self._rules.session_patience
        fit = [one for one, score in zip(well, scores, strict=True) if score <= patience]
        if not fit:
            return None
        mean = (sum(one.load(now) for one in fit) + 1) / sum(one.engine.slots for one in fit)
        for at in rendezvous(session, [one.seed for one in fit]):
            one = fit[at]
            if one.load(now) + 1 <= math.ceil(self._rules.session_bound * mean * one.engine.slots):
                return one
        return None

    def _take(
        self,
        facts: EngineFacts,
        why: Why,
        group: _Group,
        hints: RequestHints,
        blocks: Sequence[int],
        saved: float,
        now: float,
    ) -> Choice:
        self._tickets += 1
        size = size_of(hints)
        group.demand.asked(size if hints.reads else None)
        request = facts.request(self._tickets, hints, max(0.0, size - saved), now)
        self._under_way[request.ticket] = request
        if blocks and facts.engine.caches_prefixes:
            self._prefixes.read(blocks, facts.engine.replica_id, now)
        return Choice(facts.engine, why, request.ticket)

    def _refresh(self, group: _Group, now: float) -> None:
        """What time alone changes, and what new engines are expected to be like."""
        group.refreshed_at = now
        peers = _Peers(group.engines)
        for one in group.engines:
            if one.meter.guessed and (speed := peers.typical(one.engine)):
                one.meter.expect(speed)
            one.refresh(now)


class _Peers:
    """The speeds of those engines that are measured, ranked once for all that are judged by them."""

    __slots__ = ("_rankings",)

    def __init__(self, engines: Iterable[EngineFacts]) -> None:
        speeds: dict[tuple[str, ...], dict[str, Speed]] = {}
        for one in engines:
            if one.meter.measured:
                for circle in _circles(one.engine):
                    speeds.setdefault(circle, {})[one.engine.replica_id] = one.meter.speed
        self._rankings = {circle: Ranking(known) for circle, known in speeds.items()}

    def typical(self, engine: RoutedEngine) -> Speed | None:
        """What is typical of the engine's pool, else of its backend, else of all; None without peers."""
        for circle in _circles(engine):
            ranking = self._rankings.get(circle)
            if ranking and (speed := ranking.typical(without=engine.replica_id)):
                return speed
        return None


def _circles(engine: RoutedEngine) -> tuple[tuple[str, ...], ...]:
    """Whom an engine resembles, the closest first."""
    around = (("backend", engine.backend), ())
    return (("pool", engine.pool), *around) if engine.pool else around
