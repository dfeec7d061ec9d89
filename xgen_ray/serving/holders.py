"""Telling whether the process that holds a lease is the one that took it."""

import sys
from pathlib import Path

import psutil

_STATE, _START_TICKS = 0, 19  # of /proc/PID/stat, counted behind the command's name
_DEAD_STATES = ("Z", "X", "x")


def process_start(pid: int) -> float | None:
    """When the process started, in a figure that is its own until the next boot; None if it is gone.

    Clock ticks since boot on Linux: Unix seconds move when the clock is set, and a holder must not seem to
    have died then. A zombie is gone: it has given back all memory.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # The name may hold spaces and parentheses.
        fields = stat.rpartition(")")[2].split()
        return None if fields[_STATE] in _DEAD_STATES else float(fields[_START_TICKS])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def boot_id() -> str:
    """Another one after every start of the machine; empty where there is none to be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
