"""What a router counts of its requests, from choice to end."""

import asyncio
import random
from dataclasses import replace

import pytest

from tests.serving.test_dispatcher import choose, engine, route, with_engines
from xgen_ray.errors import NotReady
from xgen_ray.schema import Endpoint, Outcome, Phase, RequestHints
from xgen_ray.serving.dispatcher import TableDispatcher
from xgen_ray.serving.table import RoutingTable
from xgen_ray.serving.traffic import KEPT_S, OUTCOMES, Stream, Totals, Traffic

A = Stream("a", "gpu", "llama-server-cpu")


def dispatcher() -> TableDispatcher:
    made = TableDispatcher(random.Random(1))
    made.apply(with_engines(1, replace(engine("r1"), pool="gpu", wish="a@gpu")))
    return made


def ended(totals: Totals) -> dict[str, int]:
    return {outcome: count for outcome, count in zip(OUTCOMES, totals.ended, strict=True) if count}


def only(router: TableDispatcher) -> Totals:
    (totals,) = router.report().totals
    return totals


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.UNSERVED}))
async def test_every_end_is_counted_where_the_request_went(outcome: Outcome) -> None:
    router = dispatcher()
    endpoint = await choose(router)
    assert (only(router).in_flight, ended(only(router))) == (1, {})
    router.finished(endpoint, outcome)
    totals = only(router)
    assert totals.stream == A
    assert (totals.in_flight, ended(totals)) == (0, {outcome: 1})


async def test_times_are_those_of_the_stream(clock: list[float]) -> None:
    router = dispatcher()
    endpoint = await choose(router)
    clock[0] += 0.3
    router.answering(endpoint)
    clock[0] += 1.0
    router.finished(endpoint, Outcome.OK, units=101)
    totals = only(router)
    assert totals.units == 101
    assert totals.first.counts.index(1) == 3, "0.3 s lies between 0.2 and 0.4"
    assert totals.first.sum_s == pytest.approx(0.3)
    assert totals.between.counts.index(1) == 3, "10 ms lies between 7 and 12"
    assert totals.between.sum_s == pytest.approx(0.01)


async def test_an_answer_that_is_no_stream_has_no_first_token(clock: list[float]) -> None:
    router = dispatcher()
    endpoint = await router.choose("a", deadline_s=1, avoid=frozenset(), hints=RequestHints(streamed=False))
    clock[0] += 1.0
    router.answering(endpoint)
    router.finished(endpoint, Outcome.OK, units=10)
    totals = only(router)
    assert (totals.first.count, totals.between.count, totals.units) == (0, 0, 10)


async def test_requests_that_wait_are_told_by_model() -> None:
    router = dispatcher()
    router.apply(RoutingTable("life", 2, {"b": route("b", Phase.LOADING)}))
    waiting = [asyncio.create_task(choose(router, "b", 30.0)) for _ in range(2)]
    await asyncio.sleep(0)
    assert router.report().waiting == {"b": 2}
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    assert router.report().waiting == {"b": 1}
    router.apply(RoutingTable("life", 3, {"b": route("b", Phase.READY, engine("b1"))}))
    await waiting[1]
    assert router.report().waiting == {}


async def test_a_request_without_an_engine_is_counted_by_its_model_alone() -> None:
    router = dispatcher()
    router.apply(RoutingTable("life", 2, {"b": route("b", Phase.LOADING)}))
    with pytest.raises(NotReady):
        await choose(router, "b", 0.0)
    router.unserved("b", Outcome.UNSERVED)
    router.unserved("b", Outcome.CANCELLED)
    router.unserved("somebody's invention", Outcome.UNSERVED)
    (totals,) = router.report().totals
    assert (totals.stream, ended(totals)) == (Stream("b"), {Outcome.UNSERVED: 1, Outcome.CANCELLED: 1})


def test_what_is_not_served_any_more_is_forgotten_later() -> None:
    traffic = Traffic()
    gone = Endpoint("http://127.0.0.1", "key", "r0", "a@gpu", "llama-server-cpu", "gpu")
    traffic.ended(gone, Outcome.OK, started=1.0, first=None, now=2.0, streamed=True, units=5)
    (totals,) = traffic.report({}, (), (), 3.0).totals
    assert (totals.stream, totals.units) == (A, 5)
    assert traffic.report({}, (A,), (), 2.0 + KEPT_S).totals, "one is still under way"
    assert traffic.report({}, (), {"a"}, 2.0 + KEPT_S).totals, "it is still served"
    assert not traffic.report({}, (), (), 2.0 + KEPT_S).totals
