"""What is said of every single GPU of a node: where the model would go, and why not elsewhere."""

from dataclasses import replace

from tests.placement.builders import (
    all_there,
    dense,
    embedder,
    h100,
    igpu,
    mig,
    node,
    nvidia,
    rtx4090,
    rx7900xtx,
    usage,
)
from tests.placement.fleets import view
from xgen_ray.hardware.types import NodeSnapshot
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import (
    Backend,
    EngineOptions,
    FleetPlan,
    GPUVerdict,
    NodeVerdict,
    gpu_key,
    plan,
    plan_fleet,
)
from xgen_ray.placement.sizes import GIB, MIB

CUDA, VULKAN, ROCM = Backend.LLAMA_SERVER_CUDA, Backend.LLAMA_SERVER_VULKAN, Backend.LLAMA_SERVER_ROCM
Told = list[tuple[bool, bool, str]]


def told(
    facts: ModelFacts,
    snapshot: NodeSnapshot,
    backend: Backend,
    options: EngineOptions | None = None,
    *,
    free: tuple[int, ...] | None = None,
    taken: tuple[int, ...] = (),
    leased: tuple[int, ...] = (),
) -> Told:
    """Of each GPU in the node's order: whether it is chosen, whether it would do, and what is said."""
    keys = [gpu_key(gpu) for gpu in snapshot.detection.gpus]
    decision = plan(
        facts,
        options or EngineOptions(),
        snapshot,
        all_there(snapshot),
        usage=None if free is None else usage(snapshot, free),
        taken=frozenset(keys[place] for place in taken),
        leased_gpus=frozenset(keys[place] for place in leased),
        per_gpu=True,
    )
    (candidate,) = [item for item in decision.candidates if item.backend is backend]
    return words(candidate.gpus, snapshot)


def words(gpus: tuple[GPUVerdict, ...], snapshot: NodeSnapshot) -> Told:
    names = [(gpu.position, gpu.name) for gpu in gpus]
    assert (
        names == [(place, gpu.device_name) for place, gpu in enumerate(snapshot.detection.gpus)][: len(gpus)]
    )
    return [(gpu.chosen, gpu.fits, gpu.reason) for gpu in gpus]


def small_card(index: int = 0) -> NodeSnapshot:
    """Three unlike cards: one is small, one is for another API, one is large."""
    return node(nvidia(index, "NVIDIA GeForce GTX 1650", 4 * GIB, "7.5"), rx7900xtx(), rtx4090(1))


def test_three_unlike_cards_and_a_plan() -> None:
    free = (600 * MIB, 24 * GIB, 20 * GIB)
    named = EngineOptions(backend=CUDA)
    assert told(dense(8), small_card(), CUDA, named, free=free) == [
        (False, False, "has 600 MiB free, needs 13.3 GiB for 4 x 8192 tokens"),
        (False, False, "llama-server-cuda is not for amd_rdna GPUs"),
        (True, True, "would take 13.3 GiB of 20.0 GiB free"),
    ]


def test_three_unlike_cards_and_a_refusal() -> None:
    free = (600 * MIB, 24 * GIB, 5 * GIB)
    named = EngineOptions(backend=CUDA)
    assert told(dense(14), small_card(), CUDA, named, free=free) == [
        (False, False, "has 600 MiB free, needs 9.0 GiB for 1 x 2048 tokens"),
        (False, False, "llama-server-cuda is not for amd_rdna GPUs"),
        (False, False, "has 5.0 GiB free, needs 9.0 GiB for 1 x 2048 tokens"),
    ]


def test_a_card_that_would_do_says_which_comes_first() -> None:
    free = (600 * MIB, 20 * GIB, 22 * GIB)
    _, radeon, geforce = told(dense(8), small_card(), VULKAN, free=free)
    assert radeon == (True, True, "would take 12.8 GiB of 20.0 GiB free")
    assert geforce == (False, True, "fits; GPU 1 comes first")
    _, radeon, geforce = told(dense(8), small_card(), ROCM, free=free)
    assert radeon == (False, True, "fits; llama-server-vulkan comes first")
    assert geforce == (False, False, "llama-server-rocm is not for nvidia GPUs")


def test_a_plan_made_smaller_is_what_the_other_cards_are_held_against() -> None:
    free = (8 * GIB, 7 * GIB)
    first, second = told(dense(8), node(rtx4090(), rtx4090(1)), CUDA, EngineOptions(backend=CUDA), free=free)
    assert first[:2] == second[:2] == (True, True)
    options = EngineOptions(backend=CUDA, split_mode="none")
    first, second = told(dense(8), node(rtx4090(), rtx4090(1)), CUDA, options, free=free)
    assert first[:2] == (True, True)
    assert second == (False, False, "has 7.0 GiB free, needs 7.3 GiB for 4 x 2048 tokens")


def test_a_card_that_is_not_named_or_not_free() -> None:
    said = told(dense(8), small_card(), VULKAN, EngineOptions(gpus=(2,)))
    assert [reason for *_, reason in said[:2]] == ["the options name other GPUs"] * 2
    assert said[2][:2] == (True, True)
    said = told(dense(8), small_card(), VULKAN, taken=(2,))
    assert said[2] == (False, False, "another model has it whole")
    assert said[1][:2] == (True, True)
    # The one that is named has somebody else's model, which no other card makes up for.
    said = told(dense(8), small_card(), VULKAN, EngineOptions(gpus=(2,)), taken=(2,))
    assert [reason for *_, reason in said] == ["the options name other GPUs"] * 2 + [
        "another model has it whole"
    ]


