"""Whole decisions on whole nodes: the choice, its reasons, and refusals that help."""

from dataclasses import replace

import pytest

from tests.placement.builders import (
    all_there,
    dense,
    device,
    embedder,
    gb10,
    h100,
    host,
    igpu,
    mi300x,
    mig,
    node,
    nvidia,
    rtx4090,
    rx7900xtx,
    smollm2,
    strix_halo,
    there,
    usage,
)
from xgen_ray.hardware.types import GPUInfo, NodeSnapshot
from xgen_ray.models.types import ModelFacts, ModelFormat, ModelTask
from xgen_ray.placement import Backend, BackendStatus, EngineOptions, Plan, Refusal, plan
from xgen_ray.placement.sizes import GIB

GGUF, SAFETENSORS = ModelFormat.GGUF, ModelFormat.SAFETENSORS


def made(
    facts: ModelFacts,
    snapshot: NodeSnapshot,
    options: EngineOptions | None = None,
    statuses: tuple[BackendStatus, ...] | None = None,
) -> Plan:
    result = plan(facts, options or EngineOptions(), snapshot, statuses or all_there(snapshot))
    assert isinstance(result, Plan), result.message
    return result


def refused(
    facts: ModelFacts,
    snapshot: NodeSnapshot,
    options: EngineOptions | None = None,
    statuses: tuple[BackendStatus, ...] | None = None,
) -> Refusal:
    result = plan(
        facts, options or EngineOptions(), snapshot, all_there(snapshot) if statuses is None else statuses
    )
    assert isinstance(result, Refusal), result.why
    assert all(not item.fits and item.reasons for item in result.candidates)
    return result


def st_model(billions: float, heads: int = 64) -> ModelFacts:
    return dense(billions, 16, model_format=SAFETENSORS, heads=heads)


@pytest.mark.parametrize(
    ("gpus", "facts", "backend"),
    [
        ((), smollm2(), Backend.LLAMA_SERVER_CPU),
        ((rtx4090(),), smollm2(), Backend.LLAMA_SERVER_VULKAN),
        ((strix_halo(),), smollm2(), Backend.LLAMA_SERVER_VULKAN),
        ((mi300x(),), smollm2(), Backend.LLAMA_SERVER_VULKAN),
        ((), st_model(0.1), Backend.VLLM_CPU),
        ((h100(),), st_model(8), Backend.VLLM_CUDA),
        ((mi300x(),), st_model(8), Backend.VLLM_ROCM),
        ((rx7900xtx(), igpu()), st_model(4), Backend.VLLM_ROCM),
    ],
)
def test_the_format_and_the_hardware_choose(
    gpus: tuple[GPUInfo, ...], facts: ModelFacts, backend: Backend
) -> None:
    result = made(facts, node(*gpus))
    assert result.backend is backend
    assert result.command == (f"/usr/bin/{backend}",)
    assert result.candidates[0].backend is not None
    assert {item.backend for item in result.candidates} == set(Backend)
    for item in result.candidates:
        assert bool(item.reasons) is (item.backend is not backend)
    assert str(backend) in result.why


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        ((Backend.LLAMA_SERVER_CUDA, Backend.LLAMA_SERVER_CPU), Backend.LLAMA_SERVER_CUDA),
        ((Backend.LLAMA_SERVER_CPU, Backend.LLAMA_CPP_PYTHON), Backend.LLAMA_SERVER_CPU),
        ((Backend.LLAMA_CPP_PYTHON,), Backend.LLAMA_CPP_PYTHON),
    ],
)
def test_what_is_installed_limits_the_choice(present: tuple[Backend, ...], chosen: Backend) -> None:
    snapshot = node(rtx4090())
    statuses = tuple(status for status in all_there(snapshot) if status.backend in present)
    result = made(smollm2(), snapshot, statuses=statuses)
    assert result.backend is chosen
    on_cpu = chosen in (Backend.LLAMA_SERVER_CPU, Backend.LLAMA_CPP_PYTHON)
    assert any(warning.startswith("runs on the CPU") for warning in result.warnings) is on_cpu


def test_everything_is_resolved_for_the_sample_model_on_a_small_cpu() -> None:
    result = made(smollm2(), node(on=host(24 * GIB, cpus=2)))
    options = result.options
    assert (options.context, options.slots, options.threads, options.gpu_layers) == (8192, 4, 1, 0)
    assert (options.batch, options.ubatch, options.devices, options.gpus) == (2048, 512, (), ())
    assert options.kv_cache_type == "f16"
    assert 0 < options.prompt_cache_bytes <= 8 * GIB
    assert result.footprint.gpu_bytes == 0
    assert result.warnings == ()
    assert {note.option for note in result.notes} >= {"slots", "threads", "memory_lock"}


