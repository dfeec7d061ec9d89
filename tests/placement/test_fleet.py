"""Whole decisions over unlike nodes: who gets the model, in what order, and refusals that help."""

from dataclasses import replace

import pytest

from tests.placement.builders import (
    dense,
    h100,
    host,
    mi300x,
    node,
    nvidia,
    rtx4090,
    rx7900xtx,
    smollm2,
    strix_halo,
    there,
    usage,
)
from tests.placement.fleets import view
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import (
    DEFAULT_POLICY,
    RAM,
    Backend,
    Claim,
    EngineOptions,
    Exclusion,
    FleetPlan,
    FleetRefusal,
    IdleModel,
    NodeView,
    Outstanding,
    Plan,
    claims_of,
    model_key,
    node_kind,
    plan,
    plan_fleet,
)
from xgen_ray.placement.sizes import GIB

CPU_BOX = view("cpu-1", on=host(64 * GIB))
CARD = view("gpu-1", rtx4090())
BIG = view("gpu-2", h100())
APU = view("apu-1", strix_halo())
SAFETENSORS = dense(70, 16, model_format=ModelFormat.SAFETENSORS)


def made(facts: ModelFacts, *nodes: NodeView, **how: object) -> FleetPlan:
    options = how.pop("options", EngineOptions())
    result = plan_fleet(facts, options, nodes, **how)  # type: ignore[arg-type]  # the caller's keywords
    assert isinstance(result, FleetPlan), result.message
    return result


def refused(facts: ModelFacts, *nodes: NodeView, **how: object) -> FleetRefusal:
    options = how.pop("options", EngineOptions())
    result = plan_fleet(facts, options, nodes, **how)  # type: ignore[arg-type]  # the caller's keywords
    assert isinstance(result, FleetRefusal), result
    assert sorted(item.node_id for item in result.nodes) == sorted(item.node_id for item in nodes)
    assert all(item.fits is not True or result.would_fit_without for item in result.nodes)
    assert all(item.reasons for item in result.nodes)
    return result


def places(result: FleetPlan) -> list[str]:
    return [item.node for item in result.assignments]


def reasons(result: FleetPlan | FleetRefusal, name: str) -> str:
    return "; ".join(next(item.reasons for item in result.nodes if item.name == name))


def test_a_card_before_an_integrated_gpu_before_the_cpu() -> None:
    assert places(made(smollm2(), CPU_BOX, APU, CARD)) == ["gpu-1"]
    assert places(made(smollm2(), CPU_BOX, APU)) == ["apu-1"]
    assert places(made(smollm2(), CPU_BOX)) == ["cpu-1"]


def test_full_size_before_made_smaller() -> None:
    result = made(dense(32), CARD, BIG)
    assert places(result) == ["gpu-2"]
    assert "made smaller to fit" in reasons(result, "gpu-1")


def test_the_formats_order_of_backends_decides_between_equal_cards() -> None:
    cuda = view("a-cuda", rtx4090())
    cuda = replace(
        cuda, statuses=tuple(s for s in cuda.statuses if s.backend is not Backend.LLAMA_SERVER_VULKAN)
    )
    result = made(smollm2(), cuda, view("b-vulkan", rx7900xtx()))
    assert places(result) == ["b-vulkan"]


def test_a_node_that_has_the_files_comes_before_one_that_has_to_fetch_them() -> None:
    far = replace(CARD, name="a", node_id="id-a", has_files=False, can_fetch=True)
    unknown = replace(far, name="b", node_id="id-b", has_files=None)
    near = replace(far, name="c", node_id="id-c", has_files=True)
    for nodes, first in (((far, unknown, near), "c"), ((far, unknown), "b"), ((far,), "a")):
        assert places(made(smollm2(), *nodes)) == [first]


