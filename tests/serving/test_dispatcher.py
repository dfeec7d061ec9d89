"""The router's choice: waiting, refusing, and going past replicas that just failed."""

import asyncio

import pytest
from ray.serve.exceptions import RayServeException

from xgen_ray.errors import EngineFailed, ModelNotFound, NotReady
from xgen_ray.schema import Phase, ServedModel
from xgen_ray.serving.dispatcher import Choice, TableDispatcher
from xgen_ray.serving.table import Route, RoutingTable


class Pools:
    """Replicas by pool, as Serve would know them; an empty pool blocks, as Serve's choice does."""

    def __init__(self, **replicas: list[str]) -> None:
        self.replicas = replicas
        self.asked = 0

    async def __call__(self, pool: str) -> Choice:
        self.asked += 1
        if pool not in self.replicas:
            raise RayServeException(f"{pool} was deleted")
        if not self.replicas[pool]:
            await asyncio.Event().wait()
        names = self.replicas[pool]
        name = names[self.asked % len(names)]
        return Choice(name, f"http://127.0.0.1/{name}", "key")


def table(version: int = 1, **phases: Phase) -> RoutingTable:
    serving = (Phase.READY, Phase.RECOVERING)
    routes = {
        name: Route(
            ServedModel(name, 1, "generate", phase is Phase.READY, "llama-server-cpu", 2048),
            phase,
            "out of memory" if phase is Phase.FAILED else "",
            name if phase in serving else None,
        )
        for name, phase in phases.items()
    }
    return RoutingTable("life", version, routes)


def dispatcher(pools: Pools, first: RoutingTable) -> TableDispatcher:
    made = TableDispatcher(pools)
    made.apply(first)
    return made


async def choose(router: TableDispatcher, model: str = "a", wait: float = 1.0, *avoid: str) -> str:
    endpoint = await router.choose(model, deadline_s=wait, avoid=frozenset(avoid))
    return endpoint.replica_id


async def test_a_ready_model_is_served_at_once() -> None:
    router = dispatcher(Pools(a=["r1"]), table(a=Phase.READY))
    endpoint = await router.choose("a", deadline_s=1, avoid=frozenset())
    assert (endpoint.url, endpoint.key, endpoint.backend) == (
        "http://127.0.0.1/r1",
        "key",
        "llama-server-cpu",
    )


async def test_an_unknown_model_is_refused_with_the_names_that_exist() -> None:
    router = dispatcher(Pools(), table(a=Phase.READY, b=Phase.LOADING, c=Phase.FAILED))
    with pytest.raises(ModelNotFound, match=r"a, b$"):
        await choose(router, "nobody")


async def test_a_failed_model_says_why() -> None:
    router = dispatcher(Pools(), table(a=Phase.FAILED))
    with pytest.raises(EngineFailed, match="out of memory"):
        await choose(router)


async def test_a_request_waits_while_the_model_loads() -> None:
    router = dispatcher(Pools(a=["r1"]), table(1, a=Phase.LOADING))
    waiting = asyncio.create_task(choose(router, wait=5))
    await asyncio.sleep(0)
    assert not waiting.done()
    router.apply(table(2, a=Phase.READY))
    assert await waiting == "r1"


async def test_a_request_that_waits_learns_of_the_failure() -> None:
    router = dispatcher(Pools(a=[]), table(1, a=Phase.LOADING))
    waiting = asyncio.create_task(choose(router, wait=5))
    await asyncio.sleep(0)
    router.apply(table(2, a=Phase.FAILED))
    with pytest.raises(EngineFailed):
        await waiting


async def test_a_request_that_waits_for_a_replica_learns_of_the_unload() -> None:
    router = dispatcher(Pools(a=[]), table(1, a=Phase.RECOVERING))
    waiting = asyncio.create_task(choose(router, wait=30))
    await asyncio.sleep(0)
    router.apply(RoutingTable("life", 2, {}))
    with pytest.raises(ModelNotFound):
        await asyncio.wait_for(waiting, 10)


async def test_the_deadline_ends_the_wait() -> None:
    loading = dispatcher(Pools(), table(a=Phase.LOADING))
    with pytest.raises(NotReady):
        await choose(loading, wait=0.05)
    empty = dispatcher(Pools(a=[]), table(a=Phase.RECOVERING))
    with pytest.raises(NotReady):
        await choose(empty, wait=0.05)


async def test_another_replica_is_taken_than_those_to_avoid() -> None:
    router = dispatcher(Pools(a=["bad", "good"]), table(a=Phase.READY))
    assert {await choose(router, "a", 1.0, "bad") for _ in range(4)} == {"good"}


async def test_the_successor_of_the_only_replica_is_waited_for() -> None:
    pools = Pools(a=["dead"])
    router = dispatcher(pools, table(a=Phase.READY))
    waiting = asyncio.create_task(choose(router, "a", 5.0, "dead"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    pools.replicas["a"] = ["fresh"]
    assert await waiting == "fresh"


async def test_a_pool_that_is_gone_from_serve_is_waited_for_until_the_table_says_more() -> None:
    router = dispatcher(Pools(), table(1, a=Phase.READY))
    waiting = asyncio.create_task(choose(router, wait=5))
    await asyncio.sleep(0.1)
    router.apply(RoutingTable("life", 2, {}))
    with pytest.raises(ModelNotFound):
        await waiting


def test_models_that_can_be_asked_for_are_listed() -> None:
    router = TableDispatcher(Pools())
    router.apply(table(1, **{phase.value: phase for phase in Phase}))
    assert {model.name for model in router.served()} == {"resolving", "loading", "ready", "recovering"}