def test_the_smallest_card_that_is_large_enough() -> None:
    small, large = nvidia(1, "NVIDIA GeForce RTX 3060", 12 * GIB), rtx4090(0)
    snapshot = node(large, small)
    assert made(smollm2(), snapshot).options.gpus == (small,)
    assert made(dense(24), snapshot).options.gpus == (large,)


def test_a_card_before_the_integrated_gpu_beside_it() -> None:
    snapshot = node(igpu(0), rx7900xtx(1))
    result = made(smollm2(), snapshot)
    assert [gpu.device_name for gpu in result.options.gpus] == ["AMD Radeon RX 7900 XTX"]
    assert result.options.slots == 4
    named = made(smollm2(), snapshot, EngineOptions(gpus=(0,)))
    assert [gpu.device_name for gpu in named.options.gpus] == ["AMD Radeon Graphics"]
    assert named.options.slots == 1


def test_several_cards_when_one_is_too_small() -> None:
    snapshot = node(h100(0), h100(1), on=host(512 * GIB))
    result = made(dense(120, 6), snapshot)
    assert result.options.devices == ("Vulkan0", "Vulkan1")
    assert result.options.split_mode == "layer"
    one = made(dense(70), snapshot)
    assert (len(one.options.gpus), one.options.split_mode) == (1, None)
    both = made(dense(70), snapshot, EngineOptions(split_mode="row"))
    assert (len(both.options.gpus), both.options.split_mode) == (2, "row")


class TestSlices:
    """One process is given a single MIG slice, and then sees no other GPU."""

    large = dense(100, model_format=ModelFormat.GGUF)
    node = node(mig(0), mig(1), on=host(512 * GIB))

    @pytest.mark.parametrize("facts", [large, st_model(30)])
    def test_are_never_put_together(self, facts: ModelFacts) -> None:
        backend = Backend.VLLM_CUDA if facts.format is SAFETENSORS else Backend.LLAMA_SERVER_CUDA
        alone = refused(facts, self.node, EngineOptions(backend=backend))
        assert "3g.40gb has 3" in alone.message
        assert "on each of" not in alone.message
        named = refused(facts, self.node, EngineOptions(backend=backend, gpus=(0, 1)))
        assert "GPU 1 (NVIDIA H100 80GB HBM3 MIG 3g.40gb) is a MIG slice" in named.message

    def test_take_no_part_in_a_split(self) -> None:
        options = EngineOptions(backend=Backend.LLAMA_SERVER_CUDA, split_mode="layer")
        assert made(smollm2(), self.node, options).options.gpus == (mig(0),)
        beside = node(mig(0), h100(1), h100(2), on=host(512 * GIB))
        assert made(smollm2(), beside, options).options.gpus == (h100(1), h100(2))
        one = made(smollm2(), self.node, EngineOptions(gpus=(0, 1), split_mode="none", main_gpu=1))
        assert one.options.gpus == (mig(1),)

    def test_are_no_equal_gpus_for_tensor_parallelism(self) -> None:
        result = refused(st_model(8), self.node, EngineOptions(tensor_parallel_size=2))
        assert "at most 0 equal GPUs" in result.message
        assert "GPU 0 (NVIDIA H100 80GB HBM3 MIG 3g.40gb) is a MIG slice" in result.message
        assert made(st_model(8), self.node).options.gpus == (mig(0),)


def test_several_cards_for_vllm_are_equal_and_divide_the_heads() -> None:
    two = node(h100(0), h100(1), on=host(512 * GIB))
    result = made(st_model(70), two)
    assert (result.backend, result.options.tensor_parallel_size) == (Backend.VLLM_CUDA, 2)
    assert result.options.devices == ()
    assert made(st_model(8), two).options.tensor_parallel_size == 1
    assert made(st_model(8), two, EngineOptions(tensor_parallel_size=2)).options.tensor_parallel_size == 2
    odd = refused(st_model(8, heads=9), two, EngineOptions(tensor_parallel_size=2))
    assert "9 attention heads cannot be divided among 2" in odd.message
    mixed = refused(st_model(8), node(h100(0), rtx4090(1)), EngineOptions(tensor_parallel_size=2))
    assert "at most 1 equal GPUs" in mixed.message


