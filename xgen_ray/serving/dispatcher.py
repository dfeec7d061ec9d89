"""The router's choice of an engine, from its copy of the routing table and what it has under way."""

import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from xgen_ray.errors import EngineFailed, InvalidRequest, ModelNotFound, NotReady
from xgen_ray.placement.types import Backend
from xgen_ray.schema import NO_HINTS, Endpoint, Outcome, Phase, PoolInfo, RequestHints, ServedModel
from xgen_ray.serving.metrics.rows import Sample
from xgen_ray.serving.metrics.samples import router_samples
from xgen_ray.serving.routing import Balancer
from xgen_ray.serving.table import Route, RoutedEngine, RoutingTable
from xgen_ray.serving.traffic import RouterReport, Stream, Traffic, served_as

LISTED_PHASES = frozenset({Phase.RESOLVING, Phase.LOADING, Phase.READY, Phase.RECOVERING, Phase.SLEEPING})
_BACKENDS = frozenset(backend.value for backend in Backend)
_NO_ROOM = frozenset({Outcome.FULL, Outcome.NOT_READY})


@dataclass(slots=True)
class _Word:
    """What somebody else is to be told: a set that grows until it is fetched."""

    names: set[str] = field(default_factory=set)
    some: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, name: str) -> None:
        self.names.add(name)
        self.some.set()

    async def fetch(self) -> frozenset[str]:
        await self.some.wait()
        self.some.clear()
        names = frozenset(self.names)
        self.names.clear()
        return names


class TableDispatcher:
    """Chooses engines by the newest table it was given. Waits while a model loads, never for ever.

    Of several engines its ``Balancer`` takes one; this class brings it the table and the time.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._table = RoutingTable()
        self._served: tuple[ServedModel, ...] = ()
        self._changed = asyncio.Event()
        self._balancer = Balancer(rng=rng)
        self._used: dict[str, float] = {}
        # What control knows each engine's model by.
        self._wishes: dict[str, str] = {}
        self._traffic = Traffic()
        self._doubted = _Word()
        self._woken = _Word()

    @property
    def stamp(self) -> tuple[str, int]:
        return self._table.stamp

    def apply(self, table: RoutingTable) -> None:
        """Replaces the table and wakes who waits for a change."""
        self._table = table
        self._served = tuple(
            route.model for route in table.routes.values() if route.listed and route.phase in LISTED_PHASES
        )
        self._used = {name: used for name, used in self._used.items() if name in table.routes}
        self._wishes = {
            engine.replica_id: engine.wish or name
            for name, route in table.routes.items()
            for engine in route.engines
            if route.listed
        }
        self._traffic.know(
            {
                engine.replica_id: _stream(engine, name)
                for name, route in table.routes.items()
                for engine in route.engines
                if route.listed
            }
        )
        now = time.monotonic()
        engines = {name: route.engines for name, route in table.routes.items()}
        self._balancer.know(engines, now, reports_lag_s=now - time.time())
        self._changed.set()
        self._changed = asyncio.Event()

    async def informed(self, deadline_s: float) -> None:
        """Waits for the first table: until then, a model that is not in it may well be served."""
        until = time.monotonic() + deadline_s
        while self._table.stamp == RoutingTable().stamp:
            left = until - time.monotonic()
            if left <= 0:
                raise NotReady(
                    "this router has just started: control has not told it yet which models there are"
                )
            await _wait(self._changed, left)

    def served(self) -> tuple[ServedModel, ...]:
        return self._served

    def report(self) -> RouterReport:
        """What control is to know of this router."""
        told = self._traffic.report(
            self._last_used(),
            [_stream(engine, "") for engine in self._balancer.at_work()],
            {served_as(name) for name in self._table.routes},
            time.monotonic(),
        )
        return replace(told, paces=self._balancer.paces())

    def samples(self) -> Iterator[Sample]:
        """What this router adds to the metrics, once every time. For one caller."""
        return router_samples(self.report(), self._traffic.fresh())

    def _last_used(self) -> Mapping[str, float]:
        """When each model, or pool of it, was last asked or last answered here, in Unix seconds: now, while
        it answers.
        """
        now = time.time()
        busy = {wish for replica_id, wish in self._wishes.items() if self._balancer.under_way(replica_id)}
        return {name: now if name in busy else used for name, used in self._used.items()}

    async def choose(
        self, model: str, *, deadline_s: float, avoid: frozenset[str], hints: RequestHints = NO_HINTS
    ) -> Endpoint:
        """A live engine of ``model``, not one of ``avoid``.

        Raises ModelNotFound at once, InvalidRequest for a pool or a backend that the model has not,
        EngineFailed for a model that failed to load, NotReady when ``deadline_s`` passed without an engine.
        """
        until = time.monotonic() + deadline_s
        while True:
            route = self._route(model)
            if hints.pool is not None:
                _check_pool(model, route, hints.pool)
            if choice := self._balancer.choose(model, hints, avoid, time.monotonic()):
                one = choice.engine
                self._used[one.wish or model] = time.time()
                return Endpoint(
                    one.url,
                    one.key,
                    one.replica_id,
                    model,
                    one.backend,
                    pool=one.pool,
                    ticket=choice.ticket,
                    why=choice.why.value,
                )
            self._used[model] = time.time()
            self._wake(model, route, hints.pool)
            left = until - time.monotonic()
            if left <= 0:
                raise NotReady(f"{model} is {route.phase.value} and has no engine for this request yet")
            with self._traffic.waiting(model):
                await _wait(self._changed, left)

    def answering(self, endpoint: Endpoint) -> None:
        """Told at the first byte of the answer."""
        self._balancer.answering(endpoint.ticket, time.monotonic())

    def finished(self, endpoint: Endpoint, outcome: Outcome, *, units: int = 0) -> None:
        """Told once for every endpoint chosen."""
        self._used[self._wishes.get(endpoint.replica_id, endpoint.model)] = time.time()
        now, ok = time.monotonic(), outcome.well
        request = self._balancer.finished(endpoint.ticket, now, ok=ok, full=outcome in _NO_ROOM, units=units)
        if request is not None:
            self._traffic.ended(
                endpoint,
                outcome,
                started=request.started,
                first=request.first,
                now=now,
                streamed=request.hints.streamed,
                units=units,
            )
        if not ok:
            self._doubted.add(endpoint.replica_id)

    def unserved(self, model: str, outcome: Outcome) -> None:
        """A request got no engine: it is refused, or its client has left."""
        if model in self._table.routes or self._of_backend(model) is not None:
            self._traffic.unserved(model, outcome, time.monotonic())

    async def doubted(self) -> frozenset[str]:
        """The replicas that have failed a request since the last call, once there is one. For one caller."""
        return await self._doubted.fetch()

    async def woken(self) -> frozenset[str]:
        """The sleeping models that requests have waited for since the last call, once there is one. For one
        caller.
        """
        return await self._woken.fetch()

    def _wake(self, model: str, route: Route, pool: str | None) -> None:
        """One pool may sleep while the others serve; it has a name of its own, empty for the one without."""
        if pool is None:
            if route.wakes:
                self._woken.add(model)
            return
        for info in route.model.pools:
            if info.phase == Phase.SLEEPING and (info.name == pool or _may_be_called(info, pool)):
                self._woken.add(f"{served_as(model)}@{info.name}")

    def _of_backend(self, model: str) -> Route | None:
        """The name's route, where ``model`` is a name and a backend."""
        name, _, backend = model.partition("@")
        return self._table.routes.get(name) if backend in _BACKENDS else None

    def _route(self, model: str) -> Route:
        route = self._table.routes.get(model)
        if route is None and (of_name := self._of_backend(model)) is not None:
            route = _undecided(model, of_name)
        if route is None or route.phase is Phase.UNLOADING:
            names = ", ".join(sorted(served.name for served in self.served())) or "none"
            raise ModelNotFound(f"the model {model!r} does not exist; models served here: {names}")
        if route.phase is Phase.FAILED and route.will_retry:
            # Not the end: its nodes may come back, and so may the client.
            raise NotReady(f"{model} is not served at the moment, and is tried again: {route.reason}")
        if route.phase is Phase.FAILED:
            raise EngineFailed(f"{model} failed to load: {route.reason}")
        return route


