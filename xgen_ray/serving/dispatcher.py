"""The router's choice of an engine, from its copy of the routing table and what it has under way."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping

from xgen_ray.errors import EngineFailed, ModelNotFound, NotReady
from xgen_ray.schema import Endpoint, Phase, ServedModel
from xgen_ray.serving.table import Route, RoutedEngine, RoutingTable

LISTED_PHASES = frozenset({Phase.RESOLVING, Phase.LOADING, Phase.READY, Phase.RECOVERING})


class TableDispatcher:
    """Chooses engines by the newest table it was given. Waits while a model loads, never for ever.

    Of several engines it takes the one with the fewest requests of this router for its slots, and any of
    those that are equal.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._table = RoutingTable()
        self._changed = asyncio.Event()
        self._under_way: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._doubted: set[str] = set()
        self._doubt = asyncio.Event()
        self._rng = rng or random.Random()  # noqa: S311  # spreads load, guards nothing

    @property
    def stamp(self) -> tuple[str, int]:
        return self._table.stamp

    def apply(self, table: RoutingTable) -> None:
        """Replaces the table and wakes who waits for a change."""
        self._table = table
        self._used = {name: used for name, used in self._used.items() if name in table.routes}
        self._changed.set()
        self._changed = asyncio.Event()

    def served(self) -> tuple[ServedModel, ...]:
        routes = self._table.routes.values()
        return tuple(route.model for route in routes if route.phase in LISTED_PHASES)

    def last_used(self) -> Mapping[str, float]:
        """When each model was last asked or last answered here, in Unix seconds; now, while it answers."""
        now = time.time()
        busy = {
            route.model.name
            for route in self._table.routes.values()
            if any(self._under_way[engine.replica_id] for engine in route.engines)
        }
        return {name: now if name in busy else used for name, used in self._used.items()}

    async def choose(self, model: str, *, deadline_s: float, avoid: frozenset[str]) -> Endpoint:
        """A live engine of ``model``, not one of ``avoid``.

        Raises ModelNotFound at once, EngineFailed for a model that failed to load, NotReady when
        ``deadline_s`` passed without an engine.
        """
        until = time.monotonic() + deadline_s
        while True:
            route = self._route(model)
            self._used[model] = time.time()
            if engine := self._pick(route, avoid):
                self._under_way[engine.replica_id] += 1
                return Endpoint(engine.url, engine.key, engine.replica_id, model, engine.backend)
            left = until - time.monotonic()
            if left <= 0:
                raise NotReady(f"{model} is {route.phase.value} and was not ready within {deadline_s:.0f} s")
            await _wait(self._changed, left)

    def finished(self, endpoint: Endpoint, *, ok: bool) -> None:
        """Told once for every endpoint chosen."""
        self._used[endpoint.model] = time.time()
        self._under_way[endpoint.replica_id] -= 1
        if self._under_way[endpoint.replica_id] <= 0:
            del self._under_way[endpoint.replica_id]
        if not ok:
            self._doubted.add(endpoint.replica_id)
            self._doubt.set()

    async def doubted(self) -> frozenset[str]:
        """The replicas that have failed a request since the last call, once there is one. For one caller."""
        await self._doubt.wait()
        self._doubt.clear()
        found = frozenset(self._doubted)
        self._doubted.clear()
        return found

    def _route(self, model: str) -> Route:
        route = self._table.routes.get(model)
        if route is None or route.phase is Phase.UNLOADING:
            names = ", ".join(sorted(served.name for served in self.served())) or "none"
            raise ModelNotFound(f"the model {model!r} does not exist; models served here: {names}")
        if route.phase is Phase.FAILED:
            raise EngineFailed(f"{model} failed to load: {route.reason}")
        return route

    def _pick(self, route: Route, avoid: frozenset[str]) -> RoutedEngine | None:
        if len(route.engines) == 1:
            only = route.engines[0]
            return None if only.replica_id in avoid else only
        free = [engine for engine in route.engines if engine.replica_id not in avoid]
        if not free:
            return None
        loads = [self._under_way[engine.replica_id] / engine.slots for engine in free]
        least = min(loads)
        return self._rng.choice([engine for engine, load in zip(free, loads, strict=True) if load == least])


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
