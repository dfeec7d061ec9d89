"""A real Vulkan build of llama-server on Mesa's software renderer; ``tests/setup/vulkan.sh`` brings both."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.plans import XTX, facts, plan
from xgen_ray.backends.discovery import discover
from xgen_ray.backends.engine import create_adapter
from xgen_ray.backends.probe import ask, parse_devices
from xgen_ray.backends.trial_model import trial_model
from xgen_ray.errors import EngineFailed
from xgen_ray.placement.types import Backend, EngineDevice, Plan
from xgen_ray.process import FailureClass

pytestmark = pytest.mark.engine

SETUP = Path(__file__).parents[2] / ".cache" / "vulkan"


@dataclass(frozen=True, slots=True)
class VulkanBuild:
    """The program, and an environment in which its one Vulkan device is the software renderer.

    llama.cpp leaves out software renderers by itself; in ``shown`` it does not.
    """

    program: str
    env: Mapping[str, str]

    @property
    def shown(self) -> Mapping[str, str]:
        return {**self.env, "GGML_VK_VISIBLE_DEVICES": "0"}

    async def devices(self, env: Mapping[str, str]) -> tuple[EngineDevice, ...]:
        listed = await ask([self.program], ["--list-devices"], env)
        assert listed.failure is None, listed.failure
        return parse_devices(listed.lines)


@pytest.fixture(scope="module")
def vulkan() -> VulkanBuild:
    missing = SETUP / "missing"
    if missing.exists() or not (SETUP / ".done").exists():
        pytest.skip(missing.read_text().strip() if missing.exists() else "make test sets up what this needs")
    variables = {"VK_DRIVER_FILES": str(SETUP / "driver.json")}
    unpacked = [*SETUP.glob("root/usr/lib/*-linux-gnu"), *SETUP.glob("root/lib/*-linux-gnu")]
    if unpacked:
        others = os.environ.get("LD_LIBRARY_PATH")
        variables["LD_LIBRARY_PATH"] = os.pathsep.join([*map(str, unpacked), *([others] if others else [])])
    (program,) = SETUP.glob("server/*/bin/llama-server")
    return VulkanBuild(str(program), {**os.environ, **variables})


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


def on_vulkan0(vulkan: VulkanBuild, folder: Path) -> Plan:
    """All layers of a tiny model on the engine's first Vulkan device, and a log that says where they went."""
    model = trial_model(folder)
    return plan(
        Backend.LLAMA_SERVER_VULKAN,
        (vulkan.program, "--verbosity", "4"),
        facts(str(model), model.stat().st_size, architecture="llama", has_chat_template=False),
        context=256,
        slots=1,
        batch=64,
        ubatch=64,
        threads=1,
        gpu_layers=99,
        devices=("Vulkan0",),
        gpus=(XTX,),
    )


async def test_a_model_computes_on_a_vulkan_device(vulkan: VulkanBuild, tmp_path: Path) -> None:
    made = on_vulkan0(vulkan, tmp_path)
    async with create_adapter(made, host="127.0.0.1", base_env=vulkan.shown, cache_dir=tmp_path) as engine:
        # Returns when it has computed a token.
        await engine.load(lambda _: None)
        log = "\n".join(engine.logs().tail(4000))
    assert "offloaded 2/2 layers to GPU" in log
    assert "Vulkan0 KV buffer" in log


async def test_a_device_that_is_gone_is_a_failure_and_no_load_on_the_cpu(
    vulkan: VulkanBuild, tmp_path: Path
) -> None:
    made = on_vulkan0(vulkan, tmp_path)
    with pytest.raises(EngineFailed, match="Vulkan0") as caught:
        async with create_adapter(made, host="127.0.0.1", base_env=vulkan.env, cache_dir=tmp_path) as engine:
            await engine.load(lambda _: None)
    assert caught.value.failure == FailureClass.DEVICE_MISSING
