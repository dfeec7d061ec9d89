"""What an installed vLLM would do on a node, and how its Python is found."""

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.backends.vllm_standin import fake_vllm, fake_vllm_python, kept_answers
from xgen_ray.backends.discovery import discover
from xgen_ray.backends.probe import AnswerCache
from xgen_ray.backends.vllm_ask import ask_build, ask_flags, fingerprint
from xgen_ray.backends.vllm_build import Command, VllmBuild, interpreter_of, judge, parse_build
from xgen_ray.backends.vllm_questions import MARK
from xgen_ray.errors import EngineFailed
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Backend, BackendStatus, DeviceAPI

PYTHON = ("/opt/vllm/bin/python",)
SERVER = ("-m", "vllm.entrypoints.openai.api_server")


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (PYTHON, PYTHON),
        (("/opt/vllm/bin/python3.12",), ("/opt/vllm/bin/python3.12",)),
        ((*PYTHON, *SERVER), PYTHON),
        ((*PYTHON, "-m", "vllm.entrypoints.cli.main", "serve"), PYTHON),
        (("docker", "exec", "box", "python3"), None),
        (("sudo", *PYTHON, *SERVER), None),
        (("sudo", "vllm", "serve"), None),
        ((*PYTHON, "serve"), None),
        (("vllm",), None),
        (("/opt/llama-server",), None),
        ((), None),
    ],
)
def test_the_python_that_has_vllm(command: Command, found: Command | None) -> None:
    assert interpreter_of(command, "/nowhere") == found


@pytest.mark.parametrize(
    "first_line", ["#!{python}", "#! {python} ", "#!/bin/sh\n'''exec' \"{python}\" \"$0\""]
)
@pytest.mark.parametrize("words", [("vllm",), ("vllm", "serve")])
def test_a_vllm_command_says_which_python_runs_it(
    tmp_path: Path, first_line: str, words: tuple[str, ...]
) -> None:
    python = tmp_path / "env" / "bin" / "python3.11"
    python.parent.mkdir(parents=True)
    python.touch()
    script = tmp_path / "vllm"
    script.write_text(first_line.format(python=python) + "\nimport sys\n")
    script.chmod(0o755)
    assert interpreter_of(words, str(tmp_path)) == (str(python),)


def test_a_vllm_command_without_a_word_stands_beside_its_python(tmp_path: Path) -> None:
    (tmp_path / "python").touch()
    script = tmp_path / "vllm"
    script.write_bytes(b"\x7fELF\xff")
    script.chmod(0o755)
    link = tmp_path / "elsewhere"
    link.mkdir()
    (link / "vllm").symlink_to(script)
    assert interpreter_of((str(link / "vllm"),), "") == (str(tmp_path / "python"),)


def build(**fields: Any) -> VllmBuild:
    made = VllmBuild(PYTHON, "0.29.0", DeviceAPI.ROCM, "RocmPlatform", DeviceAPI.ROCM)
    return replace(made, **fields)


NO_AMDSMI = "ROCm platform is not available because: No module named 'amdsmi'"
UNSPECIFIED: dict[str, Any] = {"platform": "UnspecifiedPlatform", "device": None}


@pytest.mark.parametrize(
    ("made", "reason", "advice"),
    [
        (build(**UNSPECIFIED, reasons=(NO_AMDSMI,)), NO_AMDSMI, "/opt/vllm/bin/python -m pip install amdsmi"),
        (
            build(**UNSPECIFIED, reasons=("ROCm platform is not available because: 'libamd_smi.so'",)),
            "UnspecifiedPlatform",
            "ROCM_PATH",
        ),
        (build(**UNSPECIFIED), "does not say why not ROCm", "use another backend"),
        (build(built_for=DeviceAPI.CUDA), "is built for cuda, not for rocm", "an environment of its own"),
        (build(problem="ImportError: libcudart"), "does not run: ImportError: libcudart", "pip install"),
        (build(built_for=None), "does not say what it was built for", "pip install"),
    ],
)
def test_why_not(made: VllmBuild, reason: str, advice: str) -> None:
    status = judge(BACKENDS[Backend.VLLM_ROCM], made)
    assert not status.available
    assert reason in status.reason
    assert advice in (status.advice or "")


def test_a_build_serves_the_row_that_it_was_made_for() -> None:
    status = judge(BACKENDS[Backend.VLLM_ROCM], build())
    assert (status.available, status.version) == (True, "0.29.0")
    assert status.command == (*PYTHON, *SERVER)
    assert "chooses RocmPlatform here" in status.reason
    assert judge(BACKENDS[Backend.VLLM_CUDA], build()).command == ()


@pytest.mark.parametrize("lines", [(), ("Segmentation fault",), (MARK + "{",), (MARK + "[]",)])
def test_an_answer_that_is_none(lines: tuple[str, ...]) -> None:
    assert "gave no answer about vLLM" in (parse_build(PYTHON, lines).problem or "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", VllmBuild((), None, DeviceAPI.CPU, "CpuPlatform", DeviceAPI.CPU)),
        ("cuda", VllmBuild((), None, DeviceAPI.CUDA, "NvmlCudaPlatform", DeviceAPI.CUDA)),
        ("rocm", VllmBuild((), None, DeviceAPI.ROCM, "RocmPlatform", DeviceAPI.ROCM)),
        ("rocm,no-device", VllmBuild((), None, DeviceAPI.ROCM, "UnspecifiedPlatform", None)),
    ],
)
async def test_its_own_python_is_asked(tmp_path: Path, words: str, expected: VllmBuild) -> None:
    found = await ask_build(fake_vllm(words), os.environ, AnswerCache(tmp_path))
    assert (found.built_for, found.platform, found.device) == (
        expected.built_for,
        expected.platform,
        expected.device,
    )
    assert found.problem is None
    assert found.works is (expected.device is not None)
    if expected.device is None:
        assert NO_AMDSMI in found.reasons
    # What may be mended tomorrow is asked again.
    assert bool(kept_answers(tmp_path)) is found.works