def test_packing_fills_what_is_nearly_full_and_spreading_does_not() -> None:
    busy = view("busy", rtx4090(), free=[8 * GIB])
    empty = view("empty", rtx4090(), free=[23 * GIB])
    assert places(made(smollm2(), busy, empty)) == ["busy"]
    assert places(made(smollm2(), busy, empty, spread=True)) == ["empty"]
    assert places(made(smollm2(), busy, empty, options=EngineOptions(spread=True))) == ["empty"]
    # The model's own options have the last word, the policy's the first.
    assert places(made(smollm2(), busy, empty, options=EngineOptions(spread=False), spread=True)) == ["busy"]
    policy = replace(DEFAULT_POLICY, spread=True)
    assert places(made(smollm2(), busy, empty, policy=policy)) == ["empty"]
    assert places(made(smollm2(), busy, empty, policy=policy, spread=False)) == ["busy"]


def test_spreading_on_one_node_takes_the_emptiest_card() -> None:
    one = view("one", rtx4090(0), rtx4090(1), free=[8 * GIB, 20 * GIB])
    for spread, position in ((False, 0), (True, 1)):
        (chosen,) = made(smollm2(), one, spread=spread).assignments
        assert chosen.plan.options.gpus == (one.snapshot.detection.gpus[position],)


def test_load_decides_between_nodes_that_are_equal_otherwise() -> None:
    quiet, loud = view("b-quiet"), view("a-loud")
    loud = replace(loud, usage=replace(usage(loud.snapshot, []), cpu_percent=90.0))
    quiet = replace(quiet, usage=replace(usage(quiet.snapshot, []), cpu_percent=5.0))
    assert places(made(smollm2(), loud, quiet)) == ["b-quiet"]
    leased = replace(CPU_BOX, name="a", node_id="a", outstanding=Outstanding((), threads=15))
    result = made(smollm2(), leased, CPU_BOX)
    assert places(result) == ["cpu-1"]


def test_every_replica_has_memory_of_its_own() -> None:
    """A card holds two of this model, so the third goes elsewhere and the fifth to the CPU."""
    facts, options = dense(8), EngineOptions(context=8192, slots=2)
    nodes = (CARD, view("gpu-3", rtx4090()), CPU_BOX)
    result = made(facts, *nodes, replicas=5, options=options)
    assert sorted(places(result)) == ["cpu-1", "gpu-1", "gpu-1", "gpu-3", "gpu-3"]
    for name in ("gpu-1", "gpu-3"):
        claims = [
            claim.size_bytes
            for item in result.assignments
            if item.node == name
            for claim in claims_of(item.plan)
            if claim.device != RAM
        ]
        assert sum(claims) <= int(24 * GIB * 0.95)
    backends = {item.plan.backend for item in result.assignments}
    assert backends == {Backend.LLAMA_SERVER_VULKAN, Backend.LLAMA_SERVER_CPU}


def test_spread_replicas_go_to_different_nodes() -> None:
    nodes = (CARD, view("gpu-3", rtx4090()), BIG)
    assert places(made(smollm2(), *nodes, replicas=3)) == ["gpu-1"] * 3
    assert sorted(places(made(smollm2(), *nodes, replicas=3, spread=True))) == ["gpu-1", "gpu-2", "gpu-3"]


def test_all_replicas_or_none_unless_some_will_do() -> None:
    nodes = (CARD, replace(BIG, schedulable=False, reason="draining"))
    options = EngineOptions(gpus=(0,), context=8192, slots=2)
    no = refused(dense(8), *nodes, replicas=3, options=options)
    assert no.message.startswith("2 of 3 replicas have a place. For the next, dense-8b needs ")
    some = made(dense(8), *nodes, replicas=3, options=options, partial=True)
    assert (places(some), some.missing, some.message) == (["gpu-1", "gpu-1"], 1, no.message)
    assert isinstance(plan_fleet(dense(400), options, nodes, partial=True), FleetRefusal)


def test_the_plan_has_the_nodes_own_gpu() -> None:
    """Equal nodes are weighed once, but never given each other's cards."""
    nodes = [view(f"gpu-{number}", h100(0), h100(1), on=host(512 * GIB)) for number in range(4)]
    result = made(SAFETENSORS, *nodes, replicas=4)
    assert sorted(places(result)) == [item.name for item in nodes]
    for item in result.assignments:
        assert all(gpu.uuid and gpu.uuid.startswith(f"{item.node}/") for gpu in item.plan.options.gpus)
        assert all(claim.exclusive for claim in claims_of(item.plan) if claim.device != RAM)


