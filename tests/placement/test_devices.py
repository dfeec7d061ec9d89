"""An engine's list of devices against the node's GPUs."""

from dataclasses import replace

import pytest

from tests.placement.builders import (
    amd,
    device,
    h100,
    igpu,
    mi300x,
    mig,
    nvidia,
    rtx4090,
    rx7900xtx,
    strix_halo,
)
from xgen_ray.hardware.types import GPUInfo, GPUType
from xgen_ray.placement import BACKENDS, DEFAULT_POLICY, Backend, EngineDevice
from xgen_ray.placement.devices import match, usable_gpus
from xgen_ray.placement.sizes import GIB, MIB


def matched(gpus: tuple[GPUInfo, ...], *devices: EngineDevice) -> dict[int, str]:
    return {position: found.name for position, found in match(list(enumerate(gpus)), devices).items()}


@pytest.mark.parametrize(
    ("gpus", "devices", "expected"),
    [
        pytest.param(
            (rtx4090(),), [device("CUDA0", "NVIDIA GeForce RTX 4090", 24 * GIB)], {0: "CUDA0"}, id="same name"
        ),
        pytest.param(
            (rx7900xtx(0), igpu(1)),
            [
                device("Vulkan0", "AMD Radeon Graphics (RADV RAPHAEL_MENDOCINO)", 16 * GIB),
                device("Vulkan1", "AMD Radeon RX 7900 XTX (RADV NAVI31)", 24 * GIB),
            ],
            {0: "Vulkan1", 1: "Vulkan0"},
            id="chips tell card and iGPU apart in any order",
        ),
        pytest.param(
            (strix_halo(),),
            [device("Vulkan0", "Radeon 8060S Graphics (RADV GFX1151)", 53 * GIB)],
            {0: "Vulkan0"},
            id="gfx in the name",
        ),
        pytest.param(
            (rtx4090(0), amd(0, "AMD Radeon RX 7900 XTX", "gfx1100", 24 * GIB)),
            [
                device("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)", 24 * GIB),
                device("Vulkan1", "NVIDIA GeForce RTX 4090", 24 * GIB),
            ],
            {0: "Vulkan1", 1: "Vulkan0"},
            id="two vendors",
        ),
        pytest.param(
            (h100(0), h100(1)),
            [
                device("CUDA0", "NVIDIA H100 80GB HBM3", 79 * GIB),
                device("CUDA1", "NVIDIA H100 80GB HBM3", 79 * GIB),
            ],
            {0: "CUDA0", 1: "CUDA1"},
            id="equal cards in order",
        ),
        pytest.param(
            (h100(0), h100(1)),
            [device("Vulkan0", "NVIDIA H100 (0000:02:00.0)"), device("Vulkan1", "NVIDIA H100 (01:00.0)")],
            {0: "Vulkan1", 1: "Vulkan0"},
            id="by address",
        ),
        pytest.param(
            (rtx4090(), nvidia(1, "NVIDIA GeForce GTX 1660", 6 * GIB)),
            [device("CUDA0", "NVIDIA GeForce GTX 1660", 6 * GIB)],
            {1: "CUDA0"},
            id="the one that is visible",
        ),
        pytest.param(
            (rtx4090(),), [device("Vulkan0", "NVIDIA GeForce GTX 1660", 6 * GIB)], {}, id="another model"
        ),
        pytest.param(
            (rx7900xtx(),), [device("Vulkan0", "Intel(R) Arc(tm) A770 Graphics", 16 * GIB)], {}, id="Intel"
        ),
        pytest.param(
            (igpu(0),), [device("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)")], {}, id="another chip"
        ),
        pytest.param(
            (mi300x(),), [device("ROCm0", "AMD Instinct MI300X", 191 * GIB)], {0: "ROCm0"}, id="MI300X"
        ),
        pytest.param(
            (nvidia(0, "NVIDIA GeForce RTX 3060", 8 * GIB), nvidia(1, "NVIDIA GeForce RTX 3060", 12 * GIB)),
            [
                device("CUDA0", "NVIDIA GeForce RTX 3060", 12 * GIB),
                device("CUDA1", "NVIDIA GeForce RTX 3060", 8 * GIB),
            ],
            {0: "CUDA1", 1: "CUDA0"},
            id="by memory",
        ),
        pytest.param((rtx4090(),), [], {}, id="nothing listed"),
    ],
)
def test_match(gpus: tuple[GPUInfo, ...], devices: list[EngineDevice], expected: dict[int, str]) -> None:
    assert matched(gpus, *devices) == expected


