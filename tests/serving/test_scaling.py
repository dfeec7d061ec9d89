"""How many replicas a load asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xgen_ray.schema import LoadRequest, ScaleRequest, Scaling
from xgen_ray.serving.scaling import STEADY, Load, Trend, first_replicas, may_sleep, needed, rescale

RULE = Scaling(min_replicas=1, max_replicas=4, upscale_delay_s=5.0, downscale_delay_s=60.0)


def run(loads: list[tuple[float, int]], rule: Scaling = RULE, wanted: int = 1, slots: int = 4) -> list[int]:
    """What there should be after each of ``(at, ongoing)``."""
    trend, sizes = STEADY, []
    for at, ongoing in loads:
        wanted, trend = rescale(rule, wanted, Load(ongoing, slots), trend, at)
        sizes.append(wanted)
    return sizes


@pytest.mark.parametrize(
    ("ongoing", "replicas"),
    [(0, 1), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (16, 4), (400, 4)],
)
def test_as_many_as_compute_it_at_once(ongoing: int, replicas: int) -> None:
    assert needed(RULE, Load(ongoing, 4)) == replicas


def test_a_target_of_its_own() -> None:
    assert needed(Scaling(max_replicas=8, target_ongoing_requests=1.5), Load(6, 4)) == 4


def test_a_load_that_lasts_grows_it_and_a_spike_does_not() -> None:
    assert run([(0, 9), (4, 9), (5, 9)]) == [1, 1, 3]
    assert run([(0, 9), (4, 1), (5, 9), (9, 9), (10, 9)]) == [1, 1, 1, 1, 3]


def test_it_grows_to_what_is_asked_for_in_the_end() -> None:
    assert run([(0, 5), (3, 16), (5, 9)]) == [1, 1, 3]


def test_it_shrinks_to_the_most_that_was_needed_lately() -> None:
    assert run([(0, 1), (30, 9), (59, 1), (60, 1)], wanted=4) == [4, 4, 4, 3]
    assert run([(0, 1), (30, 16), (60, 1), (119, 1), (120, 1)], wanted=4) == [4, 4, 4, 4, 1]


def test_it_sleeps_only_when_it_may_and_nobody_needs_it() -> None:
    sleeper = Scaling(min_replicas=0, ttl_s=100)
    assert may_sleep(sleeper, Load(0, 4), 100)
    assert not may_sleep(sleeper, Load(0, 4), 99)
    assert not may_sleep(sleeper, Load(1, 4), 1000)
    assert not may_sleep(RULE, Load(0, 4), 1e9)


def test_the_first_start_proves_that_it_works() -> None:
    assert first_replicas(LoadRequest(model="m", scaling=Scaling(min_replicas=0, max_replicas=2))) == 1
    assert first_replicas(LoadRequest(model="m", scaling=Scaling(min_replicas=2, max_replicas=3))) == 2
    assert first_replicas(LoadRequest(model="m", replicas=3)) == 3


@given(
    st.integers(0, 3),
    st.integers(1, 6),
    st.lists(st.tuples(st.floats(0.1, 40), st.integers(0, 100)), max_size=40),
)
def test_it_stays_within_bounds_and_follows_in_the_end(
    low: int, high: int, steps: list[tuple[float, int]]
) -> None:
    rule = Scaling(min_replicas=low, max_replicas=max(low, high))
    at, loads = 0.0, []
    for pause, ongoing in steps:
        at += pause
        loads.append((at, ongoing))
    sizes = run(loads, rule, wanted=max(1, low))
    assert all(max(1, low) <= size <= rule.max_replicas for size in sizes)
    last = steps[-1][1] if steps else 0
    settled = run([(at, last), (at + 61, last)], rule, wanted=sizes[-1] if sizes else 1)
    assert settled[-1] == needed(rule, Load(last, 4))


def test_a_trend_ends_when_the_load_turns() -> None:
    _, trend = rescale(RULE, 2, Load(0, 4), Trend(1, 0.0, 4), 10.0)
    assert (trend.direction, trend.since) == (-1, 10.0)


@pytest.mark.parametrize(
    ("given_as", "words"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas is 3, max_replicas only 2"),
        ({"max_replicas": 0}, "greater than or equal to 1"),
        ({"ttl_s": -1}, "greater than or equal to 0"),
        ({"target_ongoing_requests": 0}, "greater than 0"),
        ({"max": 3}, "Extra inputs"),
    ],
)
def test_rules_that_make_no_sense(given_as: dict[str, float], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Scaling.model_validate(given_as)


def test_a_number_or_a_rule_never_both() -> None:
    with pytest.raises(ValidationError, match="either"):
        LoadRequest(model="m", replicas=2, scaling=Scaling())
    with pytest.raises(ValidationError, match="either"):
        ScaleRequest(name="m", replicas=2, scaling=Scaling())
    with pytest.raises(ValidationError, match="either"):
        ScaleRequest(name="m")


def test_a_request_survives_being_written_down() -> None:
    request = LoadRequest(model="m", scaling=Scaling(min_replicas=0, max_replicas=2))
    assert LoadRequest.model_validate_json(request.model_dump_json()) == request
