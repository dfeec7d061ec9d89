"""What was measured corrects the next bill: upwards at once, downwards with care."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.placement.builders import all_there, dense, h100, node, rtx4090, smollm2, usage
from tests.placement.fleets import view
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import (
    Backend,
    EngineOptions,
    FleetPlan,
    Observation,
    Plan,
    Refusal,
    claims_of,
    model_key,
    observe,
    plan,
    plan_fleet,
)
from xgen_ray.placement.estimates import LEARNED, correction
from xgen_ray.placement.sizes import GIB, MIB

VULKAN = Backend.LLAMA_SERVER_VULKAN


def seen(planned: int, *measured: int, facts: ModelFacts | None = None) -> list[Observation]:
    key = model_key(facts or dense(8))
    return [Observation(key, VULKAN, "gpu", planned, size) for size in measured]


def test_a_models_key_does_not_hang_on_where_it_lies() -> None:
    here, there = dense(8), replace(dense(8), path="/elsewhere/x.gguf", files=())
    assert model_key(here) == model_key(there)
    assert model_key(dense(8)) != model_key(dense(8, 8))
    nameless = replace(here, name=None, path="/a/model.gguf")
    assert model_key(nameless) == model_key(replace(nameless, path="/b/model.gguf"))


@pytest.mark.parametrize(
    ("measured", "factor"),
    [
        ((12,), 1.2 * 1.05),
        ((8, 8, 12, 8), 1.2 * 1.05),
        ((10,), None),
        ((8,), None),
        ((8, 8), None),
        ((8, 8, 8), (1 + 0.8 * 1.05) / 2),
        ((6, 9, 6), (1 + 0.9 * 1.05) / 2),
        ((9.8, 9.8, 9.8), None),
        # A start that took too much is forgotten once eight later ones did not.
        ((12, *(8,) * 8), (1 + 0.8 * 1.05) / 2),
    ],
)
def test_one_start_raises_the_bill_and_several_lower_it(
    measured: tuple[float, ...], factor: float | None
) -> None:
    learned = correction(dense(8), VULKAN, "gpu", seen(10 * GIB, *(int(size * GIB) for size in measured)))
    assert (None if learned is None else learned.factor) == (
        None if factor is None else pytest.approx(factor)
    )


def test_only_the_same_model_backend_and_memory_teach() -> None:
    taught = seen(GIB, 2 * GIB)
    assert correction(dense(8), VULKAN, "gpu", taught) is not None
    assert correction(dense(32), VULKAN, "gpu", taught) is None
    assert correction(dense(8), Backend.LLAMA_SERVER_CUDA, "gpu", taught) is None
    assert correction(dense(8), VULKAN, "ram", taught) is None


@settings(max_examples=100)
@given(st.lists(st.integers(1, 64 * GIB), min_size=1, max_size=12), st.integers(GIB, 64 * GIB))
def test_a_corrected_bill_is_never_below_what_was_measured(measured: list[int], planned: int) -> None:
    learned = correction(dense(8), VULKAN, "gpu", seen(planned, *measured))
    expected = planned * (1.0 if learned is None else learned.factor)
    assert expected >= max(measured[-8:]) * (1 - 1e-9)
    if learned is not None:
        assert expected >= max(measured[-8:]) * 1.05 * (1 - 1e-9)


def placed(facts: ModelFacts, observations: list[Observation], free: int = 22 * GIB) -> Plan | Refusal:
    snapshot = node(rtx4090())
    options = EngineOptions(context=8192, slots=2, gpus=(0,), backend=VULKAN)
    return plan(
        facts,
        options,
        snapshot,
        all_there(snapshot),
        usage=usage(snapshot, [free]),
        observations=observations,
    )


def test_the_correction_is_a_line_of_the_bill_and_of_the_claim() -> None:
    plain = placed(dense(8), [])
    assert isinstance(plain, Plan)
    planned = plain.footprint.gpu_bytes
    more = placed(dense(8), [observe(plain, "gpu", int(planned * 1.3))])
    assert isinstance(more, Plan)
    (line,) = [item for item in more.footprint.items if item.name == LEARNED]
    assert line.on_gpu
    assert line.size_bytes == pytest.approx(planned * (1.3 * 1.05 - 1), abs=2)
    assert "took" in line.detail
    assert "GiB was planned" in line.detail
    assert claims_of(more)[0].size_bytes == more.footprint.gpu_bytes
    less = placed(dense(8), [observe(plain, "gpu", planned // 2)] * 3)
    assert isinstance(less, Plan)
    assert planned * 0.7 < less.footprint.gpu_bytes < planned


def test_what_was_learned_decides_whether_it_fits() -> None:
    plain = placed(dense(8), [])
    assert isinstance(plain, Plan)
    planned = plain.footprint.gpu_bytes
    free = planned + 100 * MIB
    assert isinstance(placed(dense(8), [], free), Plan)
    assert isinstance(placed(dense(8), [observe(plain, "gpu", int(planned * 1.3))], free), Refusal)


def test_an_observation_of_a_corrected_plan_is_of_the_plain_bill() -> None:
    """Else the correction would undo itself at the next start."""
    plain = placed(dense(8), [])
    assert isinstance(plain, Plan)
    first = observe(plain, "gpu", int(plain.footprint.gpu_bytes * 1.3))
    corrected = placed(dense(8), [first])
    assert isinstance(corrected, Plan)
    again = observe(corrected, "gpu", first.measured_bytes)
    assert again == first
    third = placed(dense(8), [first, again])
    assert isinstance(third, Plan)
    assert third.footprint == corrected.footprint


def test_vllm_that_takes_more_than_its_share_is_given_a_smaller_one() -> None:
    facts = dense(8, 16, model_format=ModelFormat.SAFETENSORS)
    snapshot = node(h100())
    now = usage(snapshot, [79 * GIB])

    def again(observations: list[Observation]) -> Plan:
        made = plan(
            facts, EngineOptions(), snapshot, all_there(snapshot), usage=now, observations=observations
        )
        assert isinstance(made, Plan)
        return made

    plain = again([])
    assert plain.options.gpu_memory_utilization == 0.9
    share = claims_of(plain)[0].size_bytes
    taught = again([observe(plain, "gpu", int(share * 1.1))])
    assert taught.options.gpu_memory_utilization == 0.85
    assert share < claims_of(taught)[0].size_bytes <= 79 * GIB
    # It takes its share whatever happens, so less than that teaches nothing.
    assert again([observe(plain, "gpu", share // 2)] * 5) == plain


def test_the_fleet_learns_too() -> None:
    facts, box = dense(8), view("gpu-1", rtx4090())
    plain = plan_fleet(facts, EngineOptions(), [box])
    assert isinstance(plain, FleetPlan)
    first = plain.assignments[0].plan
    taught = [observe(first, "gpu", first.footprint.gpu_bytes * 3 // 2), observe(first, "ram", 2 * GIB)]
    made = plan_fleet(facts, EngineOptions(), [box], observations=taught)
    assert isinstance(made, FleetPlan)
    lines = [item for item in made.assignments[0].plan.footprint.items if item.name == LEARNED]
    assert [item.on_gpu for item in lines] == [True, False]


def test_no_observation_changes_nothing() -> None:
    assert placed(smollm2(), []) == placed(smollm2(), seen(GIB, 2 * GIB, facts=dense(70)))
