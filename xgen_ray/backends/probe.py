"""Asking an engine's binary about itself: short runs with a deadline, and answers kept per build."""

import asyncio
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xgen_ray.backends.flags import KnownFlags, parse_help
from xgen_ray.errors import EngineFailed
from xgen_ray.placement.types import EngineDevice
from xgen_ray.process import ChildProcess, Failure, FailureClass, LaunchSpec

# A driver that wakes from sleep takes seconds to list its devices; a hung one takes for ever.
PROBE_DEADLINE_S: Final = 30.0
_STOP_GRACE_S: Final = 1.0
_DEVICE = re.compile(r"^\s+(\S+): (.*?)(?: \((\d+) MiB, (\d+) MiB free\))?$")
_VERSION = re.compile(r"version:\s*(.+)")
_MIB: Final = 2**20
_HELP_LINES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run has printed. ``failure`` says why it counts as none."""

    lines: tuple[str, ...]
    failure: Failure | None


async def ask(
    command: Sequence[str], args: Sequence[str], env: Mapping[str, str], deadline_s: float = PROBE_DEADLINE_S
) -> Answer:
    """Run ``command`` with ``args`` to its end, or to the deadline; the process is gone afterwards."""
    child = ChildProcess(LaunchSpec((*command, *args), stop_grace_s=_STOP_GRACE_S), base_env=env)
    try:
        async with child, asyncio.timeout(deadline_s):
            failure = await child.wait()
    except TimeoutError:
        message = f"{' '.join((*command, *args))} had not ended after {deadline_s:g} s"
        return Answer(child.logs.tail(), Failure(FailureClass.NOT_READY_IN_TIME, message))
    except EngineFailed as error:
        return Answer((), Failure(FailureClass(error.failure or FailureClass.CRASHED), error.message))
    lines, _ = child.logs.read(limit=_HELP_LINES)
    if child.exit_code == 0:
        return Answer(lines, None)
    return Answer(lines, failure)


def parse_devices(lines: Sequence[str]) -> tuple[EngineDevice, ...]:
    """The devices of ``--list-devices``; none when it says ``(none)``."""
    devices = []
    listed = False
    for line in lines:
        if line.startswith("Available devices"):
            listed = True
        elif listed and (found := _DEVICE.match(line)):
            total, free = (None if size is None else int(size) * _MIB for size in (found[3], found[4]))
            devices.append(EngineDevice(found[1], found[2], total, free))
    return tuple(devices)


def parse_version(lines: Sequence[str]) -> str | None:
    """The version in the output of ``--version``."""
    return next((found[1].strip() for line in lines if (found := _VERSION.search(line))), None)


def fingerprint(command: Sequence[str], *more: str) -> str:
    """Names a build of an engine: changes when its file does. ``more`` is what else matters."""
    program = Path(shutil.which(command[0]) or command[0])
    try:
        file = program.resolve().stat()
        parts: list[object] = [str(program.resolve()), file.st_mtime_ns, file.st_size]
    except OSError:
        parts = [str(program)]
    return hashlib.sha256(json.dumps([*parts, *command[1:], *more]).encode()).hexdigest()[:32]


class AnswerCache:
    """Answers in ``folder``, one file each. Whatever is unreadable there counts as absent.

    Several processes may use one folder. A folder that cannot be written to only costs time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def put(self, name: str, text: str) -> None:
        unfinished = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self._folder, delete=False) as file:
                unfinished = Path(file.name)
                file.write(text)
            unfinished.replace(self._folder / name)
        except OSError:
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)


async def known_flags(command: Sequence[str], env: Mapping[str, str], cache: AnswerCache) -> KnownFlags:
    """What this build of llama-server understands. Asked once for each build.

    Raises ``EngineFailed`` when it does not answer ``--help``.
    """
    version = await ask(command, ["--version"], env)
    name = f"help-{fingerprint(command, *version.lines)}.txt"
    text = cache.get(name)
    if text is None:
        answer = await ask(command, ["--help"], env)
        if answer.failure is not None:
            raise EngineFailed(
                f"{command[0]} does not answer --help: {answer.failure.message}",
                answer.failure.failure,
                answer.lines[-40:],
            )
        text = "\n".join(answer.lines)
        cache.put(name, text)
    return parse_help(text)
