"""The machine around the GPUs, as a process on it may use it: containers and affinity count."""

import contextlib
import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from xgen_ray.hardware.types import HostFacts

_ROOT = Path("/")
_CAP_IPC_LOCK = 14


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """What the control groups of a process leave it; None where they set no limit.

    ``memory_left_bytes`` counts file cache, which the kernel gives back under pressure, as free.
    """

    cpus: float | None = None
    memory_limit_bytes: int | None = None
    memory_left_bytes: int | None = None


def read_host(root: Path = _ROOT) -> HostFacts:
    """Facts of this machine now. ``root`` is where ``/proc`` and ``/sys`` are looked for."""
    limits = read_cgroup_limits(root)
    memory = psutil.virtual_memory()
    total, available = _within(limits, memory.total, memory.available)
    model, flags = _read_cpuinfo(root)
    return HostFacts(
        hostname=socket.gethostname(),
        os=platform.system(),
        machine=platform.machine(),
        cpu_model=model or platform.processor() or None,
        cpu_count=_cpu_count(limits),
        cpu_flags=flags,
        memory_total_bytes=total,
        memory_available_bytes=available,
        memlock_limit_bytes=_memlock_limit(root, total),
    )


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that a new process could get now without swapping, within the cgroup's limit."""
    memory = psutil.virtual_memory()
    return _within(read_cgroup_limits(root), memory.total, memory.available)[1]


def _within(limits: CgroupLimits, total: int, available: int) -> tuple[int, int]:
    if limits.memory_limit_bytes is not None:
        total = min(total, limits.memory_limit_bytes)
    if limits.memory_left_bytes is not None:
        available = min(available, limits.memory_left_bytes)
    return total, available


def _cpu_count(limits: CgroupLimits) -> int:
    """Whole CPUs: a thread on the fraction of one would hold the others up."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        allowed = os.cpu_count() or 1
    return allowed if limits.cpus is None else max(1, min(allowed, int(limits.cpus)))


def read_cgroup_limits(root: Path = _ROOT) -> CgroupLimits:
    """The tightest limits on the way from this process's control groups up to the root, v2 or v1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return CgroupLimits()
    mount = root / "sys/fs/cgroup"
    cpus: list[float] = []
    memory: list[tuple[int, int]] = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            for folder in _upwards(mount, group):
                cpus.extend(_cpus_v2(folder))
                memory.extend(_memory(folder, "memory.max", "memory.current", "inactive_file"))
            continue
        names = controllers.split(",")
        if "cpu" in names:
            for folder in _upwards(mount / controllers, group) or _upwards(mount / "cpu", group):
                cpus.extend(_cpus_v1(folder))
        if "memory" in names:
            for folder in _upwards(mount / "memory", group):
                memory.extend(
                    _memory(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                )
    return CgroupLimits(
        cpus=min(cpus, default=None),
        memory_limit_bytes=min((limit for limit, _ in memory), default=None),
        memory_left_bytes=min((max(0, limit - used) for limit, used in memory), default=None),
    )


def _upwards(mount: Path, group: str) -> list[Path]:
    """Folders of a control group and its parents. In a container the group's own path may not be
    mounted; then only those that are.
    """
    parts = [part for part in group.split("/") if part not in ("", "..")]
    folders = (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
    return [folder for folder in folders if folder.is_dir()]


def _cpus_v2(folder: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            return [int(quota) / int(period)]
    return []


def _cpus_v1(folder: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        if quota > 0 and period > 0:
            return [quota / period]
    return []


def _memory(folder: Path, limit_file: str, used_file: str, cache_field: str) -> list[tuple[int, int]]:
    """A group's limit and what is used of it. "max", and v1's number near 2^63, mean no limit."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((folder / limit_file).read_text())
        if limit < 1 << 62:
            return [(limit, _used(folder, used_file, cache_field))]
    return []


def _used(folder: Path, used_file: str, cache_field: str) -> int:
    used = 0
    with contextlib.suppress(OSError, ValueError):
        used = int((folder / used_file).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            field, _, value = line.partition(" ")
            if field == cache_field:
                used = max(0, used - int(value))
    return used


def _read_cpuinfo(root: Path) -> tuple[str | None, frozenset[str]]:
    """Model name and flags of the first CPU; x86 says "flags", Arm says "Features"."""
    model: str | None = None
    flags: frozenset[str] = frozenset()
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            field, _, value = (part.strip() for part in line.partition(":"))
            if field == "model name" and model is None:
                model = value
            elif field in ("flags", "Features") and not flags:
                flags = frozenset(value.split())
    return model, flags


def _memlock_limit(root: Path, memory_total: int) -> int | None:
    """Bytes this process may lock: all of memory without a limit, or with the right to ignore it."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or _may_lock_all(root):
        return memory_total
    return min(soft, memory_total)


def _may_lock_all(root: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False
