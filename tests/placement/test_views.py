"""What changes on a node when a model comes or goes."""

from dataclasses import replace

from tests.placement.builders import h100, host, rtx4090, smollm2, strix_halo
from tests.placement.fleets import view
from xgen_ray.hardware.types import GPUUsage, NodeUsage
from xgen_ray.placement import (
    RAM,
    Claim,
    EngineOptions,
    IdleModel,
    NodeView,
    Outstanding,
    Plan,
    budgets,
    claims_of,
    plan,
)
from xgen_ray.placement.sizes import GIB
from xgen_ray.placement.views import with_plan, without_models


def free(box: NodeView) -> list[int]:
    return [budget.free_bytes for budget in budgets(box.snapshot, box.figures())]


def test_a_model_that_comes_is_outstanding_and_has_its_leases() -> None:
    box = view("a", rtx4090(), free=[20 * GIB])
    made = plan(smollm2(), EngineOptions(), box.snapshot, box.statuses, usage=box.usage)
    assert isinstance(made, Plan)
    after = with_plan(box, made)
    card, ram = claims_of(made)
    assert free(after) == [free(box)[0] - card.size_bytes, free(box)[1] - ram.size_bytes]
    assert (after.taken, after.leased_gpus()) == (frozenset(), frozenset({"a/GPU-0000"}))
    assert after.usage == box.usage


def test_a_claim_that_is_outstanding_is_dropped_and_not_given_back_too() -> None:
    box = view("a", rtx4090(), free=[20 * GIB])
    model = IdleModel("m", 1.0, (Claim("a/GPU-0000", 5 * GIB), Claim(RAM, GIB)), threads=3)
    promised = replace(box, outstanding=Outstanding(model.claims, threads=4), idle_models=(model,))
    assert free(promised)[0] == 15 * GIB
    after = without_models(promised, [model])
    assert free(after) == free(box)
    assert (after.outstanding, after.idle_models) == (Outstanding((), threads=1), ())


def test_a_claim_that_the_figures_show_is_given_back_to_them() -> None:
    box = view("a", rtx4090(), on=host(64 * GIB, available=20 * GIB), free=[3 * GIB])
    before = free(box)
    small = IdleModel("m", 1.0, (Claim("a/GPU-0000", 5 * GIB), Claim(RAM, 2 * GIB)))
    assert free(without_models(box, [small])) == [before[0] + 5 * GIB, before[1] + 2 * GIB]
    # Never more than there is, whatever a claim says.
    large = IdleModel("m", 1.0, (Claim("a/GPU-0000", 50 * GIB), Claim(RAM, 90 * GIB)))
    after = without_models(box, [large])
    assert free(after)[0] == 24 * GIB
    assert after.usage is not None
    assert after.usage.memory_available_bytes == 64 * GIB


def test_an_apu_gets_back_its_ram_and_then_its_own() -> None:
    box = view("a", strix_halo(4 * GIB, 40 * GIB), on=host(64 * GIB, available=30 * GIB))
    key = "a/amd-0000"
    live = GPUUsage(0, key, None, memory_used_bytes=3 * GIB, shared_memory_used_bytes=6 * GIB)
    box = replace(box, usage=NodeUsage((live,), 30 * GIB, None))
    model = IdleModel("m", 1.0, (Claim(key, 8 * GIB), Claim(RAM, 7 * GIB)))
    after = without_models(box, [model])
    assert after.usage is not None
    figure = after.usage.gpus[0]
    assert (figure.memory_used_bytes, figure.shared_memory_used_bytes) == (GIB, 0)
    assert after.usage.memory_available_bytes == 37 * GIB


def test_cards_that_a_model_had_whole_are_offered_again() -> None:
    box = view("a", h100(0), h100(1))
    keys = ("a/GPU-0000", "a/GPU-0001")
    model = IdleModel("m", 1.0, tuple(Claim(key, GIB, exclusive=True) for key in keys))
    full = replace(box, taken=frozenset(keys), leased=keys, idle_models=(model,))
    after = without_models(full, [model])
    assert (after.taken, after.leased_gpus()) == (frozenset(), frozenset())
    # One that another model uses too stays in use.
    shared = replace(full, taken=frozenset(), leased=(*keys, keys[0]))
    assert without_models(shared, [model]).leased_gpus() == {keys[0]}
