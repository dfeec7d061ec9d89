"""What is known of a node before anything is judged. Sizes are bytes; ``None`` means not known."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from xgen_ray.hardware import NodeSnapshot
from xgen_ray.placement.types import Backend, BackendStatus


@dataclass(frozen=True, slots=True)
class PCIGPU:
    """A display or compute card on the PCI bus, whether or not anything drives it.

    ``vendor`` is ``nvidia`` or ``amd``; ``driver`` is the kernel driver bound to it.
    """

    address: str
    vendor: str
    driver: str | None


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A device file that GPUs are used through. ``group`` is its group's name, or number. ``vendor``, of a
    render node, is whose GPU it belongs to, if that is NVIDIA or AMD.
    """

    path: str
    usable: bool
    group: str | None = None
    mode: int | None = None
    vendor: str | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """Room where ``role`` keeps its files. ``problem``: why nothing can be said or written."""

    role: str
    path: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the system lets this process have. ``container_memory_bytes``: the cgroup's limit, if any."""

    open_files: int | None
    open_files_hard: int | None
    machine_memory_bytes: int
    container_memory_bytes: int | None
    swap_total_bytes: int
    swap_used_bytes: int


@dataclass(frozen=True, slots=True)
class Processor:
    """How the CPU's clock is governed: ``driver`` is the kernel's scaling driver."""

    governor: str | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class Versions:
    """What this node runs; ``ray`` is None where it is not installed."""

    xgen_ray: str
    python: str
    ray: str | None


@dataclass(frozen=True, slots=True)
class Head:
    """The cluster's head, as far as it told. ``problem``: why it did not."""

    address: str
    ray: str | None = None
    python: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """``synchronised`` is the kernel's word for it. ``skew_s`` is how far this clock is ahead of ``peer``'s,
    give or take ``error_s``; ``problem`` says why a peer that was to be asked gave no time.
    """

    synchronised: bool | None = None
    peer: str | None = None
    skew_s: float | None = None
    error_s: float = 0.0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A program that was tried: where it is, what it said of itself, or why it does not run."""

    path: str | None
    version: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Hub:
    """Whether the hub of models answers, and in what time."""

    endpoint: str
    seconds: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """All that the checks look at. ``head`` and ``hub`` are None where nobody asked for them;
    ``pci_gpus`` where the bus cannot be read. ``named`` are the backends whose command somebody gave.
    """

    snapshot: NodeSnapshot
    statuses: Sequence[BackendStatus]
    user: str
    pci_gpus: Sequence[PCIGPU] | None
    device_files: Sequence[DeviceFile]
    limits: Limits
    processor: Processor
    disks: Sequence[Disk]
    versions: Versions
    clock: Clock
    haproxy: Program
    head: Head | None = None
    hub: Hub | None = None
    named: Collection[Backend] = frozenset()
