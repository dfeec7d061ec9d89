"""The fleet's last hour, from routers that report twice, restart, forget and fall silent."""

from collections.abc import Mapping

import pytest

from xgen_ray.schema import Outcome
from xgen_ray.serving.history import SILENCE_S, History, quantile
from xgen_ray.serving.traffic import (
    BETWEEN_BOUNDS_S,
    FIRST_BOUNDS_S,
    OUTCOMES,
    RouterReport,
    Stream,
    Times,
    Totals,
)

STARTED = 1000.0


def times(bounds: tuple[float, ...], seconds: float, count: int) -> Times:
    counts = [0] * (len(bounds) + 1)
    counts[next(at for at, bound in enumerate((*bounds, 1e9)) if seconds <= bound)] = count
    return Times(tuple(counts), seconds * count)


def totals(model: str, ok: int, failed: int = 0, *, in_flight: int = 0, backend: str = "x") -> Totals:
    ended = {Outcome.OK: ok, Outcome.FAILED: failed}
    return Totals(
        Stream(model, "p", backend),
        tuple(ended.get(outcome, 0) for outcome in OUTCOMES),
        ok * 10,
        times(FIRST_BOUNDS_S, 0.3, ok),
        times(BETWEEN_BOUNDS_S, 0.01, ok),
        in_flight,
    )


def report(
    *streams: Totals, router: str = "r", started: float = STARTED + 1, waiting: Mapping[str, int] = {}
) -> RouterReport:
    return RouterReport(router, started, {}, streams, waiting)


def test_a_step_has_what_came_in_it() -> None:
    history = History(STARTED)
    history.hear(report(totals("a", 2)), 1001.0)
    history.hear(report(totals("a", 5, 1)), 1006.0)
    history.hear(report(totals("a", 5, 1)), 1012.0)
    figures = history.figures(0.0, 1015.0)
    assert [(point.at, point.ended, point.tokens) for point in figures.models["a"]] == [
        (1005.0, {Outcome.OK: 2}, 20),
        (1010.0, {Outcome.OK: 3, Outcome.FAILED: 1}, 30),
    ]
    assert figures.models["a"][0].first_p50_s == pytest.approx(0.3, abs=0.1)
    assert figures.models["a"][0].between_p95_s == pytest.approx(0.01, abs=0.003)
    assert [point.at for point in history.figures(1005.0, 1015.0).fleet] == [1010.0]
    assert [point.at for point in history.figures(0.0, 1009.9).fleet] == [1005.0], "only what is over"


def test_the_same_word_twice_counts_once() -> None:
    history = History(STARTED)
    for at in (1001.0, 1002.0, 1007.0):
        history.hear(report(totals("a", 2)), at)
    (stream,) = history.figures(0.0, 1020.0).streams
    assert (stream.ended, stream.tokens) == ({Outcome.OK: 2}, 20)


def test_a_router_that_starts_again_adds_to_what_was() -> None:
    history = History(STARTED)
    history.hear(report(totals("a", 5)), 1001.0)
    history.hear(report(totals("a", 2), router="second", started=1002.0), 1003.0)
    (stream,) = history.figures(0.0, 1020.0).streams
    assert stream.ended == {Outcome.OK: 7}


def test_what_a_router_did_before_control_started_is_no_news() -> None:
    history = History(STARTED)
    history.hear(report(totals("a", 1000), started=1.0), 1001.0)
    history.hear(report(totals("a", 1003), totals("b", 2), started=1.0), 1002.0)
    assert {stream.model: stream.ended for stream in history.figures(0.0, 1020.0).streams} == {
        "a": {Outcome.OK: 3},
        "b": {Outcome.OK: 2},
    }


def test_totals_that_were_forgotten_in_between_begin_anew() -> None:
    history = History(STARTED)
    history.hear(report(totals("a", 5)), 1001.0)
    history.hear(report(totals("a", 2)), 1002.0)
    (stream,) = history.figures(0.0, 1020.0).streams
    assert stream.ended == {Outcome.OK: 7}


def test_the_fleet_is_the_sum_of_its_models_and_routers() -> None:
    history = History(STARTED)
    history.hear(report(totals("a", 1, in_flight=2), waiting={"b": 3}), 1001.0)
    history.hear(report(totals("a", 1), totals("b", 1, in_flight=1), router="second"), 1002.0)
    figures = history.figures(0.0, 1005.0)
    (point,) = figures.fleet
    assert (point.ended, point.in_flight, point.waiting) == ({Outcome.OK: 3}, 3, 3)
    assert {model: points[0].in_flight for model, points in figures.models.items()} == {"a": 2, "b": 1}


def test_requests_under_way_fill_the_steps_in_which_none_ends() -> None:
    history = History(STARTED)
    for at in (1001.0, 1006.0):
        history.hear(report(totals("a", 1, in_flight=4)), at)
    history.hear(report(totals("a", 1)), 1011.0)
    points = history.figures(0.0, 1020.0).models["a"]
    assert [(point.at, point.in_flight) for point in points] == [(1005.0, 4), (1010.0, 4)]


def test_a_router_that_is_silent_for_long_has_nothing_under_way() -> None:
    history = History(STARTED)
    history.hear(report(totals("a", 0, in_flight=4)), 1001.0)
    history.hear(report(totals("b", 1), router="second"), 1001.0 + SILENCE_S)
    assert [stream.model for stream in history.figures(0.0, 2000.0).streams] == ["b"]


def test_only_the_last_steps_are_kept() -> None:
    history = History(STARTED, step_s=1.0, steps=3)
    for at in range(10):
        history.hear(report(totals("a", at + 1)), STARTED + at)
    assert [point.at for point in history.figures(0.0, 1010.0).fleet] == [1008.0, 1009.0, 1010.0]
    history.hear(report(totals("a", 11)), 1011.5)
    assert [point.at for point in history.figures(0.0, 1013.0).fleet] == [1010.0, 1012.0]


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, (0, 0, 0), None),
        (0.5, (4, 0, 0), 0.5),
        (0.5, (2, 2, 0), 1.0),
        (0.75, (2, 2, 0), 1.5),
        (0.99, (0, 0, 5), 2.0),
    ],
)
def test_a_quantile_is_reckoned_as_prometheus_does(
    share: float, counts: tuple[int, ...], expected: float | None
) -> None:
    assert quantile(share, counts, (1.0, 2.0)) == expected
