import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backends.plans import H100, H100_TOO, JETSON, SAMPLES, XTX, plan
from xgen_ray.backends.flags import parse_help
from xgen_ray.backends.llama_server import build
from xgen_ray.backends.visibility import renumbered, visibility
from xgen_ray.hardware.types import GPUInfo
from xgen_ray.placement.types import Backend, DeviceAPI, Plan
from xgen_ray.process import ChildProcess

CURRENT = parse_help((SAMPLES / "help_vulkan_build.txt").read_text())
# What an operator, or Ray, may have set for the process that starts the engine.
INHERITED = {
    "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
    "CUDA_VISIBLE_DEVICES": "7",
    "HIP_VISIBLE_DEVICES": "7",
    "ROCR_VISIBLE_DEVICES": "7",
    "GGML_VK_VISIBLE_DEVICES": "2,0,1",
}
NO_CUDA, NO_HIP = {"CUDA_VISIBLE_DEVICES": "-1"}, {"HIP_VISIBLE_DEVICES": "-1"}
ALWAYS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
NO_VULKAN = {"GGML_VK_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("api", "prefix", "listed", "named"),
    [
        (DeviceAPI.CUDA, "CUDA", ("CUDA2", "CUDA5"), ("CUDA0", "CUDA1")),
        (DeviceAPI.ROCM, "ROCm", ("ROCm1",), ("ROCm0",)),
        (DeviceAPI.VULKAN, "Vulkan", ("Vulkan2",), ("Vulkan2",)),
        (DeviceAPI.METAL, "MTL", ("MTL0",), ("MTL0",)),
        (DeviceAPI.CUDA, "CUDA", (), ()),
    ],
)
def test_devices_are_called_as_the_limited_process_counts_them(
    api: DeviceAPI, prefix: str, listed: tuple[str, ...], named: tuple[str, ...]
) -> None:
    assert renumbered(api, prefix, listed) == named


def test_a_limited_vulkan_process_counts_from_zero_as_well() -> None:
    assert renumbered(DeviceAPI.VULKAN, "Vulkan", ("Vulkan2", "Vulkan0"), (3, 1)) == ("Vulkan0", "Vulkan1")


WHOLE = (replace(H100, cuda_index=0), replace(H100_TOO, cuda_index=3))


@pytest.mark.parametrize(
    ("gpus", "by_index", "expected"),
    [
        (WHOLE, True, "0,3"),
        (WHOLE, False, "GPU-1f0a,GPU-77b2"),
        # Beside GPUs in MIG mode nobody knows how CUDA counts.
        ((H100, replace(H100, uuid="MIG-1", mig_profile="1g.10gb")), True, "GPU-1f0a,MIG-1"),
        ((JETSON,), True, "0"),
    ],
)
def test_cuda_gets_numbers_where_an_engine_reads_nothing_else_and_they_are_certain(
    gpus: tuple[GPUInfo, ...], by_index: bool, expected: str
) -> None:
    variables = visibility(DeviceAPI.CUDA, gpus, cuda_by_index=by_index)
    assert (variables["CUDA_VISIBLE_DEVICES"], variables["CUDA_DEVICE_ORDER"]) == (expected, "PCI_BUS_ID")


@pytest.mark.parametrize(
    ("made", "positions", "expected"),
    [
        pytest.param(plan(), None, {**ALWAYS, **NO_CUDA, **NO_HIP, **NO_VULKAN}, id="cpu"),
        pytest.param(
            plan(Backend.LLAMA_SERVER_CUDA, gpus=(H100_TOO, H100), devices=("CUDA1", "CUDA0"), gpu_layers=9),
            None,
            {**ALWAYS, "CUDA_VISIBLE_DEVICES": "GPU-77b2,GPU-1f0a", **NO_HIP, **NO_VULKAN},
            id="cuda",
        ),
        pytest.param(
            plan(Backend.LLAMA_SERVER_ROCM, gpus=(XTX,), devices=("ROCm1",), gpu_layers=9),
            None,
            {**ALWAYS, "HIP_VISIBLE_DEVICES": "1", **NO_VULKAN},
            id="rocm",
        ),
        pytest.param(
            plan(Backend.LLAMA_SERVER_VULKAN, gpus=(XTX,), devices=("Vulkan1",), gpu_layers=9),
            (0,),
            {**ALWAYS, **NO_CUDA, **NO_HIP, "GGML_VK_VISIBLE_DEVICES": "0"},
            id="vulkan",
        ),
        pytest.param(
            plan(Backend.LLAMA_SERVER_VULKAN, gpus=(XTX,), devices=("Vulkan1",), gpu_layers=9),
            None,
            {**ALWAYS, **NO_CUDA, **NO_HIP, "GGML_VK_VISIBLE_DEVICES": "2,0,1"},
            id="vulkan whose positions nobody knows",
        ),
    ],
)
async def test_what_the_engine_itself_finds_in_its_environment(
    made: Plan, positions: tuple[int, ...] | None, expected: Mapping[str, str], tmp_path: Path
) -> None:
    engine = tmp_path / "llama-server"
    engine.write_text("#!/bin/sh\nenv\n")
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    launch = build(made, port=4711, key="k3y", known=CURRENT, vulkan_positions=positions)
    spec = replace(launch.spec, argv=(str(engine), *launch.spec.argv[1:]))
    async with ChildProcess(spec, base_env={"PATH": "/usr/bin:/bin", **INHERITED}) as child:
        await child.wait()
    lines, _ = child.logs.read(limit=100)
    found = dict(line.split("=", 1) for line in lines if line.partition("=")[0] in INHERITED)
    assert found == dict(expected)
