import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from xgen_ray.backends.discovery import BUNDLED, discover
from xgen_ray.placement.types import Backend, BackendStatus

# Installed, it would be tried by each discovery here; its own tests do that.
pytestmark = pytest.mark.usefixtures("no_llama_cpp_python")

Install = Callable[[str, str], str]
VULKAN, CUDA, CPU = Backend.LLAMA_SERVER_VULKAN, Backend.LLAMA_SERVER_CUDA, Backend.LLAMA_SERVER_CPU


NO_CPU: Mapping[Backend, Sequence[str]] = {CPU: ("/nowhere/llama-server",)}


async def look(
    folder: Path, path: str = "", commands: Mapping[Backend, Sequence[str]] = NO_CPU
) -> Mapping[Backend, BackendStatus]:
    """What discovery says; about the CPU only where a test asks for it, since that runs an engine."""
    statuses = await discover(path=path, commands=commands, cache_dir=folder / "cache", env=os.environ)
    assert [status.backend for status in statuses] == list(Backend)
    assert all(status.reason for status in statuses)
    return {status.backend: status for status in statuses}


async def test_a_gpu_build_counts_when_it_lists_a_real_device(install: Install, tmp_path: Path) -> None:
    found = await look(tmp_path, install("llama-server-vulkan", "vulkan"))
    status = found[VULKAN]
    assert status.available
    assert status.command == (str(tmp_path / "bin" / "llama-server-vulkan"),)
    assert status.version == "4711 (deadbeef)"
    assert [device.name for device in status.devices] == ["Vulkan0"]
    assert "Radeon RX 7900 XTX" in status.reason
    assert found[CUDA].reason == "no llama-server-cuda or llama-server on PATH"


async def test_a_program_that_a_package_brought_counts_without_being_on_path(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the extra `vulkan` does: `xgen-ray` may be started by its full path."""
    scripts = install("llama-server-vulkan", "vulkan")
    monkeypatch.setattr("sysconfig.get_path", lambda name: scripts if name == "scripts" else "")
    found = await look(tmp_path)
    assert found[VULKAN].command == (str(tmp_path / "bin" / "llama-server-vulkan"),)


async def test_a_software_renderer_is_no_gpu(install: Install, tmp_path: Path) -> None:
    status = (await look(tmp_path, install("llama-server-vulkan", "software")))[VULKAN]
    assert not status.available
    assert status.devices == ()
    assert "software renderers only" in status.reason
    assert "llvmpipe" in status.reason


async def test_a_plain_llama_server_counts_for_what_it_lists_and_for_the_cpu(
    install: Install, tmp_path: Path
) -> None:
    found = await look(tmp_path, install("llama-server", "mixed"), {})
    assert [device.name for device in found[VULKAN].devices] == ["Vulkan1"]
    assert [device.name for device in found[CUDA].devices] == ["CUDA0"]
    assert not found[Backend.LLAMA_SERVER_ROCM].available
    assert (
        "lists no rocm device (it lists: Vulkan0, Vulkan1, CUDA0)" in found[Backend.LLAMA_SERVER_ROCM].reason
    )
    assert found[CPU].available
    assert found[CPU].command == (str(tmp_path / "bin" / "llama-server"),)
    assert "has computed a token" in found[CPU].reason
    assert trials(tmp_path) == 1
    assert (await look(tmp_path, str(tmp_path / "bin"), {}))[CPU] == found[CPU]


async def test_a_device_by_its_former_name_counts(install: Install, tmp_path: Path) -> None:
    found = await look(tmp_path, install("llama-server-metal", "metal-of-old"))
    assert found[Backend.LLAMA_SERVER_METAL].available


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("good", "lists no vulkan device"),
        ("illegal-instruction", "built for another processor"),
        ("missing-library", "libfoo.so.1"),
    ],
)
async def test_a_build_that_cannot_run_is_not_there(
    install: Install, tmp_path: Path, behaviour: str, words: str
) -> None:
    status = (await look(tmp_path, install("llama-server-vulkan", behaviour)))[VULKAN]
    assert not status.available
    assert words in status.reason


@pytest.mark.parametrize(
    ("behaviour", "words", "remembered"),
    [
        ("dies-computing", "built for another processor", 1),
        ("cannot-compute", "the template is broken", 0),
        ("bad-model", "cannot compute on this CPU", 0),
    ],
)
async def test_a_cpu_engine_must_compute(
    install: Install, tmp_path: Path, behaviour: str, words: str, remembered: int
) -> None:
    """What this processor lacks is remembered; other failures are tried again."""
    path = install("llama-server-cpu", behaviour)
    commands = {CPU: [f"{path}/llama-server-cpu"]}
    status = (await look(tmp_path, commands=commands))[CPU]
    assert not status.available
    assert words in status.reason
    assert status.command == ()
    assert trials(tmp_path) == remembered
    if remembered:
        assert (await look(tmp_path, commands=commands))[CPU] == status


def trials(folder: Path) -> int:
    return len(list((folder / "cache" / "engines").glob("trial-*.json")))


async def test_the_next_candidate_serves_and_the_reason_tells_of_the_first(
    install: Install, tmp_path: Path
) -> None:
    install("llama-server-cpu", "illegal-instruction")
    status = (await look(tmp_path, install("llama-server", "good"), {}))[CPU]
    assert status.available
    assert status.command == (str(tmp_path / "bin" / "llama-server"),)
    assert "llama-server-cpu does not run" in status.reason


async def test_a_command_from_the_settings_comes_before_path_and_may_have_arguments(
    install: Install, tmp_path: Path, fake: Callable[[str], tuple[str, ...]]
) -> None:
    path = install("llama-server-vulkan", "vulkan")
    status = (await look(tmp_path, path, {**NO_CPU, VULKAN: fake("software")}))[VULKAN]
    assert not status.available
    assert status.reason.startswith("sh lists software renderers only")


async def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    status = (await look(tmp_path, commands={**NO_CPU, VULKAN: ("/nowhere/llama-server",)}))[VULKAN]
    assert not status.available
    assert "/nowhere/llama-server" in status.reason


@pytest.mark.engine
async def test_the_bundled_server_makes_every_node_a_cpu_node(tmp_path: Path) -> None:
    for _ in range(2):
        status = (await look(tmp_path, commands={}))[CPU]
        assert status.available
        assert status.command == BUNDLED
        assert status.version is not None
        assert "xllamacpp" in status.version
