"""What a plan takes of each device, and that no budget forgets what has been promised."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.placement.builders import (
    all_there,
    dense,
    device,
    gb10,
    h100,
    host,
    node,
    nvidia,
    rtx4090,
    rx7900xtx,
    smollm2,
    strix_halo,
    there,
    usage,
)
from xgen_ray.hardware.types import GPUInfo, GPUUsage, NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import (
    RAM,
    Backend,
    Claim,
    EngineOptions,
    Outstanding,
    Plan,
    claims_of,
    gpu_key,
    plan,
    threads_of,
    with_outstanding,
)
from xgen_ray.placement.budget import gpu_budget, host_budget
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.sizes import GIB


def made(
    facts: ModelFacts,
    snapshot: NodeSnapshot,
    options: EngineOptions | None = None,
    now: NodeUsage | None = None,
) -> Plan:
    result = plan(facts, options or EngineOptions(), snapshot, all_there(snapshot), usage=now)
    assert isinstance(result, Plan), result.message
    return result


def test_a_gpu_is_called_by_the_best_name_it_has() -> None:
    gpu = rtx4090()
    assert gpu_key(gpu) == gpu.uuid
    assert gpu_key(replace(gpu, uuid=None)) == "0000:01:00.0"
    assert gpu_key(replace(gpu, uuid=None, pci_bus_id=None, device_index=3)) == "index 3"
    assert gpu_key(GPUUsage(0, gpu.uuid, None)) == gpu_key(gpu)
    slices = [replace(h100(), uuid=f"MIG-{index}", mig_profile="1g.10gb") for index in (0, 1)]
    assert [gpu_key(item) for item in slices] == ["MIG-0", "MIG-1"]


def test_a_model_on_one_card_claims_its_bill() -> None:
    result = made(smollm2(), node(rtx4090()))
    bill = result.footprint
    assert claims_of(result) == (Claim("GPU-0000", bill.gpu_bytes), Claim(RAM, bill.host_bytes))


def test_a_model_on_the_cpu_claims_ram_only() -> None:
    result = made(smollm2(), node())
    assert claims_of(result) == (Claim(RAM, result.footprint.host_bytes),)


def test_unlike_cards_are_charged_with_their_own_parts() -> None:
    """llama.cpp splits layers by free memory, so half of the bill each would be wrong twice."""
    snapshot = node(rtx4090(0), nvidia(1, "NVIDIA GeForce RTX 3060", 12 * GIB))
    result = made(dense(32), snapshot, EngineOptions(split_mode="layer"))
    first, second, ram = claims_of(result)
    assert 1.5 < first.size_bytes / second.size_bytes < 2.2
    # A layer is not cut, so together they may hold a little more than the bill.
    assert result.footprint.gpu_bytes <= first.size_bytes + second.size_bytes
    assert not any(claim.exclusive for claim in (first, second, ram))


@pytest.mark.parametrize(
    ("facts", "options", "whole"),
    [
        (dense(70, 16, model_format=ModelFormat.SAFETENSORS), EngineOptions(), True),
        (dense(8, 16, model_format=ModelFormat.SAFETENSORS), EngineOptions(), False),
        (dense(70), EngineOptions(split_mode="layer"), False),
        (dense(70), EngineOptions(split_mode="row"), True),
        (dense(70), EngineOptions(split_mode="tensor"), True),
    ],
)
def test_cutting_every_layer_takes_whole_cards(
    facts: ModelFacts, options: EngineOptions, whole: bool
) -> None:
    result = made(facts, node(h100(0), h100(1), on=host(512 * GIB)), options)
    *cards, ram = claims_of(result)
    assert {claim.exclusive for claim in cards} == {whole}
    assert not ram.exclusive
    assert ram.device == RAM


def test_vllm_claims_the_share_that_it_takes_at_once() -> None:
    result = made(dense(8, 16, model_format=ModelFormat.SAFETENSORS), node(h100()))
    assert claims_of(result)[0].size_bytes >= int(0.9 * 80 * GIB)


def test_what_an_apu_takes_of_the_ram_is_charged_there_too() -> None:
    result = made(dense(8), node(strix_halo()))
    on_gpu, in_ram = claims_of(result)
    own = int(GIB * 0.95)
    assert on_gpu.size_bytes == result.footprint.gpu_bytes
    assert in_ram.size_bytes == result.footprint.host_bytes + on_gpu.size_bytes - own
    # And from its figures alone, when the plan is an old one that does not carry its needs.
    old = claims_of(replace(result, gpu_needs=()))
    assert old[0] == on_gpu
    assert old[1].size_bytes == result.footprint.host_bytes + on_gpu.size_bytes - GIB
    chip = made(dense(8), node(gb10()))
    assert claims_of(chip) == claims_of(replace(chip, gpu_needs=()))
    assert claims_of(chip)[1].size_bytes == chip.footprint.total_bytes


def test_threads_are_counted_where_they_compute() -> None:
    on_cpu = made(smollm2(), node())
    assert threads_of(on_cpu) == on_cpu.options.threads == 15
    assert threads_of(made(smollm2(), node(rtx4090()))) == 0
    partly = made(smollm2(), node(rtx4090()), EngineOptions(gpu_layers=10))
    assert threads_of(partly) == partly.options.threads


def test_the_figures_stay_as_measured() -> None:
    snapshot = node(rtx4090(), on=host(64 * GIB, available=50 * GIB))
    now = usage(snapshot, [20 * GIB])
    promised = Outstanding((Claim("GPU-0000", 5 * GIB), Claim(RAM, GIB), Claim(RAM, GIB)), threads=3)
    then = with_outstanding(now, snapshot, promised)
    assert then.gpus == now.gpus
    assert then.memory_available_bytes == 50 * GIB
    ram = host_budget(snapshot.host, then)
    assert ram.free_bytes == host_budget(snapshot.host, now).free_bytes - 2 * GIB
    assert "2.0 GiB promised" in ram.reason
    card = gpu_budget(rtx4090(), ram, usage=then)
    assert card.free_bytes == 15 * GIB
    assert card.reason == "20.0 GiB free, less 5.0 GiB promised to other models"
    twice = with_outstanding(then, snapshot, promised)
    assert gpu_budget(rtx4090(), ram, usage=twice).free_bytes == 10 * GIB


def test_without_live_figures_the_snapshots_are_the_start() -> None:
    snapshot = node(rtx4090(), on=host(64 * GIB, available=50 * GIB))
    then = with_outstanding(None, snapshot, Outstanding((Claim("GPU-0000", 5 * GIB), Claim(RAM, GIB))))
    assert then.memory_available_bytes == 50 * GIB
    budget = gpu_budget(rtx4090(), host_budget(snapshot.host, then), usage=then)
    assert budget.free_bytes == int(24 * GIB * 0.95) - 5 * GIB


GPUS = [rtx4090(), rx7900xtx(), nvidia(memory=None), gb10(), strix_halo(), strix_halo(16 * GIB, 8 * GIB)]
SIZE = st.integers(0, 60 * GIB)


@settings(max_examples=150)
@given(
    gpu=st.sampled_from(GPUS),
    named=st.booleans(),
    figures=st.sampled_from(["none", "empty", "free", "used", "both"]),
    listed=st.none() | st.tuples(st.integers(1, 64), st.integers(0, 64)),
    sizes=st.lists(SIZE, min_size=1, max_size=4),
)
def test_every_byte_that_is_promised_is_gone(
    gpu: GPUInfo, named: bool, figures: str, listed: tuple[int, int] | None, sizes: list[int]
) -> None:
    """Whatever the driver and the engine say or leave unsaid of a GPU."""
    if not named:
        gpu = replace(gpu, uuid=None, pci_bus_id=None)
    snapshot = node(gpu, on=host(128 * GIB, available=100 * GIB))
    live = GPUUsage(
        gpu.device_index,
        gpu.uuid,
        gpu.pci_bus_id,
        memory_free_bytes=9 * GIB if figures in ("free", "both") else None,
        memory_used_bytes=2 * GIB if figures in ("used", "both") else None,
    )
    now = NodeUsage(() if figures == "none" else (live,), 100 * GIB, None)
    seen = None
    if listed is not None:
        total, free = listed
        seen = device("X0", gpu.device_name, total * GIB, min(total, free) * GIB)
    before = gpu_budget(gpu, host_budget(snapshot.host, now), usage=now, device=seen)
    promised = 0
    budget = before
    for size in sizes:
        in_ram = max(0, size - (budget.free_bytes - budget.shared_bytes))
        shared = Claim(RAM, in_ram if is_integrated(gpu) else 0)
        now = with_outstanding(now, snapshot, Outstanding((Claim(gpu_key(gpu), size), shared)))
        budget = gpu_budget(gpu, host_budget(snapshot.host, now), usage=now, device=seen)
        promised += size
        assert 0 <= budget.shared_bytes <= budget.free_bytes <= max(0, before.free_bytes - promised)


def test_two_models_never_plan_with_the_same_memory_of_an_apu() -> None:
    snapshot = node(strix_halo(), on=host(64 * GIB, available=40 * GIB))
    statuses = (there(Backend.LLAMA_SERVER_VULKAN, device("Vulkan0", "Radeon Graphics (RADV GFX1151)")),)
    now = with_outstanding(None, snapshot, Outstanding())
    free = host_budget(snapshot.host, now).free_bytes
    placed = 0
    while isinstance(result := plan(dense(8), EngineOptions(), snapshot, statuses, usage=now), Plan):
        now = with_outstanding(now, snapshot, Outstanding(claims_of(result)))
        placed += 1
    assert 2 <= placed <= 7
    assert sum(size for key, size in now.claimed if key == RAM) <= free