def test_a_gfx_that_the_backend_does_not_know() -> None:
    snapshot = node(rx7900xtx(), igpu())
    chosen, other = told(dense(4, 16, model_format=ModelFormat.SAFETENSORS), snapshot, Backend.VLLM_ROCM)
    assert chosen[:2] == (True, True)
    assert other[2].startswith("vLLM's ROCm build does not support gfx1036 (it supports ")
    # It says so too where there is no other.
    (alone,) = told(dense(4, 16, model_format=ModelFormat.SAFETENSORS), node(igpu()), Backend.VLLM_ROCM)
    assert alone == other


def test_cards_that_go_together() -> None:
    gpus = (h100(), h100(1), h100(2), rtx4090(3))
    free = (70 * GIB, 60 * GIB, 50 * GIB, 20 * GIB)
    options = EngineOptions(tensor_parallel_size=2)
    facts = dense(8, 16, model_format=ModelFormat.SAFETENSORS)
    said = told(facts, node(*gpus), Backend.VLLM_CUDA, options, free=free)
    assert [chosen for chosen, *_ in said] == [True, True, False, False]
    assert {reason for *_, reason in said[2:]} == {
        "it takes equal GPUs, and others are more or have more memory free"
    }
    said = told(facts, node(*gpus), Backend.VLLM_CUDA, options, free=free, leased=(0,))
    assert said[0][2] == "in use by another model, and cutting every layer takes whole cards"
    assert [chosen for chosen, *_ in said] == [False, True, True, False]


def test_a_card_with_room_for_its_part_says_which_other_has_none() -> None:
    free = (20 * GIB, 2 * GIB, 300 * MIB)
    options = EngineOptions(backend=CUDA, split_mode="layer")
    large, small, integrated = told(dense(8), node(rtx4090(), rtx4090(1), igpu(2)), CUDA, options, free=free)
    assert small[2].startswith("has 2,048 MiB free, needs 2,051 MiB on each of 2 GPUs for 1 x 2048 tokens")
    assert large == (False, False, f"GPU 1, used with it, {small[2]}")
    assert integrated[2] == "llama-server-cuda is not for amd_rdna GPUs"


def test_a_card_that_is_left_out_of_a_split() -> None:
    options = EngineOptions(split_mode="layer")
    said = told(dense(8), node(rtx4090(), rtx4090(1), igpu(2), mig(0, 3)), VULKAN, options)
    assert [chosen for chosen, *_ in said] == [True, True, False, False]
    assert said[2][2] == "the model is divided among the cards"
    assert said[3][2].startswith("a MIG slice: ")
    options = EngineOptions(split_mode="none", gpus=(0, 1), main_gpu=1)
    first, second = told(dense(8), node(rtx4090(), rtx4090(1)), VULKAN, options)
    assert first == (False, False, "split_mode is none, and main_gpu is another one")
    assert second[:2] == (True, True)


def test_too_little_ram_is_no_fault_of_the_card() -> None:
    snapshot = node(rtx4090())
    host = replace(snapshot.host, memory_available_bytes=5 * GIB)
    (card,) = told(dense(8), replace(snapshot, host=host), CUDA, EngineOptions(backend=CUDA))
    assert card[:2] == (True, True)
    host = replace(snapshot.host, memory_available_bytes=3 * GIB)
    (card,) = told(dense(8), replace(snapshot, host=host), CUDA, EngineOptions(backend=CUDA))
    assert not card[1]
    assert "of RAM for 1 x 2048 tokens" in card[2]


def test_a_backend_that_never_came_to_its_gpus_says_nothing_of_them() -> None:
    snapshot = node(rtx4090(), igpu())
    assert told(dense(8), snapshot, Backend.VLLM_CUDA) == []
    assert told(dense(8), snapshot, Backend.LLAMA_SERVER_CPU) == []
    assert told(dense(8), snapshot, CUDA, EngineOptions(context=10**6)) == []
    off = "gpu_layers is 0, which asks for the CPU"
    assert told(dense(8), snapshot, VULKAN, EngineOptions(gpu_layers=0)) == [(False, False, off)] * 2
    crashed = told(embedder(), node(rx7900xtx()), ROCM)
    assert crashed[0][:2] == (False, False)
    assert "crashed with page faults" in crashed[0][2]


def verdicts(decision: object) -> dict[str, NodeVerdict]:
    assert isinstance(decision, FleetPlan)
    return {verdict.name: verdict for verdict in decision.nodes}


def test_a_fleet_tells_of_gpus_where_that_is_asked_for() -> None:
    nodes = [view("a", rtx4090(), rtx4090(1)), view("b", rtx4090(), rtx4090(1))]
    quiet = plan_fleet(dense(8), EngineOptions(), nodes)
    asked = plan_fleet(dense(8), EngineOptions(), nodes, per_gpu=True)
    # Equal nodes are weighed once; what is said fits both.
    for verdict in verdicts(asked).values():
        vulkan = verdict.candidates[0]
        assert [(gpu.position, gpu.chosen) for gpu in vulkan.gpus] == [(0, True), (1, False)]
    assert not any(item.gpus for verdict in verdicts(quiet).values() for item in verdict.candidates)