def test_vllm_cuts_or_copies_cached_heads_evenly() -> None:
    four = node(*(h100(index) for index in range(4)), on=host(512 * GIB))
    grouped = replace(st_model(70), head_count=40, kv_heads=(10,) * 80)
    odd = refused(grouped, four, EngineOptions(tensor_parallel_size=4))
    assert "10 key-value heads cannot be divided among 4 GPUs" in odd.message
    for asked in (EngineOptions(), EngineOptions(tensor_parallel_size=2)):
        assert made(grouped, four, asked).options.tensor_parallel_size == 2
    few = replace(grouped, kv_heads=(2, 0) * 40)
    assert made(few, four, EngineOptions(tensor_parallel_size=4)).options.tensor_parallel_size == 4


def test_vllm_takes_no_more_than_is_free() -> None:
    snapshot = node(h100())
    busy = usage(snapshot, [50 * GIB])
    result = plan(st_model(8), EngineOptions(), snapshot, all_there(snapshot), usage=busy)
    assert isinstance(result, Plan)
    assert result.options.gpu_memory_utilization == 0.62
    asked = EngineOptions(gpu_memory_utilization=0.9, backend=Backend.VLLM_CUDA)
    no = plan(st_model(8), asked, snapshot, all_there(snapshot), usage=busy)
    assert isinstance(no, Refusal)
    assert "72.0 GiB" in no.message
    assert "50.0 GiB" in no.message
    small = plan(st_model(8), EngineOptions(gpu_memory_utilization=0.1), snapshot, all_there(snapshot)[:1])
    assert isinstance(small, Refusal)
    assert "gpu_memory_utilization is 0.10" in small.candidates[0].reasons[0]


def test_a_context_that_nobody_asked_for_shrinks_to_fit_and_says_so() -> None:
    result = made(dense(70), node(rx7900xtx(0), rx7900xtx(1)))
    assert result.options.context == 4096
    (warning,) = result.warnings
    assert "4096" in warning
    assert "24.1 GiB" in warning
    assert "22.8 GiB free" in warning


def test_a_context_that_was_asked_for_costs_slots_but_stays() -> None:
    snapshot = node(rx7900xtx(), on=host(16 * GIB))
    for context, slots in ((8192, 4), (32_768, 2), (65_536, 1)):
        result = made(dense(8), snapshot, EngineOptions(context=context))
        assert (result.options.context, result.options.slots) == (context, slots)
        assert any(f"{slots} slot(s)" in warning for warning in result.warnings) is (slots < 4)
    no = refused(dense(8), snapshot, EngineOptions(context=32_768, slots=4))
    assert "4 x 32768 tokens" in no.message
    assert "ower the context, lower slots" in no.message


@pytest.mark.parametrize(
    ("facts", "context", "words"),
    [
        (smollm2(), 8193, ("8193", "8192", "trained for")),
        (smollm2(), 500_000_000, ("500000000", "8192")),
        (smollm2(context_length=None), 500_000_000, ("500000000", "131072", "does not say")),
    ],
)
def test_absurd_contexts_are_refused(facts: ModelFacts, context: int, words: tuple[str, ...]) -> None:
    message = refused(facts, node(), EngineOptions(context=context)).message
    assert all(word in message for word in words)


def test_a_short_model_gets_its_own_context() -> None:
    assert made(smollm2(context_length=512), node()).options.context == 512
    assert made(smollm2(context_length=None), node()).options.context == 8192


def test_a_refusal_has_the_numbers_and_the_way_out() -> None:
    snapshot = node(rtx4090(), on=host(16 * GIB))
    result = refused(dense(70), snapshot)
    assert result.message.startswith("dense-70b needs ")
    assert "NVIDIA GeForce RTX 4090 has 22.8 GiB free (llama-server-vulkan)" in result.message
    assert "add a GPU" in result.message
    assert len(result.candidates) == len(Backend)
    weighed = next(item for item in result.candidates if item.backend is Backend.LLAMA_SERVER_CUDA)
    assert weighed.footprint is not None
    assert weighed.footprint.gpu_bytes > 24 * GIB


def test_the_cpu_takes_over_with_a_warning_that_has_the_numbers() -> None:
    result = made(dense(70), node(rtx4090(), on=host(128 * GIB)))
    assert result.backend is Backend.LLAMA_SERVER_CPU
    assert "22.8 GiB free" in result.warnings[0]
    assert "llama-server-cuda" in result.warnings[0]
    assert "llama-server-rocm" not in result.warnings[0]
    no = refused(dense(70), node(rtx4090(), on=host(128 * GIB)), EngineOptions(gpus=(0,)))
    assert "22.8 GiB" in no.message