def test_whole_cards_are_neither_shared_nor_given_when_shared() -> None:
    two = view("two", h100(0), h100(1), on=host(512 * GIB))
    keys = [gpu.uuid or "" for gpu in two.snapshot.detection.gpus]
    taken = replace(two, taken=frozenset(keys), leased=tuple(keys))
    no = refused(smollm2(), taken, options=EngineOptions(backend=Backend.LLAMA_SERVER_CUDA))
    assert "GPU 0 (NVIDIA H100 80GB HBM3) is not offered: another model has it whole" in reasons(no, "two")
    assert "nload the model that has its GPU whole" in no.message
    assert made(smollm2(), taken).assignments[0].plan.backend is Backend.LLAMA_SERVER_CPU
    # One small model on one card, and two cards can no longer be had whole.
    shared = replace(two, leased=(keys[0],))
    assert "is in use by another model" in reasons(
        refused(SAFETENSORS, shared, options=EngineOptions(tensor_parallel_size=2)), "two"
    )
    single = made(dense(8, 16, model_format=ModelFormat.SAFETENSORS), shared)
    assert len(single.assignments[0].plan.options.gpus) == 1
    promised = replace(two, outstanding=Outstanding((Claim(keys[1], GIB),)))
    refused(SAFETENSORS, promised, options=EngineOptions(tensor_parallel_size=2))


def test_filters_say_why() -> None:
    away = replace(CARD, name="away", node_id="away", has_files=False)
    draining = replace(CARD, name="draining", node_id="draining", schedulable=False, reason="it is draining")
    bare = replace(CARD, name="bare", node_id="bare", statuses=())
    no = refused(smollm2(), away, draining, bare)
    assert "/models/smollm2-135m-instruct-q4_1.gguf is not on this node and cannot be fetched" in reasons(
        no, "away"
    )
    assert reasons(no, "draining") == "it is draining"
    assert "llama-server-cpu: nobody has looked for it" in reasons(no, "bare")
    assert no.message.startswith("SmolLM2 135M cannot be placed on any of 3 nodes. away: ")
    assert "it is draining" in no.message


def test_an_untagged_node_is_a_cpu_node() -> None:
    plain = view("plain", rtx4090(), tagged=False)
    result = made(smollm2(), plain)
    assert result.assignments[0].plan.backend is Backend.LLAMA_SERVER_CPU
    vulkan = tuple(s for s in plain.statuses if s.backend is Backend.LLAMA_SERVER_VULKAN)
    only_gpu = replace(plain, statuses=vulkan)
    assert "plain `ray start`" in refused(smollm2(), only_gpu).message
    named = refused(smollm2(), plain, options=EngineOptions(backend=Backend.LLAMA_SERVER_CUDA))
    assert "xgen-ray node" in named.message


def test_nodes_can_be_named() -> None:
    assert places(made(smollm2(), CPU_BOX, CARD, on=["cpu-1"])) == ["cpu-1"]
    assert places(made(smollm2(), CPU_BOX, CARD, on=["id-cpu-1"])) == ["cpu-1"]
    no = refused(smollm2(), CPU_BOX, CARD, on=["gpu-9"])
    assert no.message == "there is no node gpu-9; the nodes are: cpu-1, gpu-1. Name one of these, or none."
    other = refused(dense(400), CPU_BOX, CARD, BIG, on=["gpu-1"])
    assert "the request names other nodes: gpu-1" in reasons(other, "gpu-2")


def test_a_refusal_speaks_of_the_nodes_that_were_asked_for() -> None:
    boxes = [view(f"gpu-{number}", rtx4090(), on=host(16 * GIB)) for number in range(5)]
    one = refused(dense(70), *boxes, on=["gpu-3"]).message
    assert " on node gpu-3, with " in one
    two = refused(dense(70), *boxes, on=["id-gpu-3", "gpu-4"]).message
    assert " on node gpu-3, the nearest of 2 asked for, with " in two
    away = [replace(box, schedulable=False, reason="it is away") for box in boxes[3:]]
    none = refused(dense(70), *boxes[:3], *away, on=["gpu-3", "gpu-4"]).message
    assert "cannot be placed on any of 2 nodes asked for. gpu-3, gpu-4: it is away." in none