def _undecided(model: str, route: Route) -> Route:
    """The route to a backend that no pool of the name is known to have. Raises InvalidRequest where none may
    come to have it.
    """
    if route.phase in (Phase.FAILED, Phase.UNLOADING):
        return route
    staying = [info for info in route.model.pools if info.phase != Phase.UNLOADING]
    phases = {info.phase for info in staying if not info.backends}
    if not phases:
        name, _, backend = model.partition("@")
        engines = ", ".join(sorted({one for info in staying for one in info.backends})) or "none"
        raise InvalidRequest(
            f"{name!r} has no engine by {backend}; its engines: {engines}. Ask for one of these, "
            f"or for {name!r} alone.",
            "model",
        )
    return replace(route, engines=(), wakes=Phase.SLEEPING in phases)


def _may_be_called(info: PoolInfo, pool: str) -> bool:
    """A pool without a name is called by its backend, which is open while it sleeps or has no place."""
    return not info.name and (pool in info.backends or (not info.backends and pool in _BACKENDS))


def _check_pool(model: str, route: Route, pool: str) -> None:
    """Raises InvalidRequest for a pool that the model does not have. One without engines is waited for."""
    pools = {engine.pool for engine in route.engines if engine.pool}
    if pool in pools:
        return
    for info in route.model.pools:
        if _may_be_called(info, pool):
            return
        pools.update((info.name,) if info.name else info.backends)
    # A model of which nothing is known yet may get that pool.
    if pools and pool not in pools:
        raise InvalidRequest(
            f"{model!r} has no pool {pool!r}; its pools: {', '.join(sorted(pools))}. Name one of them in "
            "x-xgen-pool, or leave that header out.",
            "x-xgen-pool",
        )


def _stream(engine: RoutedEngine, name: str) -> Stream:
    return Stream(served_as(engine.wish or name), engine.pool, engine.backend)


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
