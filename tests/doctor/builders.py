"""A node in good health, from which each test takes one thing away."""

from dataclasses import replace
from typing import Any

from xgen_ray.doctor.facts import (
    PCIGPU,
    Clock,
    DeviceFile,
    Disk,
    Limits,
    NodeFacts,
    Processor,
    Program,
    Versions,
)
from xgen_ray.hardware import (
    DetectorReport,
    GPUDetectionResult,
    GPUInfo,
    GPUType,
    HostFacts,
    NodeSnapshot,
)
from xgen_ray.placement.types import Backend, BackendStatus, EngineDevice

GIB = 2**30
RTX = GPUInfo(
    GPUType.NVIDIA,
    0,
    "NVIDIA GeForce RTX 4090",
    memory_total_bytes=24 * GIB,
    compute_capability="8.9",
    pci_bus_id="0000:01:00.0",
    uuid="GPU-1",
    driver_version="570.86",
    detected_by="pynvml",
)
RADEON = GPUInfo(
    GPUType.AMD_RDNA,
    0,
    "AMD Radeon RX 7900 XTX",
    memory_total_bytes=24 * GIB,
    gfx_version="gfx1100",
    pci_bus_id="0000:03:00.0",
    uuid="GPU-2",
    detected_by="amdsmi",
)
CUDA = BackendStatus(
    Backend.LLAMA_SERVER_CUDA,
    True,
    "lists CUDA0",
    ("llama-server",),
    "b9000",
    (EngineDevice("CUDA0", RTX.device_name, 24 * GIB, 24 * GIB),),
)
VULKAN = BackendStatus(
    Backend.LLAMA_SERVER_VULKAN,
    True,
    "lists Vulkan0",
    ("llama-server",),
    "b9000",
    (EngineDevice("Vulkan0", RADEON.device_name, 24 * GIB, 24 * GIB),),
)
CPU = BackendStatus(Backend.LLAMA_SERVER_CPU, True, "has computed a token", ("llama-server",), "b9000")
VLLM_WITHOUT_AMDSMI = BackendStatus(
    Backend.VLLM_ROCM,
    False,
    "vLLM 0.29.0 at /opt/vllm/bin/python, built for rocm, would choose UnspecifiedPlatform here: "
    "ROCm platform is not available because: No module named 'amdsmi'",
    ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
    "0.29.0",
    advice="install amdsmi where vLLM is: /opt/vllm/bin/python -m pip install amdsmi",
)
VLLM_FOR_CUDA = BackendStatus(
    Backend.VLLM_ROCM,
    False,
    "vLLM 0.29.0 at /opt/vllm/bin/python is built for cuda, not for rocm",
    (),
    "0.29.0",
    advice="install vLLM's build for rocm in an environment of its own",
)
HOST = HostFacts(
    "node-1",
    "Linux",
    "x86_64",
    "AMD EPYC",
    16,
    frozenset({"avx2", "fma", "f16c"}),
    64 * GIB,
    60 * GIB,
    64 * GIB,
)
LIMITS = Limits(
    open_files=65_536,
    open_files_hard=65_536,
    machine_memory_bytes=64 * GIB,
    container_memory_bytes=None,
    swap_total_bytes=0,
    swap_used_bytes=0,
)
NVIDIA_FILES = (
    DeviceFile("/dev/nvidia-uvm", True, "root", 0o666),
    DeviceFile("/dev/nvidia0", True, "root", 0o666),
    DeviceFile("/dev/nvidiactl", True, "root", 0o666),
)


def disk(role: str, free_gib: float, total_gib: float = 1000.0) -> Disk:
    return Disk(role, f"/{role}", int(total_gib * GIB), int(free_gib * GIB))


DISKS = (disk("cache", 500), disk("state", 500), disk("shared memory", 32, 32), disk("temporary files", 500))


def snapshot(*gpus: GPUInfo, host: HostFacts = HOST, **reasons: str) -> NodeSnapshot:
    """``reasons`` are the detectors' by name, dashes written as underscores."""
    told = {name.replace("_", "-"): reason for name, reason in reasons.items()}
    absent = {"amdsmi": "library libamd_smi.so not found", "pynvml": "library libnvidia-ml.so.1 not found"}
    reports = []
    for name in ("amdsmi", "pynvml", "torch-rocm", "torch-cuda"):
        found = tuple(gpu for gpu in gpus if gpu.detected_by == name)
        reports.append(DetectorReport(name, found, told.get(name, None if found else absent.get(name))))
    primary = gpus[0] if gpus else None
    return NodeSnapshot(host, GPUDetectionResult(bool(gpus), gpus, primary, "test", tuple(reports)), 0.0)


def nvidia_node(**changes: Any) -> NodeFacts:
    """One RTX 4090 that everything is right about."""
    facts = NodeFacts(
        snapshot=snapshot(RTX),
        statuses=(CUDA, CPU),
        user="ray",
        pci_gpus=(PCIGPU("0000:01:00.0", "nvidia", "nvidia"),),
        device_files=NVIDIA_FILES,
        limits=LIMITS,
        processor=Processor("schedutil", "acpi-cpufreq"),
        disks=DISKS,
        versions=Versions("0.1.0", "3.11.7", "2.60.0"),
        clock=Clock(synchronised=True),
        haproxy=Program("/opt/haproxy", "HAProxy version 2.8"),
    )
    return replace(facts, **changes)


def amd_node(**changes: Any) -> NodeFacts:
    """One RX 7900 XTX that everything is right about."""
    right = {
        "snapshot": snapshot(RADEON),
        "statuses": (VULKAN, CPU),
        "pci_gpus": (PCIGPU("0000:03:00.0", "amd", "amdgpu"),),
        "device_files": (
            DeviceFile("/dev/dri/renderD128", True, "render", 0o660),
            DeviceFile("/dev/kfd", True, "render", 0o660),
        ),
    }
    return nvidia_node(**{**right, **changes})
