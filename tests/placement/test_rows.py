"""The table of backends agrees with itself."""

import pytest

from tests.placement.builders import igpu, mi300x, node, nvidia, rtx4090, rx7900xtx, strix_halo, there
from xgen_ray.hardware.types import GPUInfo
from xgen_ray.models.types import ModelFormat
from xgen_ray.placement import BACKENDS, PREFERENCE, Backend, DeviceAPI, available_backends, recommend
from xgen_ray.placement.rows import preference
from xgen_ray.placement.types import BackendStatus, EngineDevice


def test_every_backend_has_its_row() -> None:
    assert list(BACKENDS) == [row.backend for row in BACKENDS.values()]
    assert set(BACKENDS) == set(Backend)


def test_a_row_needs_a_gpu_exactly_when_its_api_is_one() -> None:
    for row in BACKENDS.values():
        assert row.needs_gpu == (row.device_api is not DeviceAPI.CPU)
        assert row.binary_names or row.module


def test_preference_has_the_backends_of_each_format_and_then_all_others() -> None:
    for model_format in ModelFormat:
        able = {row.backend for row in BACKENDS.values() if model_format in row.formats}
        assert set(PREFERENCE[model_format]) == able
        assert sorted(preference(model_format)) == sorted(Backend)
    assert PREFERENCE[ModelFormat.GGUF][:3] == (
        Backend.LLAMA_SERVER_VULKAN,
        Backend.LLAMA_SERVER_CUDA,
        Backend.LLAMA_SERVER_ROCM,
    )
    assert PREFERENCE[ModelFormat.GGUF][-2:] == (Backend.LLAMA_SERVER_CPU, Backend.LLAMA_CPP_PYTHON)


EVERYTHING = tuple(
    there(
        row.backend,
        *(
            EngineDevice(f"{row.device_prefix}{order}", name)
            for order, name in enumerate(
                ("NVIDIA GeForce RTX 4090", "AMD Radeon RX 7900 XTX (RADV NAVI31)", "AMD Instinct MI300X")
            )
            if row.device_prefix
        ),
    )
    for row in BACKENDS.values()
)
CPU_ONLY = {Backend.VLLM_CPU, Backend.LLAMA_SERVER_CPU, Backend.LLAMA_CPP_PYTHON}


@pytest.mark.parametrize(
    ("gpus", "expected", "best"),
    [
        ((), set(), "cpu"),
        (
            (rtx4090(),),
            {Backend.VLLM_CUDA, Backend.LLAMA_SERVER_CUDA, Backend.LLAMA_SERVER_VULKAN},
            "vllm",
        ),
        (
            (rx7900xtx(),),
            {Backend.VLLM_ROCM, Backend.LLAMA_SERVER_ROCM, Backend.LLAMA_SERVER_VULKAN},
            "vllm",
        ),
        (
            (mi300x(),),
            {Backend.VLLM_ROCM, Backend.LLAMA_SERVER_ROCM, Backend.LLAMA_SERVER_VULKAN},
            "vllm",
        ),
        ((nvidia(0, "NVIDIA GeForce GTX 1080", capability="6.1"),), set(), "cpu"),
    ],
    ids=["cpu", "4090", "7900xtx", "mi300x", "gtx1080"],
)
def test_a_backend_takes_hardware_and_engine(
    gpus: tuple[GPUInfo, ...], expected: set[Backend], best: str
) -> None:
    snapshot = node(*gpus)
    merged = available_backends(snapshot, EVERYTHING)
    assert {status.backend for status in merged if status.available} == expected | CPU_ONLY
    assert [status.backend for status in merged] == list(Backend)
    assert all(status.reason for status in merged)
    assert recommend(snapshot, EVERYTHING) == best
    # No engine, no backend, whatever the hardware.
    nothing = available_backends(snapshot, ())
    assert not any(status.available for status in nothing)
    assert recommend(snapshot, ()) == "cpu"


def test_a_gfx_that_vllm_does_not_support_says_so_and_can_be_added() -> None:
    snapshot = node(igpu(0))
    statuses = [
        there(Backend.VLLM_ROCM),
        there(Backend.LLAMA_SERVER_ROCM, EngineDevice("ROCm0", "AMD Radeon Graphics")),
    ]
    merged = {status.backend: status for status in available_backends(snapshot, statuses)}
    assert not merged[Backend.VLLM_ROCM].available
    assert "gfx1036" in merged[Backend.VLLM_ROCM].reason
    assert "gfx1100" in merged[Backend.VLLM_ROCM].reason
    assert recommend(snapshot, statuses) == "llama-server"
    assert recommend(snapshot, statuses, vllm_rocm_gfx=frozenset({"gfx1036"})) == "vllm"


def test_missing_hardware_is_named_with_what_the_engine_said() -> None:
    cuda = there(Backend.LLAMA_SERVER_CUDA, EngineDevice("CUDA0", "NVIDIA GeForce RTX 4090"))
    merged = {status.backend: status for status in available_backends(node(strix_halo()), [cuda])}
    assert merged[Backend.LLAMA_SERVER_CUDA].reason == "no nvidia GPU on this node (the engine: found)"
    assert merged[Backend.LLAMA_SERVER_CUDA].devices == ()


def test_a_build_that_lists_no_device_is_not_available() -> None:
    """llama-server without its device runs on the CPU in silence: that must not pass for a GPU backend."""
    merged = {s.backend: s for s in available_backends(node(rtx4090()), [there(Backend.LLAMA_SERVER_VULKAN)])}
    assert not merged[Backend.LLAMA_SERVER_VULKAN].available
    assert "does not list it (it lists: none)" in merged[Backend.LLAMA_SERVER_VULKAN].reason


def test_of_two_words_on_one_backend_the_better_counts_in_any_order() -> None:
    good = there(Backend.LLAMA_SERVER_CPU)
    bad = BackendStatus(Backend.LLAMA_SERVER_CPU, available=False, reason="not found")
    for statuses in ([good, bad], [bad, good]):
        merged = {s.backend: s for s in available_backends(node(), statuses)}
        assert merged[Backend.LLAMA_SERVER_CPU].available
