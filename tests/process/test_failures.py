"""Diagnosis of deaths: what engines really print, and properties that hold for anything."""

import errno
import signal
import string
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.process import FailureClass, classify
from xgen_ray.process.failure_rows import CAUSES, SYMPTOMS, FailureRow
from xgen_ray.process.failures import not_ready_in_time, not_started, unkillable
from xgen_ray.process.logs import LogRing

F = FailureClass

# Where each comes from is told in the file.
DEATHS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("deaths.yaml").read_text())


@pytest.mark.parametrize(
    "death", DEATHS, ids=[f"{row['failure']}-{row['exit_code']}-{n}" for n, row in enumerate(DEATHS)]
)
def test_real_deaths(death: dict[str, Any]) -> None:
    lines = death["output"].split("\n") if death["output"] else []
    found = classify(death["exit_code"], lines)
    assert found.failure.value == death["failure"]
    assert death["words"] in found.message
    assert found.exit_code == death["exit_code"]
    assert found.advice
    if death["evidence"] is None:
        assert found.evidence is None
    else:
        assert found.evidence is not None
        assert found.evidence in lines
        assert death["evidence"] in found.evidence
    assert found.log_tail == tuple(lines[-40:])


def printed_lines() -> list[str]:
    return [line for death in DEATHS for line in death["output"].split("\n")]


def test_every_row_is_reached_by_a_real_text() -> None:
    texts = printed_lines()
    unreached = [
        row.pattern.pattern
        for row in (*CAUSES, *SYMPTOMS)
        if not any(row.pattern.search(text) for text in texts)
    ]
    # A full disk and the processor's own memory are made up below.
    assert [pattern for pattern in unreached if "No space left" not in pattern] == []


@pytest.mark.parametrize("row", [*CAUSES, *SYMPTOMS], ids=lambda row: row.message[:40])
def test_a_rows_words_use_only_what_its_pattern_catches(row: FailureRow) -> None:
    fields = {name for _, name, _, _ in string.Formatter().parse(row.message) if name}
    groups = {name.rstrip("0123456789") for name in row.pattern.groupindex}
    assert fields <= groups


def test_the_latest_cause_counts() -> None:
    """An engine goes on after a buffer that it could not get, and dies of something else."""
    lines = [
        "ggml_vulkan: Failed to allocate pinned memory.",
        "vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
    ]
    later = [*lines, "loaded", "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1"]
    assert classify(1, lines).failure is F.OUT_OF_MEMORY
    assert classify(1, later).failure is F.PORT_IN_USE


def test_an_old_line_explains_nothing() -> None:
    lines = ["CUDA error: out of memory", *(f"request {n} done" for n in range(500))]
    assert classify(-9, lines).failure is F.KILLED


def test_a_full_disk() -> None:
    found = classify(1, ["OSError: [Errno 28] No space left on device: '/psm_12'"])
    assert found.failure is F.CRASHED
    assert "/dev/shm" in found.message


@pytest.mark.parametrize("exit_code", [0, 1, -15, -9, None])
def test_what_was_asked_for_is_no_failure(exit_code: int | None) -> None:
    found = classify(exit_code, ["CUDA error: out of memory"], stopping=True)
    assert found.failure is F.STOPPED
    assert ("was killed" in found.message) == (exit_code == -9)


fragments = st.sampled_from(printed_lines())
anything = st.lists(st.one_of(st.text(max_size=100), fragments), max_size=30)
codes = st.one_of(st.none(), st.integers(-70, 300), st.integers())


@given(code=codes, lines=anything, stopping=st.booleans())
@settings(max_examples=60)
def test_any_death_gets_one_and_the_same_diagnosis(
    code: int | None, lines: list[str], stopping: bool
) -> None:
    found = classify(code, lines, stopping=stopping)
    assert found == classify(code, tuple(lines), stopping=stopping)
    assert (found.failure is F.STOPPED) == stopping
    assert found.message
    assert found.evidence is None or found.evidence in lines
    assert stopping or found.advice


@given(before=anything, cause=st.sampled_from(["CUDA error: out of memory", "error: invalid argument: --x"]))
@settings(max_examples=30)
def test_a_cause_in_the_last_line_wins(before: list[str], cause: str) -> None:
    assert classify(1, [*before, cause]).failure is classify(1, [cause]).failure


@given(
    secret=st.text(alphabet="XYZ0123456789", min_size=6, max_size=20).map("sk-{}".format),
    place=st.sampled_from(
        ["CUDA out of memory {}", "error: invalid argument: --{}", "unknown model architecture: '{}'", "{}"]
    ),
    code=st.sampled_from([0, 1, -6, -9]),
)
@settings(max_examples=50)
def test_secrets_never_come_out(secret: str, place: str, code: int) -> None:
    ring = LogRing(secrets=[secret])
    ring.append(place.format(secret))
    assert secret not in repr(classify(code, ring.tail()))


def test_hostile_logs_take_no_time() -> None:
    """A classifier that hangs would hold up the recovery it is for."""
    hostile = [
        ("/dev/kfd" * 500)[:4096],
        "error: argument " * 256,
        "Free memory on device " * 180,
        "a" * 4096,
    ]
    before = time.perf_counter()
    classify(1, hostile * 100)
    assert time.perf_counter() - before < 5


def test_not_ready_in_time_tells_the_numbers() -> None:
    found = not_ready_in_time(120, "503 Loading model", ["loading tensors"])
    assert found.failure is F.NOT_READY_IN_TIME
    assert "120 s" in found.message
    assert "503 Loading model" in found.message
    assert found.evidence == "loading tensors"
    assert "never asked" in not_ready_in_time(1.5, None, []).message


@pytest.mark.parametrize(
    ("number", "exists", "words"),
    [
        (errno.ENOENT, False, "/bin/x was not found"),
        (errno.ENOENT, True, "interpreter"),
        (errno.EACCES, True, "may not be executed"),
        (errno.ENOEXEC, True, "not a program"),
        (errno.E2BIG, True, "E2BIG"),
        (None, True, "no error code"),
    ],
)
def test_programs_that_did_not_start(number: int | None, exists: bool, words: str) -> None:
    found = not_started("/bin/x", "exec", number, "text", exists=exists)
    assert found.failure is F.MISSING_BINARY
    assert words in found.message


def test_what_cannot_be_killed_keeps_its_cause() -> None:
    crash = classify(-signal.SIGSEGV, ["x"])
    found = unkillable(crash, [1, 2], 10.0)
    assert found.failure is crash.failure
    assert found.message.startswith(crash.message)
    assert "process 1, 2 for 10 s" in found.message