def test_a_fleet_without_nodes() -> None:
    assert "there is no node" in refused(smollm2()).message


def test_a_refusal_has_the_numbers_of_the_nearest_node() -> None:
    small = view("gpu-0", nvidia(0, "NVIDIA GeForce RTX 3060", 12 * GIB), on=host(16 * GIB))
    no = refused(dense(70), small, view("gpu-1", rtx4090(), on=host(16 * GIB)))
    assert no.message.startswith("dense-70b needs ")
    assert "NVIDIA GeForce RTX 4090 has 22.8 GiB free" in no.message
    assert "on node gpu-1, the nearest of 2, with llama-server-vulkan" in no.message
    assert no.message.endswith("Take a smaller quantisation, unload another model or add a GPU.")
    for item in no.nodes:
        assert {candidate.backend for candidate in item.candidates} == set(Backend)
        assert any("GiB free" in text for text in item.reasons)


def test_a_backend_that_failed_on_this_kind_of_node_is_left_out_there() -> None:
    facts = smollm2()
    vulkan, rocm = Backend.LLAMA_SERVER_VULKAN, Backend.LLAMA_SERVER_ROCM
    first = Exclusion(vulkan, "gfx1100", "GPU page fault, twice", model_key(facts))
    amd_box, nvidia_box = view("amd", rx7900xtx()), view("nvidia", rtx4090())
    result = made(facts, amd_box, on=["amd"], exclusions=[first])
    assert result.assignments[0].plan.backend is rocm
    second = Exclusion(rocm, "gfx1100", "GPU page fault", model_key(facts))
    result = made(facts, amd_box, exclusions=[first, second])
    assert result.assignments[0].plan.backend is Backend.LLAMA_SERVER_CPU
    said = {item.backend: item.reasons for item in result.nodes[0].candidates}
    assert said[vulkan] == ("excluded: GPU page fault, twice",)
    # Another kind of node, and another model, are not concerned.
    assert made(facts, nvidia_box, exclusions=[first]).assignments[0].plan.backend is vulkan
    assert made(dense(8), amd_box, exclusions=[first]).assignments[0].plan.backend is vulkan


def test_node_kind() -> None:
    both = node(rtx4090(0), rx7900xtx(0), rx7900xtx(1))
    assert node_kind(both, Backend.LLAMA_SERVER_VULKAN) == "cc8.9+gfx1100"
    assert node_kind(both, Backend.LLAMA_SERVER_CUDA) == "cc8.9"
    assert node_kind(both, Backend.VLLM_ROCM) == "gfx1100"
    assert node_kind(both, Backend.LLAMA_SERVER_CPU) == "x86_64"
    assert node_kind(node(), Backend.VLLM_CUDA) == "no GPU"
    assert node_kind(node(mi300x()), Backend.LLAMA_SERVER_ROCM) == "gfx942"


def idle(name: str, idle_s: float, gpu: str, size: int) -> IdleModel:
    return IdleModel(name, idle_s, (Claim(gpu, size), Claim(RAM, GIB)))


def test_idle_models_that_make_room_are_named_longest_idle_first() -> None:
    key = "full/GPU-0000"
    models = [
        idle("young", 10, key, 10 * GIB),
        idle("old", 900, key, 6 * GIB),
        idle("older", 1000, key, 3 * GIB),
    ]
    full = view("full", rtx4090(), free=[2 * GIB], idle=models)
    options = EngineOptions(gpus=(0,), context=8192, slots=1)
    no = refused(dense(8), full, options=options)
    # 7 GiB are needed: one of 6 GiB is enough with the 2 that are free, and idle longer than the other.
    assert no.would_fit_without == ("old",)
    assert no.message.endswith("It fits once idle models are unloaded: old.")
    planned = made(dense(8), full, options=options, evict_idle=True)
    assert (planned.evict, places(planned)) == (("old",), ["full"])
    larger = refused(dense(24), full, options=options)
    assert larger.would_fit_without == ("old", "young")
    assert refused(dense(120), full, options=options).would_fit_without == ()


