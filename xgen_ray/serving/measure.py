"""What an engine really uses: its processes' RAM, and their memory on every GPU where that can be known."""

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from xgen_ray.hardware.types import GPUProcess, GPUUsage, NodeUsage
from xgen_ray.placement.claims import RAM, Claim, gpu_key
from xgen_ray.serving.leases import EngineUse

_FIELDS = ("RssAnon", "RssFile", "RssShmem", "VmLck")


@dataclass(frozen=True, slots=True)
class RamUse:
    """RAM of a process tree. ``shown_bytes`` is what lowers the memory that the system calls available:
    anonymous and shared memory, and locked pages of files. ``used_bytes`` is all that is in RAM for it.
    """

    used_bytes: int
    shown_bytes: int


def tree_of(pid: int) -> tuple[int, ...]:
    """The process and all below it; nothing if it is gone."""
    try:
        root = psutil.Process(pid)
        return (pid, *(child.pid for child in root.children(recursive=True)))
    except psutil.Error:
        return ()


def ram_of(pids: Iterable[int]) -> RamUse | None:
    """The RAM of these processes together; None if none of them can be read.

    What they share and what they map from files is mostly the same, so the largest such part counts once.
    """
    found = [use for pid in pids if (use := _read_status(pid)) is not None]
    if not found:
        return None
    own = sum(use["RssAnon"] for use in found) + max(use["RssShmem"] for use in found)
    mapped = max(use["RssFile"] for use in found)
    # Locked memory may be anonymous, and counted already: no more of it can be of files than is mapped.
    locked = max(min(use["VmLck"], use["RssFile"]) for use in found)
    return RamUse(own + mapped, own + locked)


def gpus_of(pids: Collection[int], processes: Iterable[GPUProcess]) -> dict[str, int]:
    """Bytes per GPU of these processes. A GPU is missing if none of them is seen on it, or if the driver
    does not say how much one of them has.
    """
    found: dict[str, list[int | None]] = {}
    for process in processes:
        if process.pid in pids:
            memory = process.memory_bytes
            if memory is not None:
                memory += process.shared_memory_bytes or 0
            found.setdefault(_key(process), []).append(memory)
    return {
        key: sum(size for size in sizes if size is not None)
        for key, sizes in found.items()
        if None not in sizes
    }


def engine_use(
    claims: Iterable[Claim], ram: RamUse | None, by_process: Mapping[str, int], by_growth: Mapping[str, int]
) -> EngineUse:
    """The use of every claimed device that is known: a driver's word before a device's growth."""
    used = {**by_growth, **by_process}
    if ram is not None:
        used[RAM] = ram.used_bytes
    found = tuple(Claim(one.device, used[one.device], one.exclusive) for one in claims if one.device in used)
    return EngineUse(found, ram.shown_bytes if ram is not None else 0)


class Growth:
    """How much more of a GPU is in use since a lease on it was claimed, if nobody else was at it.

    For drivers that do not say what a process has. Strangers cannot be told from the engine, so this is
    the second choice.
    """

    def __init__(self) -> None:
        self._before: dict[str, dict[str, int]] = {}

    def start(self, lease_id: str, claims: Iterable[Claim], usage: NodeUsage | None) -> None:
        """``lease_id`` has just been claimed; whoever else was being watched on its GPUs no longer is."""
        devices = {one.device for one in claims if one.device != RAM}
        self.disturb(devices)
        self._before[lease_id] = {device: used for device, used in _used(usage).items() if device in devices}

    def disturb(self, devices: Collection[str]) -> None:
        """A lease on these devices has changed hands: nothing that grows there can be told apart."""
        for before in self._before.values():
            for device in devices:
                before.pop(device, None)

    def read(self, lease_id: str, usage: NodeUsage | None) -> dict[str, int]:
        """Bytes by which each device has grown, where only this lease can be why."""
        now = _used(usage)
        before = self._before.get(lease_id, {})
        return {device: max(0, now[device] - used) for device, used in before.items() if device in now}

    def forget(self, lease_id: str) -> None:
        self._before.pop(lease_id, None)


def _used(usage: NodeUsage | None) -> dict[str, int]:
    gpus = usage.gpus if usage is not None else ()
    return {
        gpu_key(gpu): gpu.memory_used_bytes + (gpu.shared_memory_used_bytes or 0)
        for gpu in gpus
        if gpu.memory_used_bytes is not None
    }


def _key(process: GPUProcess) -> str:
    return gpu_key(GPUUsage(process.device_index, process.uuid, process.pci_bus_id))


def _read_status(pid: int) -> dict[str, int] | None:
    """The memory of one process by kind; None if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return _without_proc(pid)
    found = dict.fromkeys(_FIELDS, 0)
    for line in lines:
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found


def _without_proc(pid: int) -> dict[str, int] | None:
    """Elsewhere than on Linux: the process's own pages count as anonymous, the rest as mapped."""
    if Path("/proc/self/status").exists():
        return None
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(pid).memory_full_info()
        return {"RssAnon": memory.uss, "RssFile": max(0, memory.rss - memory.uss), "RssShmem": 0, "VmLck": 0}
    return None
