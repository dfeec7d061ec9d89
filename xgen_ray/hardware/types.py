"""What a node has, as data. Sizes are bytes; ``None`` means not known."""

from dataclasses import dataclass, field
from enum import StrEnum


class GPUType(StrEnum):
    """Kind of accelerator; serialises as its value."""

    NVIDIA = "nvidia"
    AMD_RDNA = "amd_rdna"
    AMD_CDNA = "amd_cdna"
    APPLE_MPS = "apple_mps"
    CPU = "cpu"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class GPUInfo:
    """One GPU, or one MIG slice of one. Live usage is a separate query.

    ``device_index`` is the index in the vendor's own enumeration, the one its visibility variable
    takes (CUDA in PCI bus order, HIP order for AMD). A MIG slice has its parent's index and address, so
    only ``uuid`` names it: that is what CUDA_VISIBLE_DEVICES must be given. ``cuda_index`` names a whole GPU
    there too, where it is certain how CUDA counts in PCI bus order. ``pci_bus_id`` is normalised to
    ``0000:c1:00.0``. ``memory_total_bytes`` is what the device itself reports; for a device with
    ``unified_memory`` the usable budget is larger and is computed in placement.
    """

    gpu_type: GPUType
    device_index: int
    device_name: str
    memory_total_bytes: int | None = None
    compute_capability: str | None = None
    gfx_version: str | None = None
    pci_bus_id: str | None = None
    uuid: str | None = None
    cuda_index: int | None = None
    integrated: bool | None = None
    unified_memory: bool = False
    # Shared with the system (AMD's GTT), usable by an integrated GPU beyond its carve-out.
    shared_memory_total_bytes: int | None = None
    driver_version: str | None = None
    mig_profile: str | None = None
    mig_parent_uuid: str | None = None
    detected_by: str = "unknown"
    # Facts that could not be read, in words: "memory: NVML_ERROR_NOT_SUPPORTED".
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectorReport:
    """What one detector said. ``reason`` explains an empty or partial answer; None when all was well."""

    detector: str
    gpus: tuple[GPUInfo, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class GPUDetectionResult:
    """All GPUs of a node, each once. ``reports`` explains every detector, also the silent ones.

    ``detection_method`` names the detector that found ``primary_gpu``, or ``cpu_fallback``.
    """

    available: bool
    gpus: tuple[GPUInfo, ...]
    primary_gpu: GPUInfo | None
    detection_method: str
    reports: tuple[DetectorReport, ...]


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The machine around the GPUs. ``cpu_count`` honours affinity and cgroup limits, and so do the
    memory figures. ``memlock_limit_bytes`` equals ``memory_total_bytes`` when there is no limit.
    """

    hostname: str
    os: str
    machine: str
    cpu_model: str | None
    cpu_count: int
    cpu_flags: frozenset[str]
    memory_total_bytes: int
    memory_available_bytes: int
    memlock_limit_bytes: int | None


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """Everything known of a node at one moment (``taken_at``, Unix seconds)."""

    host: HostFacts
    detection: GPUDetectionResult
    taken_at: float


@dataclass(frozen=True, slots=True)
class GPUUsage:
    """Live figures of one GPU, matched to its ``GPUInfo`` by ``uuid`` or ``pci_bus_id``."""

    device_index: int
    uuid: str | None
    pci_bus_id: str | None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    shared_memory_used_bytes: int | None = None
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


@dataclass(frozen=True, slots=True)
class GPUProcess:
    """What one process has on one GPU, matched to its ``GPUInfo`` by ``uuid`` or ``pci_bus_id``.

    ``shared_memory_bytes`` is what it has in the memory that an integrated GPU shares with the system.
    """

    pid: int
    device_index: int
    uuid: str | None
    pci_bus_id: str | None
    memory_bytes: int | None = None
    shared_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """Live figures of a node at ``taken_at`` (Unix seconds). ``notes`` say why figures are missing:
    "pynvml: no answer in 5 s".

    ``claimed`` is what models have been promised of each device and the figures do not show yet, by the
    device's key. No detector fills it: placement does, and takes it off what is free.
    """

    gpus: tuple[GPUUsage, ...]
    memory_available_bytes: int
    cpu_percent: float | None
    taken_at: float = field(default=0.0)
    notes: tuple[str, ...] = ()
    claimed: tuple[tuple[str, int], ...] = ()