def test_nothing_is_unloaded_for_what_fits_anyway() -> None:
    models = [idle("old", 900, "full/GPU-0000", 20 * GIB)]
    full = view("full", rtx4090(), free=[2 * GIB], idle=models)
    assert made(smollm2(), full, evict_idle=True).evict == ()
    result = made(dense(8), full, CARD, evict_idle=True, options=EngineOptions(gpus=(0,)))
    assert (result.evict, places(result)) == ((), ["gpu-1"])


def test_an_idle_model_that_has_cards_whole_can_make_room() -> None:
    two = view("two", h100(0), h100(1), on=host(512 * GIB), free=[2 * GIB, 2 * GIB])
    keys = tuple(gpu.uuid or "" for gpu in two.snapshot.detection.gpus)
    claims = tuple(Claim(key, 72 * GIB, exclusive=True) for key in keys)
    full = replace(two, taken=frozenset(keys), leased=keys, idle_models=(IdleModel("big", 60.0, claims),))
    no = refused(SAFETENSORS, full, options=EngineOptions(tensor_parallel_size=2))
    assert no.would_fit_without == ("big",)


def test_a_large_fleet_is_weighed_as_far_as_needed_and_says_so() -> None:
    nodes = [view(f"gpu-{number:02d}", rtx4090(), free=[(4 + number // 2) * GIB]) for number in range(40)]
    result = made(smollm2(), *nodes)
    assert len(result.nodes) == 40
    unweighed = [item for item in result.nodes if item.fits is None]
    assert len(unweighed) == 40 - DEFAULT_POLICY.nodes_weighed
    assert all("not weighed" in item.reasons[0] for item in unweighed)
    every = made(smollm2(), *nodes, thorough=True)
    assert all(item.fits for item in every.nodes)
    assert places(every) == places(result)
    # A refusal has a reason from every node, though the weights alone rule most of them out.
    no = refused(dense(400), *nodes)
    assert all(item.fits is False for item in no.nodes)
    assert any("GiB at least; " in item.reasons[0] for item in no.nodes)


def test_the_answer_says_what_was_second() -> None:
    why = made(smollm2(), CARD, CPU_BOX).assignments[0].why
    assert why.startswith("llama-server-vulkan on NVIDIA GeForce RTX 4090; the files are here; ")
    assert "Next best is cpu-1: llama-server-cpu on the CPU" in why


@pytest.mark.parametrize(
    ("leased", "asked", "threads", "warned"),
    [
        (0, None, 15, False),
        (8, None, 7, False),
        (15, None, 1, False),
        (16, None, 1, True),
        (40, None, 1, True),
        (0, 16, 16, False),
        (4, 12, 12, False),
        (4, 16, 16, True),
    ],
)
def test_leased_threads(leased: int, asked: int | None, threads: int, warned: bool) -> None:
    """The next model on the CPU gets what is left; what was asked for stays, with a warning."""
    snapshot = node(on=host(cpus=16))
    statuses = (there(Backend.LLAMA_SERVER_CPU),)
    result = plan(smollm2(), EngineOptions(threads=asked), snapshot, statuses, leased_threads=leased)
    assert isinstance(result, Plan)
    assert result.options.threads == threads
    crowded = [text for text in result.warnings if text.startswith("the CPU is oversubscribed")]
    assert bool(crowded) is warned
    if warned:
        assert f"{threads} thread(s) here and {leased} of other models on 16 cores" in crowded[0]


def test_a_gpu_model_leaves_leased_threads_alone() -> None:
    result = made(smollm2(), replace(CARD, outstanding=Outstanding((), threads=40)))
    assert result.assignments[0].plan.options.threads == 4
    assert result.assignments[0].plan.warnings == ()
