"""The router's choice: waiting, refusing, spreading, and going past engines that just failed."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from xgen_ray.errors import EngineFailed, InvalidRequest, ModelNotFound, NotReady
from xgen_ray.schema import Endpoint, Outcome, Phase, PoolInfo, RequestHints, ServedModel
from xgen_ray.serving.dispatcher import TableDispatcher
from xgen_ray.serving.table import Route, RoutedEngine, RoutingTable


def engine(name: str, slots: int = 4) -> RoutedEngine:
    return RoutedEngine(name, f"http://127.0.0.1/{name}", "key", "llama-server-cpu", slots)


def route(name: str, phase: Phase, *engines: RoutedEngine) -> Route:
    model = ServedModel(name, 1, "generate", phase is Phase.READY, "llama-server-cpu", 2048)
    reason = "out of memory" if phase is Phase.FAILED else ""
    return Route(model, phase, reason, engines, wakes=phase is Phase.SLEEPING)


def table(version: int = 1, **phases: Phase) -> RoutingTable:
    """Every ready model has an engine, r1 that of a."""
    routes = {
        name: route(
            name, phase, *([engine("r1" if name == "a" else f"{name}-r1")] if phase is Phase.READY else [])
        )
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


async def test_nothing_is_said_of_models_before_the_first_table() -> None:
    router = TableDispatcher()
    with pytest.raises(NotReady, match="control has not told"):
        await router.informed(0.01)
    waiting = asyncio.create_task(router.informed(30))
    await asyncio.sleep(0)
    assert not waiting.done()
    router.apply(RoutingTable("life", 1, {}))
    await asyncio.wait_for(waiting, 10)
    await router.informed(0.0)


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
    with pytest.raises(NotReady, match="a is loading and has no engine for this request yet"):
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
        router.finished(first, Outcome.OK)
        router.finished(second, Outcome.OK)


async def test_use_is_told_and_forgotten_with_the_model() -> None:
    router = dispatcher(table(a=Phase.READY, b=Phase.READY))
    before = time.time()
    endpoint = await choose(router)
    assert list(router.report().used) == ["a"]
    router.finished(endpoint, Outcome.OK)
    assert router.report().used["a"] >= before
    router.apply(table(2, b=Phase.READY))
    assert router.report().used == {}


def test_models_that_can_be_asked_for_are_listed() -> None:
    router = dispatcher(table(1, **{phase.value: phase for phase in Phase}))
    assert {model.name for model in router.served()} == {
        "resolving",
        "loading",
        "ready",
        "recovering",
        "sleeping",
    }


def in_pool(name: str, pool: str) -> RoutedEngine:
    return replace(engine(name), pool=pool)


async def test_a_request_for_a_pool_is_answered_by_that_pool() -> None:
    router = dispatcher(with_engines(1, in_pool("r1", "gpus"), in_pool("r2", "cpus")))
    hints = RequestHints(pool="cpus")
    taken = [await router.choose("a", deadline_s=1, avoid=frozenset(), hints=hints) for _ in range(4)]
    assert {(one.replica_id, one.pool) for one in taken} == {("r2", "cpus")}


async def test_a_pool_that_does_not_exist_is_refused_with_those_that_do() -> None:
    router = dispatcher(with_engines(1, in_pool("r1", "gpus"), in_pool("r2", "cpus")))
    with pytest.raises(InvalidRequest, match="cpus, gpus") as refused:
        await router.choose("a", deadline_s=1, avoid=frozenset(), hints=RequestHints(pool="tpus"))
    assert refused.value.param == "x-xgen-pool"


async def test_a_pool_whose_engine_starts_again_is_waited_for() -> None:
    both = (in_pool("r1", "gpus"), in_pool("r2", "cpus"))
    pools = tuple(PoolInfo(name, ("x",), None, None, None, "ready") for name in ("gpus", "cpus"))
    one_left = with_engines(1, both[0]).routes["a"]
    known = replace(one_left, model=replace(one_left.model, pools=pools))
    router = dispatcher(RoutingTable("life", 1, {"a": known}))
    hints = RequestHints(pool="cpus")
    waiting = asyncio.create_task(router.choose("a", deadline_s=5, avoid=frozenset(), hints=hints))
    await asyncio.sleep(0)
    assert not waiting.done()
    router.apply(with_engines(3, both[0], in_pool("r3", "cpus")))
    assert (await waiting).replica_id == "r3"


async def test_a_sleeping_model_that_is_asked_for_is_told_of_once() -> None:
    router = dispatcher(table(a=Phase.SLEEPING, b=Phase.LOADING))
    told = asyncio.create_task(router.woken())
    waiting = [asyncio.create_task(choose(router, name, wait=5)) for name in ("a", "a", "b")]
    assert await asyncio.wait_for(told, 5) == {"a"}
    router.apply(table(2, a=Phase.READY, b=Phase.READY))
    assert [(await one).model for one in waiting] == ["a", "a", "b"]


async def test_an_engine_that_fails_is_doubted_and_passed_over() -> None:
    router = dispatcher(with_engines(1, engine("bad"), engine("good")))
    while (endpoint := await choose(router)).replica_id != "bad":
        pass
    router.finished(endpoint, Outcome.FAILED)
    assert await router.doubted() == {"bad"}
    assert {(await choose(router)).replica_id for _ in range(3)} == {"good"}


async def test_what_was_answered_teaches_which_engine_is_fast(clock: list[float]) -> None:
    router = dispatcher(with_engines(1, engine("fast", 64), engine("slow", 64)))
    for pause, name, other in ((0.001, "fast", "slow"), (0.06, "slow", "fast")) * 3:
        endpoint = await choose(router, "a", 1.0, other)
        assert endpoint.replica_id == name
        router.answering(endpoint)
        clock[0] += pause
        router.finished(endpoint, Outcome.OK, units=10)
    taken = Counter([(await choose(router)).replica_id for _ in range(10)])
    assert taken["fast"] > taken["slow"]


async def test_a_pool_that_sleeps_beside_one_that_serves_is_woken_by_its_name() -> None:
    pools = (pool("gpus", Phase.READY, "x"), pool("cpus", Phase.SLEEPING))
    router = dispatcher(pooled(Phase.READY, *pools, engines=(in_pool("r1", "gpus"),)))
    told = asyncio.create_task(router.woken())
    hints = RequestHints(pool="cpus")
    with pytest.raises(NotReady):
        await router.choose("a", deadline_s=0.01, avoid=frozenset(), hints=hints)
    assert await asyncio.wait_for(told, 5) == {"a@cpus"}


async def test_what_sleeps_is_told_of_beside_a_pool_that_waits_for_its_node() -> None:
    waits = route("a", Phase.RESOLVING)
    router = dispatcher(RoutingTable("life", 1, {"a": waits}))
    waiting = asyncio.create_task(choose(router, wait=5))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await router.woken()
    router.apply(RoutingTable("life", 2, {"a": replace(waits, wakes=True)}))
    assert await asyncio.wait_for(router.woken(), 5) == {"a"}, "also by a request that waited before"
    router.apply(table(3, a=Phase.READY))
    assert (await waiting).replica_id == "r1"


def pooled(phase: Phase, *pools: PoolInfo, engines: tuple[RoutedEngine, ...] = ()) -> RoutingTable:
    """The name ``a`` over pools."""
    one = route("a", phase, *engines)
    return RoutingTable("life", 1, {"a": replace(one, model=replace(one.model, pools=pools))})


def pool(name: str, phase: Phase, *backends: str) -> PoolInfo:
    return PoolInfo(name, backends, None, None, None, phase.value)


async def test_a_backend_is_waited_for_while_nobody_knows_what_a_pool_will_run_by() -> None:
    router = dispatcher(pooled(Phase.SLEEPING, pool("", Phase.SLEEPING)))
    waiting = asyncio.create_task(choose(router, "a@vllm-cpu", wait=5))
    assert await asyncio.wait_for(router.woken(), 5) == {"a@vllm-cpu"}
    router.apply(pooled(Phase.RESOLVING, pool("", Phase.RESOLVING)))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    of_backend = route("a@vllm-cpu", Phase.READY, engine("r1"))
    routes = {"a": route("a", Phase.READY, engine("r1")), "a@vllm-cpu": of_backend}
    router.apply(RoutingTable("life", 3, routes))
    assert (await waiting).replica_id == "r1"


async def test_a_backend_that_a_model_comes_back_without_is_refused_by_that_name() -> None:
    router = dispatcher(pooled(Phase.SLEEPING, pool("", Phase.SLEEPING)))
    waiting = asyncio.create_task(choose(router, "a@vllm-cpu", wait=5))
    await asyncio.sleep(0)
    router.apply(pooled(Phase.READY, pool("", Phase.READY, "llama-server-cpu"), engines=(engine("r1"),)))
    with pytest.raises(
        InvalidRequest, match="no engine by vllm-cpu; its engines: llama-server-cpu"
    ) as refused:
        await waiting
    assert refused.value.param == "model"


async def test_a_backend_that_a_sleeper_beside_may_have_is_woken() -> None:
    pools = (pool("gguf", Phase.READY, "llama-server-cpu"), pool("other", Phase.SLEEPING))
    router = dispatcher(pooled(Phase.READY, *pools, engines=(engine("r1"),)))
    with pytest.raises(NotReady):
        await choose(router, "a@vllm-cpu", 0.01)
    assert await asyncio.wait_for(router.woken(), 5) == {"a@vllm-cpu"}


async def test_no_backend_of_a_model_that_failed_is_there() -> None:
    with pytest.raises(EngineFailed, match="out of memory"):
        await choose(dispatcher(table(a=Phase.FAILED)), "a@vllm-cpu")
    with pytest.raises(ModelNotFound):
        await choose(dispatcher(table(a=Phase.READY)), "a@no-such-thing")
    with pytest.raises(ModelNotFound):
        await choose(dispatcher(table(a=Phase.READY)), "b@vllm-cpu")


async def test_a_pool_without_a_name_that_sleeps_is_asked_for_by_its_backend() -> None:
    pools = (pool("", Phase.SLEEPING), pool("gpus", Phase.READY, "vllm-cuda"))
    router = dispatcher(pooled(Phase.READY, *pools, engines=(in_pool("r1", "gpus"),)))
    hints = RequestHints(pool="llama-server-cpu")
    waiting = asyncio.create_task(router.choose("a", deadline_s=5, avoid=frozenset(), hints=hints))
    assert await asyncio.wait_for(router.woken(), 5) == {"a@"}
    both = (in_pool("r1", "gpus"), in_pool("r2", "llama-server-cpu"))
    router.apply(pooled(Phase.READY, *pools, engines=both))
    assert (await waiting).replica_id == "r2"
    with pytest.raises(InvalidRequest, match="x-xgen-pool"):
        await router.choose("a", deadline_s=1, avoid=frozenset(), hints=RequestHints(pool="tpus"))


async def test_what_failed_and_is_tried_again_is_worth_coming_back_for() -> None:
    lost = replace(route("a", Phase.FAILED), will_retry=True)
    with pytest.raises(NotReady, match="tried again: out of memory"):
        await choose(dispatcher(RoutingTable("life", 1, {"a": lost})))


async def test_another_name_for_a_model_is_served_and_not_listed() -> None:
    one = replace(engine("r1"), wish="a")
    routes = {"a": route("a", Phase.READY, one), "a@b": replace(route("a@b", Phase.READY, one), listed=False)}
    router = dispatcher(RoutingTable("life", 1, routes))
    assert (await choose(router, "a@b")).replica_id == "r1"
    assert [model.name for model in router.served()] == ["a"]
    assert list(router.report().used) == ["a"], "use counts for what control knows the engine by"


async def test_use_counts_for_the_pool_that_was_used() -> None:
    pools = (replace(engine("r1"), wish="a@x"), replace(engine("r2"), wish="a@y"))
    routes = {
        "a": route("a", Phase.READY, *pools),
        "a@x": replace(route("a@x", Phase.READY, pools[0]), listed=False),
        "a@y": replace(route("a@y", Phase.READY, pools[1]), listed=False),
    }
    router = dispatcher(RoutingTable("life", 1, routes))
    await choose(router, "a@y")
    assert list(router.report().used) == ["a@y"]


async def test_requests_for_a_model_that_sleeps_wait_and_tell_it_once() -> None:
    router = dispatcher(table(a=Phase.SLEEPING))
    waiting = [asyncio.create_task(choose(router, "a", 5)) for _ in range(100)]
    async with asyncio.timeout(2):
        assert await router.woken() == {"a"}
    router.apply(table(2, a=Phase.READY))
    assert {(await one).replica_id for one in waiting} == {"r1"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await router.woken()
