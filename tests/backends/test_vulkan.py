"""A real Vulkan build of llama-server on Mesa's software renderer; ``tests/setup/vulkan.sh`` brings both."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.plans import H100, XTX, facts, plan
from xgen_ray.backends.discovery import discover
from xgen_ray.backends.engine import create_adapter
from xgen_ray.backends.probe import ask, parse_devices
from xgen_ray.backends.trial_model import trial_model
from xgen_ray.backends.visibility import visibility
from xgen_ray.backends.vulkan_order import vulkan_positions
from xgen_ray.errors import EngineFailed
from xgen_ray.hardware.types import GPUInfo
from xgen_ray.placement.types import Backend, DeviceAPI, EngineDevice, Plan
from xgen_ray.process import FailureClass

# The renderer compiles every shader with LLVM: half a minute of computing, once, and of another machine's
# load on top of it.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SETUP = Path(__file__).parents[2] / ".cache" / "vulkan"


@dataclass(frozen=True, slots=True)
class VulkanBuild:
    """The program, and an environment in which its one Vulkan device is the software renderer.

    llama.cpp leaves out software renderers by itself; in ``shown`` it does not. ``twice`` shows the one
    renderer as two devices, Vulkan0 and Vulkan1, each with memory of its own.
    """

    program: str
    env: Mapping[str, str]

    @property
    def shown(self) -> Mapping[str, str]:
        return {**self.env, "GGML_VK_VISIBLE_DEVICES": "0"}

    @property
    def twice(self) -> Mapping[str, str]:
        return {**self.env, "GGML_VK_VISIBLE_DEVICES": "0,0"}

    async def devices(self, env: Mapping[str, str]) -> tuple[EngineDevice, ...]:
        listed = await ask([self.program], ["--list-devices"], env)
        assert listed.failure is None, listed.failure
        return parse_devices(listed.lines)


@pytest.fixture(scope="module")
def vulkan() -> VulkanBuild:
    missing = SETUP / "missing"
    if missing.exists() or not (SETUP / ".done").exists():
        pytest.skip(missing.read_text().strip() if missing.exists() else "make test sets up what this needs")
    variables = {
        "VK_DRIVER_FILES": str(SETUP / "driver.json"),
        # What a shader costs is its compilation: as little of it as there can be, and only once.
        "GALLIVM_PERF": "nopt",
        "GGML_VK_DISABLE_FUSION": "1",
        "MESA_SHADER_CACHE_DIR": str(SETUP / "shaders"),
    }
    unpacked = [*SETUP.glob("root/usr/lib/*-linux-gnu"), *SETUP.glob("root/lib/*-linux-gnu")]
    if unpacked:
        others = os.environ.get("LD_LIBRARY_PATH")
        variables["LD_LIBRARY_PATH"] = os.pathsep.join([*map(str, unpacked), *([others] if others else [])])
    (program,) = SETUP.glob("server/*/bin/llama-server")
    return VulkanBuild(str(program), {**os.environ, **variables})


@pytest.mark.usefixtures("no_llama_cpp_python")
async def test_a_software_renderer_is_no_gpu(vulkan: VulkanBuild, tmp_path: Path) -> None:
    (device,) = await vulkan.devices(vulkan.shown)
    assert "llvmpipe" in device.description
    commands = {
        Backend.LLAMA_SERVER_VULKAN: [vulkan.program],
        Backend.LLAMA_SERVER_CPU: ["/nowhere/llama-server"],
    }
    statuses = await discover(path="", commands=commands, cache_dir=tmp_path, env=vulkan.shown)
    (status,) = [status for status in statuses if status.backend is Backend.LLAMA_SERVER_VULKAN]
    assert not status.available
    assert "software renderers only" in status.reason
    assert status.devices == ()


async def test_a_hidden_device_is_not_listed(vulkan: VulkanBuild) -> None:
    assert await vulkan.devices(vulkan.env) == ()
    assert await vulkan.devices({**vulkan.env, "GGML_VK_VISIBLE_DEVICES": ""}) == ()


def limited(
    env: Mapping[str, str], api: DeviceAPI, *gpus: GPUInfo, positions: Sequence[int] | None = None
) -> Mapping[str, str]:
    """``env`` as a process has it that was given ``gpus`` and no other."""
    changed = {**env, **visibility(api, gpus, positions)}
    return {name: value for name, value in changed.items() if value is not None}


@pytest.mark.parametrize(
    ("api", "gpus"),
    [(DeviceAPI.CPU, ()), (DeviceAPI.VULKAN, ()), (DeviceAPI.CUDA, (H100,)), (DeviceAPI.ROCM, (XTX,))],
)
async def test_who_was_given_no_vulkan_device_sees_none(
    vulkan: VulkanBuild, api: DeviceAPI, gpus: tuple[GPUInfo, ...]
) -> None:
    assert await vulkan.devices(limited(vulkan.twice, api, *gpus)) == ()


async def test_who_was_given_a_vulkan_device_sees_it_and_no_other(vulkan: VulkanBuild) -> None:
    for env, name in ((vulkan.shown, "Vulkan0"), (vulkan.twice, "Vulkan0"), (vulkan.twice, "Vulkan1")):
        positions = await vulkan_positions([vulkan.program], env, [name])
        assert positions == (0,)
        (device,) = await vulkan.devices(limited(env, DeviceAPI.VULKAN, XTX, positions=positions))
        assert device.name == "Vulkan0"
        assert "llvmpipe" in device.description


async def test_the_real_build_says_when_there_are_no_more_devices(vulkan: VulkanBuild) -> None:
    # Asked to list two where there is one, it names the first that is missing and lists none.
    env = {**vulkan.env, "GGML_VK_VISIBLE_DEVICES": "0,1"}
    answer = await ask([vulkan.program], ["--list-devices"], env)
    assert parse_devices(answer.lines) == ()
    assert any("Invalid device index 1" in line for line in answer.lines)
    # Left to itself it lists none here, so there is nothing whose position could be told.
    assert await vulkan_positions([vulkan.program], vulkan.env, ["Vulkan0"]) is None


def on_device(vulkan: VulkanBuild, folder: Path, device: str) -> Plan:
    """All layers of a tiny model on a Vulkan device, and a log that says where they went."""
    model = trial_model(folder)
    return plan(
        Backend.LLAMA_SERVER_VULKAN,
        (vulkan.program, "--verbosity", "4"),
        facts(str(model), model.stat().st_size, architecture="llama", has_chat_template=False),
        context=256,
        slots=1,
        batch=64,
        # One token at a time and nothing but the canary's: of all kernels these are the fewest.
        ubatch=1,
        flash_attention=True,
        extra_args=("--no-warmup",),
        threads=1,
        gpu_layers=99,
        devices=(device,),
        gpus=(XTX,),
    )


@pytest.mark.skipif(
    "avx512f" not in Path("/proc/cpuinfo").read_text(),
    reason="what this build of llama-server leaves to the CPU needs a processor with AVX-512",
)
async def test_a_model_computes_on_the_vulkan_device_it_was_given_and_on_no_other(
    vulkan: VulkanBuild, tmp_path: Path
) -> None:
    made = on_device(vulkan, tmp_path, "Vulkan1")
    async with create_adapter(made, host="127.0.0.1", base_env=vulkan.twice, cache_dir=tmp_path) as engine:
        # Returns when it has computed a token.
        await engine.load(lambda _: None)
        log = "\n".join(engine.logs().tail(4000))
    assert "offloaded 2/2 layers to GPU" in log
    # The one device that it was shown of the two: it counts from 0.
    assert set(re.findall(r"(Vulkan\d)\S* .*buffer", log)) == {"Vulkan0"}


async def test_a_device_that_is_gone_is_a_failure_and_no_load_on_the_cpu(
    vulkan: VulkanBuild, tmp_path: Path
) -> None:
    made = on_device(vulkan, tmp_path, "Vulkan0")
    with pytest.raises(EngineFailed, match="Vulkan0") as caught:
        async with create_adapter(made, host="127.0.0.1", base_env=vulkan.env, cache_dir=tmp_path) as engine:
            await engine.load(lambda _: None)
    assert caught.value.failure == FailureClass.DEVICE_MISSING