def test_part_of_the_layers_only_when_asked() -> None:
    snapshot = node(rtx4090(), on=host(128 * GIB))
    result = made(dense(70), snapshot, EngineOptions(gpu_layers=20, slots=1))
    assert result.backend is Backend.LLAMA_SERVER_VULKAN
    assert result.options.gpu_layers == 20
    assert 0 < result.footprint.gpu_bytes < result.footprint.host_bytes
    assert result.options.threads == 15


def test_an_apu_counts_its_ram_once() -> None:
    """What the GPU takes of the RAM is gone for the process beside it."""
    fits = node(strix_halo(), on=host(64 * GIB, available=40 * GIB))
    assert made(dense(32), fits).backend is Backend.LLAMA_SERVER_VULKAN
    # 22 GiB would hold the GPU's part alone, but not the process too.
    alone = made(dense(32), fits, EngineOptions(slots=1, context=2048)).footprint
    reserve = int(64 * GIB * 0.05)
    own = int(GIB * 0.95)
    exact = alone.gpu_bytes - own + reserve
    tight = node(strix_halo(), on=host(64 * GIB, available=exact))
    no = refused(dense(32), tight, EngineOptions(slots=1, context=2048, backend=Backend.LLAMA_SERVER_VULKAN))
    assert "of RAM" in no.message


def test_a_chip_on_the_systems_memory_is_a_gpu_like_any_other() -> None:
    result = made(dense(70), node(gb10(), on=host(128 * GIB)))
    assert result.options.gpus == (gb10(),)
    assert result.options.slots == 1


def test_named_gpus() -> None:
    snapshot = node(rtx4090(0), rx7900xtx(0))
    assert made(smollm2(), snapshot, EngineOptions(gpus=(1,))).options.devices == ("Vulkan1",)
    by_uuid = made(smollm2(), snapshot, EngineOptions(gpus=(rtx4090(0).uuid or "",)))
    assert by_uuid.options.gpus == (rtx4090(0),)
    by_address = made(smollm2(), snapshot, EngineOptions(gpus=("0000:C1:00.0",)))
    assert by_address.options.gpus == (rx7900xtx(0),)
    both = made(smollm2(), snapshot, EngineOptions(gpus=(1, 0), main_gpu=1))
    assert both.options.devices == ("Vulkan1", "Vulkan0")
    assert (both.options.split_mode, both.options.main_gpu) == ("layer", 1)
    one = made(smollm2(), snapshot, EngineOptions(split_mode="none", main_gpu=1))
    assert one.options.gpus == (rx7900xtx(0),)
    first = made(smollm2(), snapshot, EngineOptions(gpus=(0, 1), split_mode="none", main_gpu=1))
    assert (first.options.gpus, first.options.main_gpu) == ((rx7900xtx(0),), 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (EngineOptions(gpus=(2,)), "there is no GPU 2 on this node (it has 0: NVIDIA GeForce RTX 4090"),
        (EngineOptions(gpus=("GPU-nope",)), "there is no GPU GPU-nope"),
        (EngineOptions(gpus=(0, 0)), "GPU 0 is named twice"),
        (EngineOptions(gpus=(0, "GPU-0000")), "GPU GPU-0000 is named twice"),
        (EngineOptions(gpus=(1,), backend=Backend.LLAMA_SERVER_CUDA), "cannot use GPU 1"),
        (EngineOptions(main_gpu=1, split_mode="layer", gpus=(0,)), "main_gpu is 1"),
        (EngineOptions(main_gpu=3), "main_gpu is 3"),
    ],
)
def test_wrong_gpus_are_refused(options: EngineOptions, words: str) -> None:
    assert words in refused(smollm2(), node(rtx4090(0), rx7900xtx(0)), options).message


def test_slices_of_one_card_go_by_uuid_only() -> None:
    slices = [
        replace(h100(), uuid=f"MIG-{index}", mig_profile="1g.10gb", memory_total_bytes=10 * GIB)
        for index in (0, 1)
    ]
    snapshot = node(*slices)
    chosen = made(smollm2(), snapshot, EngineOptions(gpus=("mig-1",)))
    assert chosen.options.gpus == (slices[1],)
    no = refused(smollm2(), snapshot, EngineOptions(gpus=(slices[0].pci_bus_id or "",)))
    assert "there is no GPU 0000:01:00.0" in no.message


