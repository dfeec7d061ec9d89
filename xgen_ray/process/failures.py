"""Says in plain words why a child died. Pure: exit code and log lines in, diagnosis out."""

import errno
import re
import signal
from collections.abc import Sequence
from dataclasses import replace

from xgen_ray.process.failure_rows import (
    CAUSES,
    CLASSES_BEFORE_SIGNALS,
    EXIT_CODES,
    KILLS_ITSELF,
    SIGNALS,
    SIGNALS_BEFORE_LINES,
    SYMPTOMS,
    FailureRow,
)
from xgen_ray.process.types import Failure, FailureClass

# How far back a line may be and still explain the death.
WINDOW_LINES = 400
# How much of a line is searched: causes stand at its beginning.
_SEARCHED_CHARS = 1000
TAIL_LINES = 40
_QUOTED_CHARS = 300


def classify(exit_code: int | None, lines: Sequence[str], *, stopping: bool = False) -> Failure:
    """What the end of a child means.

    ``exit_code`` is negative for a signal and None if the child never ended. ``lines`` is its output,
    oldest first, secrets already blanked. ``stopping``: its owner had asked it to end. An end that
    nobody asked for is never a success, whatever the code.
    """
    tail = tuple(lines[-TAIL_LINES:])
    if stopping:
        return Failure(FailureClass.STOPPED, _how_it_stopped(exit_code), exit_code=exit_code, log_tail=tail)
    number = _signal_of(exit_code)
    recent = lines[-WINDOW_LINES:]
    if number in SIGNALS_BEFORE_LINES:
        failure, message, advice = SIGNALS_BEFORE_LINES[number]
        return Failure(failure, message, advice, exit_code, _last_words(recent), tail)
    possible = None if _killed_itself(recent) else CLASSES_BEFORE_SIGNALS.get(number or 0)
    causes = CAUSES if possible is None else tuple(row for row in CAUSES if row.failure in possible)
    found = _latest(causes, recent)
    if found is None and number not in SIGNALS:
        found = _latest(SYMPTOMS, recent)
    if found is not None:
        row, match, line = found
        return Failure(row.failure, _fill(row, match, exit_code), row.advice, exit_code, line, tail)
    last_words = _last_words(recent)
    known = SIGNALS.get(number) if number is not None else EXIT_CODES.get(exit_code or 0)
    failure, message, advice = known or (
        FailureClass.CRASHED,
        f"The engine ended by itself ({_how_it_ended(exit_code)}). {_quoted(last_words)}",
        "No known cause was found in its log; read the lines before its end.",
    )
    return Failure(failure, message, advice, exit_code, last_words, tail)


def not_ready_in_time(deadline_s: float, last_answer: str | None, lines: Sequence[str]) -> Failure:
    """The child lives but did not become ready. ``last_answer`` is what its health address said last."""
    said = f"its health address last said: {last_answer}" if last_answer else "it was never asked"
    return Failure(
        FailureClass.NOT_READY_IN_TIME,
        f"The engine was not ready after {deadline_s:g} s; {said}.",
        "A large model on a slow disk needs a longer deadline; else its log says where it hangs.",
        evidence=_last_words(lines),
        log_tail=tuple(lines[-TAIL_LINES:]),
    )


def not_started(program: str, step: str, number: int | None, text: str, *, exists: bool = False) -> Failure:
    """The child could not be started. ``step`` is ``cwd``, ``exec`` or what else failed, ``number`` an errno.

    ``exists``: the program itself is there, so an ENOENT is about its interpreter.
    """
    name = errno.errorcode.get(number, str(number)) if number is not None else "no error code"
    if step != "exec":
        return Failure(
            FailureClass.CRASHED,
            f"The engine could not be started: {text} ({name}, on the step {step!r}).",
            "Check the working folder and the limits of the node (processes, memory, open files).",
        )
    if number == errno.ENOENT:
        if exists:
            message = f"{program} exists, but the interpreter or loader that it names does not."
            advice = "Use a build for this system, or mend the first line of the script."
        else:
            message = f"The engine's program {program} was not found."
            advice = "Install it on this node, or correct the path in the settings."
    elif number in (errno.EACCES, errno.EPERM):
        message = f"{program} is there but may not be executed."
        advice = "Set its executable bit (chmod +x), and check the folders above it and mounts with noexec."
    elif number == errno.ENOEXEC:
        message = f"{program} is not a program that this machine can run."
        advice = "Use a build for this processor and system."
    else:
        message = f"{program} could not be executed: {text} ({name})."
        advice = "Check the command line and the limits of the node."
    return Failure(FailureClass.MISSING_BINARY, message, advice)


def unkillable(failure: Failure | None, pids: Sequence[int], after_s: float) -> Failure:
    """``failure``, of a child that left processes which no signal reaches."""
    text = (
        f"KILL had no effect on process {', '.join(map(str, pids))} for {after_s:g} s: it hangs inside "
        "a driver (state D in ps), and its memory stays taken."
    )
    advice = "See the node's kernel log. Often only a reboot of the node helps."
    if failure is None:
        return Failure(FailureClass.KILLED, text, advice)
    return replace(failure, message=f"{failure.message} {text}", advice=advice)


def guard_lost(lines: Sequence[str]) -> Failure:
    """The processes that guard the child were killed, which kills the child."""
    return Failure(
        FailureClass.KILLED,
        "The engine's guard process was killed from outside, and the engine with it.",
        "See who kills processes on this node: an operator, the container runtime, the out-of-memory killer.",
        -signal.SIGKILL,
        _last_words(lines),
        tuple(lines[-TAIL_LINES:]),
    )


def _latest(rows: Sequence[FailureRow], lines: Sequence[str]) -> tuple[FailureRow, re.Match[str], str] | None:
    for line in reversed(lines):
        searched = line[:_SEARCHED_CHARS]
        for row in rows:
            match = row.pattern.search(searched)
            if match is not None:
                return row, match, line
    return None


def _fill(row: FailureRow, match: re.Match[str], exit_code: int | None) -> str:
    """The row's words. Alternatives of one pattern number the same group: ``flag``, ``flag2``."""
    values: dict[str, str] = {}
    for name, value in match.groupdict().items():
        base = name.rstrip("0123456789")
        values[base] = values.get(base) or (value or "").strip()
    # What a group did not catch leaves no gap behind.
    message = re.sub(r"\s*\(\)|\s+(?=\.$)", "", row.message.format(**values))
    if exit_code == 0:
        return f"{message} It then ended with exit code 0, as if all were well."
    return message


def _killed_itself(lines: Sequence[str]) -> bool:
    return any(KILLS_ITSELF.search(line[:_SEARCHED_CHARS]) for line in lines)


def _signal_of(exit_code: int | None) -> int | None:
    """The signal behind an exit code, also where a shell in between has turned it into 128 + n."""
    if exit_code is None:
        return None
    if exit_code < 0:
        return -exit_code
    number = exit_code - 128
    return number if number in SIGNALS or number in SIGNALS_BEFORE_LINES else None


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "no exit code"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"signal {-exit_code}"


def _how_it_stopped(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "Stopped as asked; it did not end by itself in time and was killed."
    return f"Stopped as asked ({_how_it_ended(exit_code)})."


def _quoted(line: str | None) -> str:
    if line is None:
        return "It printed nothing."
    return f"It last said: {line if len(line) <= _QUOTED_CHARS else line[:_QUOTED_CHARS] + ' ...'}"


def _last_words(lines: Sequence[str]) -> str | None:
    return next((line for line in reversed(lines) if line.strip()), None)
