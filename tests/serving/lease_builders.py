"""Nodes with memory to lease, and plans that take it."""

from collections.abc import Iterable

from xgen_ray.hardware.types import (
    GPUDetectionResult,
    GPUInfo,
    GPUType,
    GPUUsage,
    HostFacts,
    NodeSnapshot,
    NodeUsage,
)
from xgen_ray.models.types import ModelFacts, ModelFormat, ModelTask
from xgen_ray.placement.types import (
    Backend,
    Footprint,
    FootprintItem,
    GPUNeed,
    Plan,
    ResolvedOptions,
)
from xgen_ray.serving.leases import Ground, Holder

GIB = 2**30
RESERVE = 2 * GIB  # of 40 GiB: 5 percent stay with the system


def card(index: int = 0, total_gib: int = 24) -> GPUInfo:
    return GPUInfo(
        GPUType.NVIDIA,
        index,
        f"Card {index}",
        memory_total_bytes=total_gib * GIB,
        uuid=f"GPU-{index}",
        pci_bus_id=f"0000:0{index + 1}:00.0",
        integrated=False,
        detected_by="pynvml",
    )


def apu(carve_out_gib: int = 4, shared_gib: int = 16) -> GPUInfo:
    return GPUInfo(
        GPUType.AMD_RDNA,
        0,
        "An APU",
        memory_total_bytes=carve_out_gib * GIB,
        pci_bus_id="0000:c1:00.0",
        integrated=True,
        unified_memory=True,
        shared_memory_total_bytes=shared_gib * GIB,
        detected_by="amdsmi",
    )


def snapshot(*gpus: GPUInfo, ram_gib: int = 40, cpus: int = 8) -> NodeSnapshot:
    host = HostFacts(
        hostname="box",
        os="Linux",
        machine="x86_64",
        cpu_model="a CPU",
        cpu_count=cpus,
        cpu_flags=frozenset(),
        memory_total_bytes=ram_gib * GIB,
        memory_available_bytes=ram_gib * GIB,
        memlock_limit_bytes=None,
    )
    return NodeSnapshot(host, GPUDetectionResult(bool(gpus), gpus, None, "pynvml", ()), 0.0)


def usage(
    node: NodeSnapshot,
    *,
    used: dict[int, int] | None = None,
    ram_used: int = 0,
    blind: Iterable[int] = (),
) -> NodeUsage:
    """Live figures: bytes in use by GPU index, and of RAM. ``blind`` GPUs have none."""
    gpus = tuple(
        GPUUsage(
            gpu.device_index,
            gpu.uuid,
            gpu.pci_bus_id,
            memory_used_bytes=(used or {}).get(gpu.device_index, 0),
            memory_free_bytes=(gpu.memory_total_bytes or 0) - (used or {}).get(gpu.device_index, 0),
            shared_memory_used_bytes=0 if gpu.integrated else None,
        )
        for gpu in node.detection.gpus
        if gpu.device_index not in blind
    )
    return NodeUsage(gpus, node.host.memory_total_bytes - ram_used, None)


def ground(
    *gpus: GPUInfo, used: dict[int, int] | None = None, ram_used: int = 0, blind: Iterable[int] = ()
) -> Ground:
    node = snapshot(*gpus)
    return Ground(node, usage(node, used=used, ram_used=ram_used, blind=blind))


def cpu_plan(ram_bytes: int, threads: int = 2) -> Plan:
    return _plan(Backend.LLAMA_SERVER_CPU, (), (), ram_bytes, threads)


def gpu_plan(
    *parts: tuple[GPUInfo, int], ram_bytes: int = 0, in_ram: int = 0, split_mode: str | None = None
) -> Plan:
    """Bytes on each of these GPUs; ``in_ram`` of the first one's lie in RAM."""
    needs = tuple(GPUNeed(size, in_ram if place == 0 else 0) for place, (_, size) in enumerate(parts))
    return _plan(
        Backend.LLAMA_SERVER_VULKAN,
        tuple(gpu for gpu, _ in parts),
        needs,
        ram_bytes,
        4,
        split_mode=split_mode,
    )


def holder(number: int = 1) -> Holder:
    return Holder(f"replica-{number}", 1000 + number, float(number))


def _plan(
    backend: Backend,
    gpus: tuple[GPUInfo, ...],
    needs: tuple[GPUNeed, ...],
    ram_bytes: int,
    threads: int,
    *,
    split_mode: str | None = None,
) -> Plan:
    options = ResolvedOptions(
        task=ModelTask.GENERATE,
        context=2048,
        slots=1,
        batch=512,
        ubatch=512,
        threads=threads,
        gpu_layers=99 if gpus else 0,
        gpus=gpus,
        split_mode=split_mode,
    )
    items = [FootprintItem("weights", ram_bytes, False, "in RAM")]
    items += [FootprintItem("weights", need.size_bytes, True, "on a GPU") for need in needs]
    return Plan(
        facts=ModelFacts(ModelFormat.GGUF, "/models/m.gguf", ("/models/m.gguf",), GIB, layer_count=2),
        backend=backend,
        command=("llama-server",),
        options=options,
        footprint=Footprint(tuple(items)),
        why="a test asked for it",
        candidates=(),
        gpu_needs=needs,
    )