def test_a_row_takes_its_own_devices_only_and_says_why_not_the_others() -> None:
    both = (device("CUDA0", "NVIDIA GeForce RTX 4090"), device("Vulkan0", "NVIDIA GeForce RTX 4090"))
    for backend, name in ((Backend.LLAMA_SERVER_CUDA, "CUDA0"), (Backend.LLAMA_SERVER_VULKAN, "Vulkan0")):
        usable, reasons = usable_gpus(BACKENDS[backend], (rtx4090(),), both, DEFAULT_POLICY)
        assert [item.device.name for item in usable if item.device] == [name]
        assert reasons == ()
    usable, reasons = usable_gpus(
        BACKENDS[Backend.LLAMA_SERVER_ROCM], (rtx4090(), rx7900xtx()), both, DEFAULT_POLICY
    )
    assert usable == ()
    assert "not for nvidia" in reasons[0]
    assert "does not list it" in reasons[1]


def test_a_slice_hides_other_gpus_from_cuda_but_not_from_a_model() -> None:
    gpus = (mig(0), mig(1), rtx4090(1))
    row = BACKENDS[Backend.LLAMA_SERVER_CUDA]
    usable, reasons = usable_gpus(row, gpus, (device("CUDA0", mig().device_name, 40 * GIB),), DEFAULT_POLICY)
    assert [(item.position, item.device.name) for item in usable if item.device] == [
        (0, "CUDA0"),
        (1, "CUDA0"),
        (2, "CUDA0"),
    ]
    assert reasons == ()
    assert usable_gpus(row, gpus, (device("Vulkan0", mig().device_name),), DEFAULT_POLICY)[0] == ()


def test_metal_goes_by_either_name() -> None:
    apple = GPUInfo(GPUType.APPLE_MPS, 0, "Apple M3 Max", 96 * GIB, integrated=True, unified_memory=True)
    for name in ("MTL0", "Metal0"):
        usable, _ = usable_gpus(
            BACKENDS[Backend.LLAMA_SERVER_METAL], (apple,), (device(name, "Apple M3 Max"),), DEFAULT_POLICY
        )
        assert len(usable) == 1


def test_vega_runs_where_llama_cpp_lists_it() -> None:
    vega = amd(0, "AMD Radeon VII", "gfx906", 16 * GIB, GPUType.UNKNOWN)
    listed = (device("ROCm0", "AMD Radeon VII", 16 * GIB),)
    assert usable_gpus(BACKENDS[Backend.LLAMA_SERVER_ROCM], (vega,), listed, DEFAULT_POLICY)[0]
    assert not usable_gpus(BACKENDS[Backend.VLLM_ROCM], (vega,), (), DEFAULT_POLICY)[0]


@pytest.mark.parametrize(
    ("capability", "usable"), [("7.0", False), ("7.5", True), ("12.1", True), (None, True)]
)
def test_vllm_needs_a_compute_capability(capability: str | None, usable: bool) -> None:
    gpu = replace(rtx4090(), compute_capability=capability, memory_total_bytes=512 * MIB)
    kept, reasons = usable_gpus(BACKENDS[Backend.VLLM_CUDA], (gpu,), (), DEFAULT_POLICY)
    assert bool(kept) is usable
    assert bool(reasons) is not usable