async def test_an_answer_is_kept_for_as_long_as_the_installation_is_the_same(tmp_path: Path) -> None:
    command = fake_vllm("cuda")
    first = await ask_build(command, os.environ, AnswerCache(tmp_path))
    (kept,) = kept_answers(tmp_path)
    kept.write_text(kept.read_text().replace("NvmlCudaPlatform", "Remembered"))
    assert (await ask_build(command, os.environ, AnswerCache(tmp_path))).platform == "Remembered"
    kept.write_text("rubbish")
    assert await ask_build(command, os.environ, AnswerCache(tmp_path)) == first


def test_an_installation_is_known_by_its_packages(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    before = fingerprint((str(python),))
    assert before is not None
    assert before == fingerprint((str(python),)) != fingerprint((str(python),), "more")
    os.utime(packages, (1, 1))
    assert fingerprint((str(python),)) != before
    assert fingerprint(("docker", "exec", "box")) is None


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (fake_vllm("broken"), "libcudart.so.13"),
        ((sys.executable,), "the Python package vllm is not installed there"),
        (("/nowhere/python",), "/nowhere/python"),
        (("env", "sh", "-c", "exit 3", "python"), "exit code 3"),
    ],
)
async def test_an_installation_that_does_not_work_says_why(
    tmp_path: Path, command: Command, words: str
) -> None:
    found = await ask_build(command, os.environ, AnswerCache(tmp_path))
    assert words in (found.problem or "")
    assert len(found.problem or "") < 400
    assert not kept_answers(tmp_path)


@pytest.mark.parametrize("words", ["", "old-help"])
async def test_a_build_is_asked_for_its_flags_once(tmp_path: Path, words: str) -> None:
    command = (*fake_vllm(words), *SERVER)
    known = await ask_flags(command, os.environ, AnswerCache(tmp_path))
    assert known.find("--max-model-len") is not None
    (kept,) = kept_answers(tmp_path, "vllm-help-*")
    kept.write_text("  --only THIS  one flag\n")
    assert set((await ask_flags(command, os.environ, AnswerCache(tmp_path))).by_name) == {"--only"}


async def test_a_build_that_has_no_help_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="does not answer --help"):
        await ask_flags((sys.executable, "-c", "print('hello')"), os.environ, AnswerCache(tmp_path))


Look = Callable[..., Awaitable[list[BackendStatus]]]
VLLM = (Backend.VLLM_CUDA, Backend.VLLM_ROCM, Backend.VLLM_CPU)


@pytest.fixture
def look(tmp_path: Path) -> Look:
    async def states(path: str = "", **commands: Command) -> list[BackendStatus]:
        given = {Backend(name.replace("_", "-")): command for name, command in commands.items()}
        # No llama-server of any kind: looking at them is another test's.
        nothing = {
            backend: ("/nowhere/llama-server",) for backend in Backend if backend.startswith("llama-server")
        }
        found = await discover(
            path=path, commands={**nothing, **given}, cache_dir=tmp_path / "cache", env=os.environ
        )
        return [status for status in found if status.backend in VLLM]

    return states


@pytest.mark.usefixtures("no_llama_cpp_python")
class TestDiscovery:
    async def test_each_row_gets_the_build_that_is_made_for_it(self, look: Look, tmp_path: Path) -> None:
        found = await look(
            vllm_cuda=fake_vllm_python(tmp_path / "cuda", "cuda"),
            vllm_rocm=fake_vllm_python(tmp_path / "rocm", "rocm,no-device"),
            vllm_cpu=fake_vllm_python(tmp_path / "cpu"),
        )
        assert [status.available for status in found] == [True, False, True]
        assert "amdsmi" in found[1].reason

    async def test_one_vllm_on_the_path_serves_what_it_was_built_for(
        self, look: Look, tmp_path: Path
    ) -> None:
        (python,) = fake_vllm_python(tmp_path)
        script = tmp_path / "vllm"
        script.write_text(f"#!{python}\n")
        script.chmod(0o755)
        found = await look(str(tmp_path))
        assert [status.available for status in found] == [False, False, True]
        assert found[0].reason.endswith("is built for cpu, not for cuda")
        assert found[2].command == (python, *SERVER)

    async def test_without_vllm_its_rows_say_so(self, look: Look) -> None:
        found = await look(vllm_cpu=("/opt/llama-server",), vllm_rocm=("docker", "exec", "box", "python3"))
        assert found[0].reason == "no vllm on PATH, and no command is set for it"
        assert "'docker exec box python3' is neither the Python that has vLLM nor" in found[1].reason
        assert "'/opt/llama-server' is neither the Python that has vLLM nor" in found[2].reason

    async def test_a_vllm_that_hides_its_python_is_told_of(self, look: Look, tmp_path: Path) -> None:
        script = tmp_path / "vllm"
        script.write_text("#!/bin/sh\nexec something\n")
        script.chmod(0o755)
        found = await look(str(tmp_path))
        assert f"{script} does not say which Python runs it" in found[0].reason