@pytest.mark.parametrize(
    ("facts", "task", "allowed"),
    [
        (smollm2(), ModelTask.EMBED, True),
        (smollm2(), ModelTask.RERANK, False),
        (embedder(), ModelTask.GENERATE, False),
        (embedder(), ModelTask.RERANK, False),
        (embedder(), ModelTask.EMBED, True),
        (replace(embedder(), task=ModelTask.RERANK), None, True),
    ],
)
def test_a_model_does_what_it_is_made_for(facts: ModelFacts, task: ModelTask | None, allowed: bool) -> None:
    if not allowed:
        assert "cannot" in refused(facts, node(), EngineOptions(task=task)).message
        return
    result = made(facts, node(), EngineOptions(task=task))
    pooling = {facts.task: facts.pooling, ModelTask.RERANK: "rank"}.get(result.options.task, "last")
    assert result.options.pooling == pooling
    assert result.options.prompt_cache_bytes == 0


def test_a_named_backend_is_used_or_refused() -> None:
    snapshot = node(rtx4090())
    for backend in (Backend.LLAMA_SERVER_CPU, Backend.LLAMA_CPP_PYTHON, Backend.LLAMA_SERVER_CUDA):
        result = made(smollm2(), snapshot, EngineOptions(backend=backend))
        assert result.backend is backend
        assert "as asked for" in result.why
        assert result.warnings == ()
        others = [item for item in result.candidates if item.backend is not backend]
        assert all("the options ask for" in item.reasons[0] for item in others)
    wrong = refused(smollm2(), snapshot, EngineOptions(backend=Backend.VLLM_CUDA))
    assert wrong.message == (
        "SmolLM2 135M cannot run on vllm-cuda: it reads safetensors; the model is gguf. "
        "Name another backend or none."
    )
    absent = refused(smollm2(), snapshot, EngineOptions(backend=Backend.LLAMA_SERVER_ROCM))
    assert "no amd_cdna or amd_rdna GPU on this node" in absent.message


def test_exclusions_come_before_everything() -> None:
    snapshot = node(rtx4090())
    excluded = {Backend.LLAMA_SERVER_VULKAN: "it crashed twice on this model: GPU page fault"}
    result = plan(smollm2(), EngineOptions(), snapshot, all_there(snapshot), exclusions=excluded)
    assert isinstance(result, Plan)
    assert result.backend is Backend.LLAMA_SERVER_CUDA
    assert "GPU page fault" in result.candidates[0].reasons[0]
    assert "llama-server-vulkan" in result.why
    named = EngineOptions(backend=Backend.LLAMA_SERVER_VULKAN)
    no = plan(smollm2(), named, snapshot, all_there(snapshot), exclusions=excluded)
    assert isinstance(no, Refusal)
    assert "GPU page fault" in no.message


def test_a_node_without_engines_says_what_to_install() -> None:
    message = refused(smollm2(), node(rtx4090()), statuses=()).message
    assert "nobody has looked for it" in message
    assert "nstall llama-server-vulkan or llama-server-cuda" in message
    assert "llama-server-cpu" in message


def test_a_wrong_request_is_said_once() -> None:
    message = refused(smollm2(), node(), EngineOptions(tensor_parallel_size=2)).message
    assert message == (
        "SmolLM2 135M cannot be placed: tensor_parallel_size is an option of vllm-cuda, vllm-rocm only."
    )


def test_an_engine_that_sees_less_limits_its_own_backend_only() -> None:
    snapshot = node(strix_halo(), on=host(96 * GIB))
    statuses = (
        there(
            Backend.LLAMA_SERVER_VULKAN, device("Vulkan0", "Radeon 8060S Graphics (RADV GFX1151)", 53 * GIB)
        ),
        there(Backend.LLAMA_SERVER_ROCM, device("ROCm0", "AMD Radeon Graphics", 6 * GIB)),
    )
    assert made(dense(32), snapshot, statuses=statuses).backend is Backend.LLAMA_SERVER_VULKAN
    no = refused(dense(32), snapshot, EngineOptions(backend=Backend.LLAMA_SERVER_ROCM), statuses)
    assert "6.0 GiB" in no.message


def test_extra_arguments_are_passed_on_with_a_warning() -> None:
    result = made(smollm2(), node(), EngineOptions(extra_args=("--ctx-size", "9")))
    assert result.options.extra_args == ("--ctx-size", "9")
    assert any("extra_args" in warning for warning in result.warnings)


def test_the_file_names_a_model_without_a_name() -> None:
    message = refused(smollm2(name=None), node(), EngineOptions(context=9999)).message
    assert message.startswith("smollm2-135m-instruct-q4_1.gguf cannot be placed")
