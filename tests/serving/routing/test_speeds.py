"""What is learned of an engine's speed, and how soon it is unlearned."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.serving.routing.rules import RoutingRules
from xgen_ray.serving.routing.speeds import UNKNOWN, Ranking, Speed, SpeedMeter

RULES = RoutingRules()


def test_the_cost_of_company_is_found_from_samples_at_different_loads() -> None:
    meter = SpeedMeter(RULES)
    for number in range(64):
        busy = 1 + number % 16
        meter.wrote(0.01 + 0.001 * busy, busy, number * 0.1)
    assert meter.speed.unit_s == pytest.approx(0.01, rel=0.05)
    assert meter.speed.crowd_s == pytest.approx(0.001, rel=0.05)


def test_reading_is_measured_by_bytes() -> None:
    meter = SpeedMeter(RULES)
    for number, size in enumerate((1000, 50_000, 4000)):
        meter.read(size, size * 3e-6, number)
    assert meter.speed.byte_s == pytest.approx(3e-6)


def test_an_engine_that_becomes_slow_is_known_as_slow_within_some_tens_of_requests() -> None:
    meter = SpeedMeter(RULES)
    for number in range(500):
        meter.wrote(0.01, 4, number * 0.01)
    for number in range(60):
        meter.wrote(0.1, 4, 5 + number * 0.01)
    assert meter.speed.per_unit(4) > 0.05


def test_one_wild_sample_does_not_ruin_an_estimate() -> None:
    """A client that reads slowly makes the engine look slow."""
    meter = SpeedMeter(RULES)
    for number in range(20):
        meter.wrote(0.01, 2, number)
    meter.wrote(30.0, 2, 21)
    assert meter.speed.per_unit(2) < 0.015


def test_a_new_engine_is_expected_to_be_like_its_peers_until_it_has_shown_itself() -> None:
    meter = SpeedMeter(RULES)
    peers = Speed(1e-6, 0.002, 0.0001)
    meter.expect(peers)
    assert meter.speed == peers
    assert meter.guessed
    for number in range(3):
        meter.wrote(0.05, 1, number)
        meter.read(1000, 0.01, number)
    assert meter.speed.per_unit(1) == pytest.approx(0.05)
    assert meter.speed.byte_s == pytest.approx(1e-5)
    assert meter.measured
    assert not meter.guessed


def test_old_samples_stay_when_no_new_ones_come_and_go_when_they_do() -> None:
    meter = SpeedMeter(RULES)
    for number in range(20):
        meter.wrote(0.01, 1, number)
    meter.expect(UNKNOWN)
    assert meter.speed.per_unit(1) == pytest.approx(0.01)
    meter.wrote(0.03, 1, 3600)
    assert meter.speed.per_unit(1) == pytest.approx(0.03, rel=0.01)


def test_what_is_typical_is_the_middle_of_the_others() -> None:
    ranking = Ranking(
        {name: Speed(1e-6, unit, 0.0) for name, unit in (("a", 0.1), ("b", 0.001), ("c", 0.01))}
    )
    middles = [ranking.typical(without=name) for name in ("a", "b", "c", "nobody")]
    assert [speed and speed.unit_s for speed in middles] == [0.001, 0.01, 0.001, 0.01]


def test_an_engine_without_others_has_nothing_typical() -> None:
    alone = Ranking({"a": UNKNOWN})
    assert (alone.typical(without="a"), alone.typical(without="b")) == (None, UNKNOWN)


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(0, 8))
def test_an_engine_is_left_out_as_if_it_had_never_been_ranked(units: list[int], left_out: int) -> None:
    speeds = {str(number): Speed(number, unit, 0.0) for number, unit in enumerate(units)}
    others = {name: speed for name, speed in speeds.items() if name != str(left_out)}
    found = Ranking(speeds).typical(without=str(left_out))
    assert found == Ranking(others).typical(without="nobody")


SAMPLES = st.lists(
    st.tuples(st.floats(0.0, 10.0), st.floats(1.0, 256.0), st.floats(0.0, 100_000.0)), min_size=1, max_size=60
)


@settings(max_examples=60)
@given(SAMPLES)
def test_no_samples_make_an_engine_faster_in_company_or_free_of_cost(
    samples: list[tuple[float, float, float]],
) -> None:
    meter = SpeedMeter(RULES)
    now = 0.0
    for unit_s, busy, gap in samples:
        now += gap
        meter.wrote(unit_s, busy, now)
        if gap < 500:
            meter.read(busy * 100, unit_s, now)
    speed = meter.speed
    assert speed.byte_s > 0
    assert speed.unit_s >= 0
    assert speed.crowd_s >= 0
    assert 0 < speed.per_unit(1) <= speed.per_unit(64) * (1 + 1e-9)
