"""Native code of vendors at arm's length: one short-lived child process per question.

A vendor's library may hang in its driver, crash, or print to stdout. In a child of its own it loses
that vendor's answer and nothing else.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

_REAP_DEADLINE_S = 2.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child printed, or in ``reason`` why it printed nothing."""

    output: bytes = b""
    reason: str | None = None


def ask_children(
    question: str, detectors: Sequence[str], *, deadline_s: float, env: Mapping[str, str] | None = None
) -> dict[str, Answer]:
    """Put ``question`` (``report``, ``usage``, ``processes``) to each detector in its own child, all at once.

    Answers within ``deadline_s`` plus the moment it takes to kill. ``env`` is a child's whole
    environment; None passes on this process's own.
    """
    if not detectors:
        return {}
    with ThreadPoolExecutor(len(detectors), thread_name_prefix="detector") as threads:
        asked = {
            name: threads.submit(_ask, _command(question, name, deadline_s), deadline_s, env)
            for name in detectors
        }
        return {name: future.result() for name, future in asked.items()}


def collect(
    question: str,
    detectors: Sequence[str],
    parse: Callable[[bytes], tuple[tuple[T, ...], str | None]],
    *,
    deadline_s: float,
    env: Mapping[str, str] | None = None,
) -> tuple[tuple[T, ...], tuple[str, ...]]:
    """All that the detectors answer to ``question``, and a note for each that left something out.

    ``parse`` reads an answer as what was found and why something is missing; it raises ValueError for what
    is no answer.
    """
    found: list[T] = []
    notes: list[str] = []
    for name, answer in ask_children(question, detectors, deadline_s=deadline_s, env=env).items():
        reason = answer.reason
        if reason is None:
            try:
                some, reason = parse(answer.output)
                found.extend(some)
            except ValueError:
                reason = f"answer not understood: {answer.output[:80]!r}"
        if reason is not None:
            notes.append(f"{name}: {reason}")
    return tuple(found), tuple(notes)


def _command(question: str, detector: str, deadline_s: float) -> list[str]:
    # -P: a folder named torch or amdsmi in the working directory must not pass for the package.
    return [
        sys.executable,
        "-P",
        "-m",
        "xgen_ray.hardware",
        question,
        detector,
        "--within",
        f"{deadline_s:g}",
    ]


def _ask(command: list[str], deadline_s: float, env: Mapping[str, str] | None) -> Answer:
    late = Answer(reason=f"no answer in {deadline_s:g} s")
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else None,
        )
    except OSError as error:
        return Answer(reason=f"its process cannot be started: {error}")
    try:
        output, errors = child.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        child.kill()
        try:
            child.communicate(timeout=_REAP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel: it goes when the driver lets go of it, and must not hold us up.
            return Answer(reason=f"{late.reason}, and process {child.pid} is stuck in the driver")
        return late
    if child.returncode == 0:
        return Answer(output)
    if child.returncode == -signal.SIGALRM:
        return late
    return Answer(reason=_death(child.returncode, errors))


def _death(returncode: int, errors: bytes) -> str:
    last_lines = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
    said = f": {last_lines[0][:300]}" if last_lines else ""
    if returncode >= 0:
        return f"failed with exit code {returncode}{said}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"crashed with {name}{said}"
