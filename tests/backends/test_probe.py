import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xgen_ray.backends.probe import (
    AnswerCache,
    ask,
    fingerprint,
    known_flags,
    parse_devices,
    parse_version,
)
from xgen_ray.errors import EngineFailed
from xgen_ray.placement.types import EngineDevice
from xgen_ray.process import FailureClass

Fake = Callable[[str], tuple[str, ...]]
SAMPLES = Path(__file__).parents[1] / "samples" / "hardware"


def test_reads_devices_with_their_memory() -> None:
    lines = (
        "ggml_vulkan: Found 2 Vulkan devices:",
        "  not: a device yet",
        "Available devices:",
        "  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24021 MiB free)",
        "  CUDA1: NVIDIA Thing",
        "trailing words",
    )
    assert parse_devices(lines) == (
        EngineDevice("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)", 24560 * 2**20, 24021 * 2**20),
        EngineDevice("CUDA1", "NVIDIA Thing"),
    )


@pytest.mark.parametrize(
    ("sample", "name", "total_mib", "free_mib"),
    [
        ("llama-server-cuda-h100.txt", "CUDA0", 81079, 80552),
        ("llama-server-vulkan-h100.txt", "Vulkan0", 81559, 81062),
    ],
)
def test_reads_what_a_real_card_is_listed_as(sample: str, name: str, total_mib: int, free_mib: int) -> None:
    listed = (SAMPLES / sample).read_text().splitlines()
    expected = EngineDevice(name, "NVIDIA H100 80GB HBM3", total_mib * 2**20, free_mib * 2**20)
    assert parse_devices(listed) == (expected,)


@pytest.mark.parametrize("lines", [(), ("Available devices:", "  (none)"), ("  Vulkan0: without a heading",)])
def test_no_devices(lines: tuple[str, ...]) -> None:
    assert parse_devices(lines) == ()


def test_reads_a_version() -> None:
    assert parse_version(("noise", "version: 9999 (abc)", "built with x")) == "9999 (abc)"
    assert parse_version(("nothing",)) is None


@pytest.mark.parametrize(
    ("behaviour", "failure", "words"),
    [
        ("illegal-instruction", FailureClass.ILLEGAL_INSTRUCTION, "another processor"),
        ("missing-library", FailureClass.MISSING_LIBRARY, "libfoo.so.1"),
    ],
)
async def test_a_run_that_fails_says_why(
    fake: Fake, behaviour: str, failure: FailureClass, words: str
) -> None:
    answer = await ask(fake(behaviour), ["--version"], os.environ)
    assert answer.failure is not None
    assert answer.failure.failure is failure
    assert words in answer.failure.message


async def test_a_run_that_hangs_is_ended_at_its_deadline(fake: Fake) -> None:
    answer = await ask(fake("hangs"), ["--version"], os.environ, deadline_s=0.5)
    assert answer.failure is not None
    assert answer.failure.failure is FailureClass.NOT_READY_IN_TIME
    assert "0.5 s" in answer.failure.message


async def test_a_program_that_is_not_there_says_so() -> None:
    answer = await ask(["/nowhere/llama-server"], ["--version"], os.environ)
    assert answer.failure is not None
    assert answer.failure.failure is FailureClass.MISSING_BINARY


async def test_help_is_asked_once_for_each_build(install: Callable[[str, str], str], tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "cache")
    program = Path(install("llama-server", "good")) / "llama-server"
    assert (await known_flags([str(program)], os.environ, cache)).find("--fit") is not None
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text("--kept N      from the cache\n")
    assert (await known_flags([str(program)], os.environ, cache)).find("--kept") is not None
    program.write_text(program.read_text() + "# a new build\n")
    assert (await known_flags([str(program)], os.environ, cache)).find("--kept") is None


async def test_a_binary_without_help_is_no_llama_server(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="does not answer --help") as caught:
        await known_flags(fake("missing-library"), os.environ, AnswerCache(tmp_path / "answers"))
    assert caught.value.failure == FailureClass.MISSING_LIBRARY
    assert not (tmp_path / "answers").exists()


def test_a_fingerprint_names_file_arguments_and_all_else_that_counts(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text("one")
    first = fingerprint([str(program)])
    assert fingerprint([str(program)]) == first
    assert fingerprint([str(program), "-m"]) != first
    assert fingerprint([str(program)], "another processor") != first
    program.write_text("two more")
    assert fingerprint([str(program)]) != first


def test_a_cache_that_cannot_be_written_only_forgets(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = AnswerCache(tmp_path / "file" / "below")
    cache.put("name", "text")
    assert cache.get("name") is None


def test_unreadable_answers_count_as_absent(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"\xff\xfe")
    assert AnswerCache(tmp_path).get("name") is None
