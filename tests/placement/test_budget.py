"""What a model may use on each kind of device."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.placement.builders import (
    amd,
    device,
    gb10,
    h100,
    host,
    node,
    nvidia,
    rtx4090,
    strix_halo,
    usage,
)
from xgen_ray.hardware.types import GPUUsage, NodeUsage
from xgen_ray.placement import DeviceBudget, budgets
from xgen_ray.placement.budget import gpu_budget, host_budget, reserve_bytes
from xgen_ray.placement.sizes import GIB, MIB

RAM = host_budget(host(64 * GIB, available=50 * GIB))


def live(**figures: int | None) -> NodeUsage:
    figure = GPUUsage(device_index=0, uuid=rtx4090().uuid, pci_bus_id=None, **figures)
    return NodeUsage(gpus=(figure,), memory_available_bytes=50 * GIB, cpu_percent=None)


@pytest.mark.parametrize(
    ("figures", "free"),
    [
        (None, int(24 * GIB * 0.95)),
        ({"memory_free_bytes": 20 * GIB}, 20 * GIB),
        ({"memory_free_bytes": 0}, 0),
        ({"memory_used_bytes": 10 * GIB}, 14 * GIB),
        ({"memory_used_bytes": 30 * GIB}, 0),
        ({}, int(24 * GIB * 0.95)),
    ],
)
def test_a_card_has_what_is_free(figures: dict[str, int | None] | None, free: int) -> None:
    budget = gpu_budget(rtx4090(), RAM, usage=None if figures is None else live(**figures))
    assert (budget.free_bytes, budget.shared_bytes, budget.total_bytes) == (free, 0, 24 * GIB)
    assert budget.reason


def test_a_card_of_unknown_size_has_what_the_engine_says_or_nothing() -> None:
    unknown = nvidia(memory=None)
    assert gpu_budget(unknown, RAM).free_bytes == 0
    assert "neither" in gpu_budget(unknown, RAM).reason
    seen = gpu_budget(unknown, RAM, device=device("CUDA0", "x", 16 * GIB, 15 * GIB))
    assert (seen.free_bytes, seen.total_bytes) == (15 * GIB, 16 * GIB)


def apu(carve_out: int, shared: int, available: int) -> DeviceBudget:
    ram = host_budget(host(64 * GIB, available=available))
    return gpu_budget(strix_halo(carve_out, shared), ram)


def test_an_apu_has_its_carve_out_and_the_ram_that_can_be_spared() -> None:
    reserve = reserve_bytes(host(64 * GIB))
    own = int(GIB * 0.95)
    # As much as the driver allows, when RAM is plenty; as much as RAM allows, when it is not.
    assert apu(GIB, 30 * GIB, 50 * GIB).free_bytes == own + 30 * GIB
    assert apu(GIB, 56 * GIB, 20 * GIB).free_bytes == own + 20 * GIB - reserve
    assert apu(GIB, 56 * GIB, 2 * GIB).free_bytes == own
    assert apu(GIB, 56 * GIB, 20 * GIB).shared_bytes == 20 * GIB - reserve
    assert apu(GIB, 30 * GIB, 50 * GIB).total_bytes == 31 * GIB


def test_one_apu_differs_per_engine() -> None:
    """The same chip has shown 6 GB to ROCm and 53 GB to Vulkan."""
    vulkan = gpu_budget(strix_halo(), RAM, device=device("Vulkan0", "RADV GFX1151", 53 * GIB, 52 * GIB))
    rocm = gpu_budget(strix_halo(), RAM, device=device("ROCm0", "AMD Radeon Graphics", 6 * GIB, 6 * GIB))
    assert rocm.free_bytes == 6 * GIB
    assert "ROCm0" in rocm.reason
    assert rocm.shared_bytes == 6 * GIB - int(GIB * 0.95)
    assert 40 * GIB < vulkan.free_bytes <= 52 * GIB


def test_an_apu_in_use_has_less_of_both() -> None:
    snapshot = node(strix_halo(4 * GIB, 40 * GIB), on=host(64 * GIB, available=50 * GIB))
    gpu = snapshot.detection.gpus[0]
    figure = GPUUsage(
        device_index=0,
        uuid=gpu.uuid,
        pci_bus_id=gpu.pci_bus_id,
        memory_used_bytes=3 * GIB,
        shared_memory_used_bytes=30 * GIB,
    )
    now = NodeUsage(gpus=(figure,), memory_available_bytes=20 * GIB, cpu_percent=None)
    ram = host_budget(snapshot.host, now)
    assert gpu_budget(gpu, ram, usage=now).free_bytes == GIB + 10 * GIB
    # The engine's list is as old as the node; what was taken since is taken off it.
    listed = gpu_budget(gpu, ram, usage=now, device=device("ROCm0", "x", 40 * GIB, 40 * GIB))
    assert listed.free_bytes == 7 * GIB


def test_a_chip_without_memory_of_its_own_has_the_ram() -> None:
    budget = gpu_budget(gb10(), RAM)
    assert budget.free_bytes == budget.shared_bytes == RAM.free_bytes
    assert budget.total_bytes == 64 * GIB
    reporting = gpu_budget(replace(gb10(), memory_total_bytes=64 * GIB), RAM)
    assert reporting.free_bytes == RAM.free_bytes


def test_ram_keeps_a_reserve() -> None:
    assert reserve_bytes(host(8 * GIB)) == GIB
    assert reserve_bytes(host(100 * GIB)) == 5 * GIB
    assert host_budget(host(8 * GIB, available=6 * GIB)).free_bytes == 5 * GIB
    assert host_budget(host(8 * GIB, available=512 * MIB)).free_bytes == 0
    now = NodeUsage(gpus=(), memory_available_bytes=3 * GIB, cpu_percent=None)
    assert host_budget(host(8 * GIB, available=6 * GIB), now).free_bytes == 2 * GIB


def test_usage_is_matched_by_uuid_then_address_then_index() -> None:
    snapshot = node(rtx4090(0), rtx4090(1))
    figures = usage(snapshot, [5 * GIB, 9 * GIB]).gpus
    swapped = NodeUsage(gpus=figures[::-1], memory_available_bytes=GIB, cpu_percent=None)
    assert [item.free_bytes for item in budgets(snapshot, swapped)[:2]] == [5 * GIB, 9 * GIB]
    by_address = NodeUsage(
        gpus=tuple(replace(figure, uuid=None, device_index=7) for figure in figures[::-1]),
        memory_available_bytes=GIB,
        cpu_percent=None,
    )
    assert [item.free_bytes for item in budgets(snapshot, by_address)[:2]] == [5 * GIB, 9 * GIB]
    by_index = NodeUsage(
        gpus=tuple(replace(figure, uuid=None, pci_bus_id=None) for figure in figures[::-1]),
        memory_available_bytes=GIB,
        cpu_percent=None,
    )
    assert [item.free_bytes for item in budgets(snapshot, by_index)[:2]] == [5 * GIB, 9 * GIB]


def test_index_alone_is_no_match_on_a_node_with_two_vendors() -> None:
    snapshot = node(rtx4090(0), amd(0, "AMD Radeon RX 7900 XTX", "gfx1100", 24 * GIB))
    nameless = NodeUsage(
        gpus=(
            GPUUsage(0, None, None, memory_free_bytes=GIB),
            GPUUsage(0, None, None, memory_free_bytes=2 * GIB),
        ),
        memory_available_bytes=GIB,
        cpu_percent=None,
    )
    assert {item.free_bytes for item in budgets(snapshot, nameless)[:2]} == {int(24 * GIB * 0.95)}


def test_a_slice_does_not_take_its_neighbours_figures() -> None:
    slices = [
        replace(h100(), uuid=f"MIG-{index}", mig_profile="1g.10gb", memory_total_bytes=10 * GIB)
        for index in (0, 1)
    ]
    snapshot = node(*slices)
    figures = NodeUsage(
        gpus=(GPUUsage(0, "MIG-1", h100().pci_bus_id, memory_free_bytes=3 * GIB),),
        memory_available_bytes=GIB,
        cpu_percent=None,
    )
    assert [item.free_bytes for item in budgets(snapshot, figures)[:2]] == [int(10 * GIB * 0.95), 3 * GIB]


SIZE = st.integers(0, 256 * GIB)


@settings(max_examples=80)
@given(SIZE, SIZE, SIZE, SIZE, st.integers(GIB, 256 * GIB))
def test_no_budget_is_negative_or_more_than_there_is(
    carve_out: int, shared: int, seen: int, available: int, ram: int
) -> None:
    machine = host(ram, available=min(available, ram))
    budget = gpu_budget(
        strix_halo(carve_out, shared), host_budget(machine), device=device("Vulkan0", "x", seen)
    )
    assert 0 <= budget.shared_bytes <= budget.free_bytes <= min(seen, carve_out + shared)
    assert budget.shared_bytes <= host_budget(machine).free_bytes
