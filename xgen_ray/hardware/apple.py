"""Apple's GPUs, by the system's own commands: Metal has no library that a detector could load."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass

from xgen_ray.hardware.types import DetectorReport, GPUInfo, GPUType

NAME = "apple"


@dataclass(frozen=True, slots=True)
class Platform:
    """Which system this is, as ``platform.system()`` and ``platform.machine()`` say it.

    ``search_path`` is where the system's commands are looked for; None means the process's own PATH.
    """

    system: str
    machine: str
    search_path: str | None = None


class _CommandFailed(Exception):
    """A system command gave no answer; the message is the reason."""


def detect_apple(platform: Platform, *, deadline_s: float = 10.0) -> DetectorReport:
    """The GPU of an Apple chip. Intel Macs have none that counts: llama.cpp's Metal build wants Apple's."""
    if platform.system != "Darwin":
        return DetectorReport(NAME, reason=f"the system is {platform.system}, not macOS")
    if platform.machine != "arm64":
        return DetectorReport(NAME, reason=f"an Intel Mac ({platform.machine}) has no Apple GPU")
    try:
        displays = _run(platform, deadline_s, "system_profiler", "SPDisplaysDataType", "-json")
        cards = _parse_displays(displays)
    except _CommandFailed as failed:
        return DetectorReport(NAME, reason=str(failed))
    if not cards:
        return DetectorReport(NAME, reason="system_profiler lists no Apple GPU")
    memory: int | None = None
    notes: tuple[str, ...] = ()
    try:
        memory = _parse_memory(_run(platform, deadline_s, "sysctl", "-n", "hw.memsize"))
    except _CommandFailed as failed:
        notes = (f"memory: {failed}",)
    gpus = tuple(
        GPUInfo(
            gpu_type=GPUType.APPLE_MPS,
            device_index=index,
            device_name=name,
            memory_total_bytes=memory,
            integrated=True,
            unified_memory=True,
            detected_by=NAME,
            notes=notes,
        )
        for index, name in enumerate(cards)
    )
    return DetectorReport(NAME, gpus, reason=notes[0] if notes else None)


def _run(platform: Platform, deadline_s: float, command: str, *args: str) -> str:
    """What a system command prints; it is killed at its deadline."""
    found = shutil.which(command, path=platform.search_path)
    if found is None:
        raise _CommandFailed(f"{command} not found")
    try:
        done = subprocess.run(
            [found, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline_s,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise _CommandFailed(f"{command}: no answer in {deadline_s:g} s") from error
    except OSError as error:
        raise _CommandFailed(f"{command}: {error}") from error
    if done.returncode != 0:
        raise _CommandFailed(f"{command}: exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


def _parse_displays(text: str) -> list[str]:
    """Names of the Apple GPUs in the JSON of ``system_profiler SPDisplaysDataType``."""
    try:
        cards = json.loads(text)["SPDisplaysDataType"]
        names = [
            str(card.get("sppci_model") or card.get("_name") or "Apple GPU")
            for card in cards
            if "apple" in str(card.get("spdisplays_vendor", "")).lower()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _CommandFailed(f"system_profiler: answer not understood ({type(error).__name__})") from error
    return names


def _parse_memory(text: str) -> int:
    if not re.fullmatch(r"\s*[1-9][0-9]*\s*", text):
        raise _CommandFailed(f"sysctl: hw.memsize is {text.strip()[:40]!r}, not a number of bytes")
    return int(text)
