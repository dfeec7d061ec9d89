"""How fast a model is on each kind of place, what that costs, and how figures age."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.placement.builders import rx7900xtx
from tests.serving.lease_builders import cpu_plan, gpu_plan
from xgen_ray.placement import Backend
from xgen_ray.placement.sizes import GIB
from xgen_ray.serving.pace import FADE_S, KEPT_S, Pace, Place, best, cost_of, heard, place_of

HERE = Place("m", Backend.LLAMA_SERVER_CPU, "cpu")
THERE = Place("m", Backend.VLLM_CUDA, "sm_90")


def test_a_place_is_named_as_tags_name_devices() -> None:
    one, other = rx7900xtx(0), rx7900xtx(1)
    assert place_of("m", cpu_plan(GIB)).device == "cpu"
    assert place_of("m", gpu_plan((one, GIB))).device == "gfx1100"
    assert place_of("m", gpu_plan((one, GIB), (other, GIB))).device == "2 x gfx1100"


@pytest.mark.parametrize(
    ("costs", "one", "two"),
    [
        ({}, 1.0, 2.0),
        ({"amd_rdna": 3.0}, 3.0, 6.0),
        ({"amd_rdna": 3.0, "gfx1100": 2.0}, 2.0, 4.0),
        ({"nvidia": 9.0, "cpu": 0.5}, 1.0, 2.0),
    ],
)
def test_the_most_telling_name_of_a_device_has_its_cost(
    costs: dict[str, float], one: float, two: float
) -> None:
    assert cost_of(gpu_plan((rx7900xtx(0), GIB)), costs) == one
    assert cost_of(gpu_plan((rx7900xtx(0), GIB), (rx7900xtx(1), GIB)), costs) == two
    assert cost_of(cpu_plan(GIB), costs) == costs.get("cpu", 1.0)


def test_newer_figures_take_over_and_old_ones_are_dropped() -> None:
    known = heard({}, {HERE: [1.0, 3.0]}, {HERE: 1.0}, 0.0)
    assert known[HERE] == Pace(2.0, 1.0, 0.0), "the mean of its engines"
    soon = heard(known, {HERE: [10.0]}, {HERE: 1.0}, 1.0)
    assert 2.0 < soon[HERE].requests_s < 2.2
    late = heard(known, {HERE: [10.0]}, {HERE: 1.0}, 10 * FADE_S)
    assert late[HERE].requests_s == pytest.approx(10.0, rel=0.01)
    assert heard(known, {}, {}, KEPT_S + 1.0) == {}


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=8), st.floats(0.0, 1e6))
def test_what_is_known_lies_among_what_was_measured(figures: list[float], step: float) -> None:
    known: dict[Place, Pace] = {}
    for number, figure in enumerate(figures):
        known = dict(heard(known, {HERE: [figure]}, {HERE: 1.0}, number * step))
    assert min(figures) * 0.999 <= known[HERE].requests_s <= max(figures) * 1.001


def test_the_best_place_is_worth_most() -> None:
    known = {HERE: Pace(1.0, 1.0, 0.0), THERE: Pace(30.0, 40.0, 0.0)}
    assert best(known, "m") == known[HERE]
    assert best(known, "other") is None
