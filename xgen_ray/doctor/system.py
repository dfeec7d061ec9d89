"""The machine's limits, processor and disks, read from the system."""

import contextlib
import os
import pwd
import resource
import shutil
from pathlib import Path

import psutil

from xgen_ray.doctor.facts import Disk, Limits, Processor
from xgen_ray.hardware.host import read_cgroup_limits

_FIRST_CPU = "sys/devices/system/cpu/cpu0/cpufreq"


def read_limits(root: Path) -> Limits:
    """Open files, the container's memory limit and swap."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    swap = psutil.swap_memory()
    return Limits(
        open_files=soft,
        open_files_hard=hard,
        machine_memory_bytes=psutil.virtual_memory().total,
        container_memory_bytes=read_cgroup_limits(root).memory_limit_bytes,
        swap_total_bytes=swap.total,
        swap_used_bytes=swap.used,
    )


def read_processor(root: Path) -> Processor:
    """The governor of the first CPU; all have the same, but for somebody who changed one."""
    return Processor(
        governor=_line(root / _FIRST_CPU / "scaling_governor"),
        driver=_line(root / _FIRST_CPU / "scaling_driver"),
    )


def _line(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text().strip() or None
    return None


def read_disk(role: str, path: Path) -> Disk:
    """Room at ``path``, or where it would be made; and whether this user may write there."""
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return Disk(role, str(path), problem=error.strerror or str(error))
    problem = None
    if not place.is_dir():
        problem = f"{place} is no folder"
    elif not may(place, os.W_OK | os.X_OK):
        problem = f"{user_name()} may not write in {place}"
    return Disk(role, str(path), usage.total, usage.free, problem)


def may(path: Path, mode: int) -> bool:
    """Whether this process may, as the user that it acts for, which is not always the one who started it."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def user_name() -> str:
    """Who this process runs as: the name, or the number where it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
