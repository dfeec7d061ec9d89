"""The router's choice of a replica, from its copy of the routing table and Serve's view of who is alive."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from xgen_ray.errors import EngineFailed, ModelNotFound, NotReady
from xgen_ray.schema import Endpoint, Phase, ServedModel
from xgen_ray.serving.table import Route, RoutingTable

ENGINE_DEPLOYMENT = "Engine"
RETRY_S = 0.05
# Serve's choice waits for a replica as long as it takes; after this long the table is read again.
CHOICE_S = 0.5
LISTED_PHASES = frozenset({Phase.RESOLVING, Phase.LOADING, Phase.READY, Phase.RECOVERING})


@dataclass(frozen=True, slots=True)
class Choice:
    """A replica as Serve's router picked it."""

    replica_id: str
    url: str
    key: str


Chooser = Callable[[str], Awaitable[Choice]]


class TableDispatcher:
    """Chooses replicas by the newest table it was given. Waits while a model loads, never for ever."""

    def __init__(self, choose_in_pool: Chooser) -> None:
        self._choose_in_pool = choose_in_pool
        self._table = RoutingTable()
        self._changed = asyncio.Event()

    @property
    def stamp(self) -> tuple[str, int]:
        return self._table.stamp

    def apply(self, table: RoutingTable) -> None:
        """Replaces the table and wakes who waits for a change."""
        self._table = table
        self._changed.set()
        self._changed = asyncio.Event()

    def served(self) -> tuple[ServedModel, ...]:
        routes = self._table.routes.values()
        return tuple(route.model for route in routes if route.phase in LISTED_PHASES)

    async def choose(self, model: str, *, deadline_s: float, avoid: frozenset[str]) -> Endpoint:
        """A live replica of ``model``, not one of ``avoid``.

        Raises ModelNotFound at once, EngineFailed for a model that failed to load, NotReady when
        ``deadline_s`` passed without a replica.
        """
        until = time.monotonic() + deadline_s
        while True:
            changed = self._changed
            route = self._route(model)
            left = until - time.monotonic()
            if left <= 0:
                raise NotReady(f"{model} is {route.phase.value} and was not ready within {deadline_s:.0f} s")
            if route.pool is None:
                await _wait(changed, left)
                continue
            choice = await self._try(route.pool, min(left, CHOICE_S))
            if choice is not None and choice.replica_id not in avoid:
                backend = route.model.backend or ""
                return Endpoint(choice.url, choice.key, choice.replica_id, model, backend)
            await _wait(changed, min(left, RETRY_S))

    def finished(self, endpoint: Endpoint, *, ok: bool) -> None:
        """Told once for every endpoint chosen."""

    def _route(self, model: str) -> Route:
        route = self._table.routes.get(model)
        if route is None or route.phase is Phase.UNLOADING:
            names = ", ".join(sorted(served.name for served in self.served())) or "none"
            raise ModelNotFound(f"the model {model!r} does not exist; models served here: {names}")
        if route.phase is Phase.FAILED:
            raise EngineFailed(f"{model} failed to load: {route.reason}")
        return route

    async def _try(self, pool: str, seconds: float) -> Choice | None:
        try:
            async with asyncio.timeout(seconds):
                return await self._choose_in_pool(pool)
        except (TimeoutError, DeploymentUnavailableError, RayServeException):
            return None


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return


class ServeChooser:
    """Serve's own choice of a replica, one handle a pool. The reservation is left out: bytes go direct."""

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle[object]] = {}

    async def __call__(self, pool: str) -> Choice:
        handle = self._handles.get(pool)
        if handle is None:
            handle = self._handles[pool] = serve.get_deployment_handle(ENGINE_DEPLOYMENT, pool)
        async with handle.choose.choose_replica(_reserve=False) as selection:
            metadata = selection.replica_metadata
            return Choice(selection.replica_id, metadata["url"], metadata["key"])

    def keep_only(self, pools: frozenset[str]) -> None:
        """Drops the handles of pools that are gone."""
        for pool in self._handles.keys() - pools:
            del self._handles[pool]
