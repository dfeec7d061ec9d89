"""The router's choice: waiting, refusing, spreading, and going past engines that just failed."""

import asyncio
import random
import time
from collections import Counter

import pytest

from xgen_ray.errors import EngineFailed, ModelNotFound, NotReady
from xgen_ray.schema import Endpoint, Phase, ServedModel
from xgen_ray.serving.dispatcher import TableDispatcher
from xgen_ray.serving.table import Route, RoutedEngine, RoutingTable


def engine(name: str, slots: int = 4) -> RoutedEngine:
    return RoutedEngine(name, f"http://127.0.0.1/{name}", "key", "llama-server-cpu", slots)


def route(name: str, phase: Phase, *engines: RoutedEngine) -> Route:
    model = ServedModel(name, 1, "generate", phase is Phase.READY, "llama-server-cpu", 2048)
    return Route(model, phase, "out of memory" if phase is Phase.FAILED else "", engines)


def table(version: int = 1, **phases: Phase) -> RoutingTable:
    """Every ready model has the engine r1."""
    routes = {
        name: route(name, phase, *([engine("r1")] if phase is Phase.READY else []))
        for name, phase in phases.items()
    }
    return RoutingTable("life", version, routes)


def with_engines(version: int, *engines: RoutedEngine) -> RoutingTable:
    return RoutingTable("life", version, {"a": route("a", Phase.READY, *engines)})


def dispatcher(first: RoutingTable) -> TableDispatcher:
    made = TableDispatcher(random.Random(1))
    made.apply(first)
    return made


async def choose(router: TableDispatcher, model: str = "a", wait: float = 1.0, *avoid: str) -> Endpoint:
    return await router.choose(model, deadline_s=wait, avoid=frozenset(avoid))


async def test_a_ready_model_is_served_at_once() -> None:
    endpoint = await choose(dispatcher(table(a=Phase.READY)), wait=0.0)
    assert endpoint == Endpoint("http://127.0.0.1/r1", "key", "r1", "a", "llama-server-cpu")


async def test_an_unknown_model_is_refused_with_the_names_that_exist() -> None:
    router = dispatcher(table(a=Phase.READY, b=Phase.LOADING, c=Phase.FAILED))
    with pytest.raises(ModelNotFound, match=r"a, b$"):
        await choose(router, "nobody")


async def test_a_failed_model_says_why() -> None:
    with pytest.raises(EngineFailed, match="out of memory"):
        await choose(dispatcher(table(a=Phase.FAILED)))


async def test_a_request_waits_while_the_model_loads() -> None:
    router = dispatcher(table(1, a=Phase.LOADING))
    waiting = asyncio.create_task(choose(router, wait=5))
    await asyncio.sleep(0)
    assert not waiting.done()
    router.apply(table(2, a=Phase.READY))
    assert (await waiting).replica_id == "r1"


async def test_a_request_that_waits_learns_of_the_failure() -> None:
    router = dispatcher(table(1, a=Phase.LOADING))
    waiting = asyncio.create_task(choose(router, wait=5))
    await asyncio.sleep(0)
    router.apply(table(2, a=Phase.FAILED))
    with pytest.raises(EngineFailed):
        await waiting


async def test_a_request_that_waits_for_an_engine_learns_of_the_unload() -> None:
    router = dispatcher(table(1, a=Phase.RECOVERING))
    waiting = asyncio.create_task(choose(router, wait=30))
    await asyncio.sleep(0)
    router.apply(RoutingTable("life", 2, {}))
    with pytest.raises(ModelNotFound):
        await asyncio.wait_for(waiting, 10)


async def test_the_deadline_ends_the_wait() -> None:
    with pytest.raises(NotReady):
        await choose(dispatcher(table(a=Phase.LOADING)), wait=0.05)
    with pytest.raises(NotReady):
        await choose(dispatcher(with_engines(1, engine("r1"))), "a", 0.05, "r1")


async def test_an_engine_to_avoid_is_not_taken() -> None:
    router = dispatcher(with_engines(1, engine("bad"), engine("good")))
    assert {(await choose(router, "a", 1.0, "bad")).replica_id for _ in range(8)} == {"good"}


async def test_the_successor_of_the_only_engine_is_waited_for() -> None:
    router = dispatcher(with_engines(1, engine("dead")))
    waiting = asyncio.create_task(choose(router, "a", 5.0, "dead"))
    await asyncio.sleep(0)
    assert not waiting.done()
    router.apply(with_engines(2, engine("fresh")))
    assert (await waiting).replica_id == "fresh"


async def test_the_engine_with_most_free_slots_is_taken() -> None:
    router = dispatcher(with_engines(1, engine("small", 1), engine("large", 3)))
    taken = Counter([(await choose(router)).replica_id for _ in range(8)])
    assert taken == {"large": 6, "small": 2}


async def test_equals_share_the_work() -> None:
    router = dispatcher(with_engines(1, engine("r1"), engine("r2")))
    for _ in range(50):
        first, second = await choose(router), await choose(router)
        assert {first.replica_id, second.replica_id} == {"r1", "r2"}
        router.finished(first, ok=True)
        router.finished(second, ok=True)


async def test_use_is_told_and_forgotten_with_the_model() -> None:
    router = dispatcher(table(a=Phase.READY, b=Phase.READY))
    before = time.time()
    endpoint = await choose(router)
    assert list(router.last_used()) == ["a"]
    router.finished(endpoint, ok=True)
    assert router.last_used()["a"] >= before
    router.apply(table(2, b=Phase.READY))
    assert router.last_used() == {}


def test_models_that_can_be_asked_for_are_listed() -> None:
    router = dispatcher(table(1, **{phase.value: phase for phase in Phase}))
    assert {model.name for model in router.served()} == {"resolving", "loading", "ready", "recovering"}
