"""Nodes, models and engine lists to place with, each in one call."""

from collections.abc import Sequence
from dataclasses import replace

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
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.sizes import GIB, MIB
from xgen_ray.placement.types import Backend, BackendStatus, Engine, EngineDevice


def host(
    ram: int = 64 * GIB,
    *,
    available: int | None = None,
    cpus: int = 16,
    memlock: int | None = None,
    flags: frozenset[str] = frozenset(),
) -> HostFacts:
    return HostFacts(
        hostname="node",
        os="Linux",
        machine="x86_64",
        cpu_model="a CPU",
        cpu_count=cpus,
        cpu_flags=flags,
        memory_total_bytes=ram,
        memory_available_bytes=int(ram * 0.9) if available is None else available,
        memlock_limit_bytes=ram if memlock is None else memlock,
    )


def node(*gpus: GPUInfo, on: HostFacts | None = None) -> NodeSnapshot:
    detection = GPUDetectionResult(
        available=bool(gpus),
        gpus=gpus,
        primary_gpu=gpus[0] if gpus else None,
        detection_method="test",
        reports=(),
    )
    return NodeSnapshot(host=on or host(), detection=detection, taken_at=1_700_000_000.0)


def nvidia(
    index: int = 0,
    name: str = "NVIDIA GeForce RTX 4090",
    memory: int | None = 24 * GIB,
    capability: str = "8.9",
) -> GPUInfo:
    return GPUInfo(
        gpu_type=GPUType.NVIDIA,
        device_index=index,
        device_name=name,
        memory_total_bytes=memory,
        compute_capability=capability,
        pci_bus_id=f"0000:{index + 1:02x}:00.0",
        uuid=f"GPU-{index:04d}",
        integrated=False,
    )


def rtx4090(index: int = 0) -> GPUInfo:
    return nvidia(index)


def h100(index: int = 0) -> GPUInfo:
    return nvidia(index, "NVIDIA H100 80GB HBM3", 80 * GIB, "9.0")


def mig(position: int = 0, card: int = 0) -> GPUInfo:
    """One of the slices of an H100, each 40 GB."""
    return replace(
        h100(card),
        device_name="NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        memory_total_bytes=40 * GIB,
        uuid=f"MIG-{card:04d}-{position}",
        mig_profile="3g.40gb",
        mig_parent_uuid=h100(card).uuid,
    )


def gb10() -> GPUInfo:
    return replace(nvidia(0, "NVIDIA GB10", None, "12.1"), integrated=True, unified_memory=True)


def amd(index: int, name: str, gfx: str, memory: int, kind: GPUType = GPUType.AMD_RDNA) -> GPUInfo:
    return GPUInfo(
        gpu_type=kind,
        device_index=index,
        device_name=name,
        memory_total_bytes=memory,
        gfx_version=gfx,
        pci_bus_id=f"0000:{index + 0xC1:02x}:00.0",
        uuid=f"amd-{index:04d}",
        integrated=False,
    )


def rx7900xtx(index: int = 0) -> GPUInfo:
    return amd(index, "AMD Radeon RX 7900 XTX", "gfx1100", 24 * GIB)


def mi300x(index: int = 0) -> GPUInfo:
    return amd(index, "AMD Instinct MI300X OAM", "gfx942", 192 * GIB, GPUType.AMD_CDNA)


def igpu(index: int = 1) -> GPUInfo:
    """The small display GPU inside a desktop Ryzen."""
    gpu = amd(index, "AMD Radeon Graphics", "gfx1036", 512 * MIB)
    return replace(gpu, integrated=True, unified_memory=True, shared_memory_total_bytes=16 * GIB)


def strix_halo(carve_out: int = GIB, shared: int = 56 * GIB) -> GPUInfo:
    gpu = amd(0, "AMD Radeon Graphics", "gfx1151", carve_out)
    return replace(gpu, integrated=True, unified_memory=True, shared_memory_total_bytes=shared)


def usage(snapshot: NodeSnapshot, free: Sequence[int | None], *, available: int | None = None) -> NodeUsage:
    """Live figures in which GPU i has ``free[i]`` bytes left."""
    return NodeUsage(
        gpus=tuple(
            GPUUsage(
                device_index=gpu.device_index,
                uuid=gpu.uuid,
                pci_bus_id=gpu.pci_bus_id,
                memory_free_bytes=left,
            )
            for gpu, left in zip(snapshot.detection.gpus, free, strict=True)
        ),
        memory_available_bytes=snapshot.host.memory_available_bytes if available is None else available,
        cpu_percent=None,
    )


def device(name: str, description: str, total: int | None = None, free: int | None = None) -> EngineDevice:
    return EngineDevice(name, description, total, total if free is None else free)


def there(backend: Backend, *devices: EngineDevice) -> BackendStatus:
    return BackendStatus(
        backend, True, "found", command=(f"/usr/bin/{backend}",), version="1", devices=devices
    )


def all_there(snapshot: NodeSnapshot) -> tuple[BackendStatus, ...]:
    """Every engine installed, and llama-server listing every GPU that its API can drive."""
    statuses = []
    for row in BACKENDS.values():
        fitting = [gpu for gpu in snapshot.detection.gpus if gpu.gpu_type in row.gpu_types]
        listed = tuple(
            device(f"{row.device_prefix}{order}", gpu.device_name, _listed_memory(gpu, snapshot))
            for order, gpu in enumerate(fitting)
        )
        statuses.append(there(row.backend, *(listed if row.engine is Engine.LLAMA_SERVER else ())))
    return tuple(statuses)


def _listed_memory(gpu: GPUInfo, snapshot: NodeSnapshot) -> int | None:
    if gpu.memory_total_bytes is None:
        return snapshot.host.memory_total_bytes
    return gpu.memory_total_bytes + (gpu.shared_memory_total_bytes or 0)


def smollm2(**changes: object) -> ModelFacts:
    """The sample model's figures, as its header has them."""
    facts = ModelFacts(
        format=ModelFormat.GGUF,
        path="/models/smollm2-135m-instruct-q4_1.gguf",
        files=("/models/smollm2-135m-instruct-q4_1.gguf",),
        weight_bytes=98_362_432,
        architecture="llama",
        name="SmolLM2 135M",
        parameter_count=134_515_008,
        quantization="Q4_1",
        layer_count=30,
        embedding_length=576,
        head_count=9,
        kv_heads=(3,) * 30,
        key_length=64,
        value_length=64,
        context_length=8192,
        vocabulary_size=49_152,
        has_chat_template=True,
    )
    return replace(facts, **changes)  # type: ignore[arg-type]  # names and values are the caller's


def dense(
    billions: float,
    bits: float = 4.5,
    *,
    model_format: ModelFormat = ModelFormat.GGUF,
    layers: int = 64,
    kv_heads: int = 8,
    heads: int = 64,
    context: int | None = 131_072,
    task: ModelTask = ModelTask.GENERATE,
) -> ModelFacts:
    """A dense model with grouped heads, of so many parameters at so many bits each."""
    parameters = int(billions * 1e9)
    return ModelFacts(
        format=model_format,
        path=f"/models/dense-{billions:g}b",
        files=(f"/models/dense-{billions:g}b",),
        weight_bytes=int(parameters * bits / 8),
        architecture="llama",
        name=f"dense-{billions:g}b",
        parameter_count=parameters,
        layer_count=layers,
        embedding_length=heads * 80,
        head_count=heads,
        kv_heads=(kv_heads,) * layers,
        key_length=128,
        value_length=128,
        context_length=context,
        vocabulary_size=128_256,
        task=task,
    )


def embedder(weight_bytes: int = 600 * MIB, context: int = 8192) -> ModelFacts:
    return ModelFacts(
        format=ModelFormat.GGUF,
        path="/models/embedder.gguf",
        files=("/models/embedder.gguf",),
        weight_bytes=weight_bytes,
        name="embedder",
        layer_count=24,
        embedding_length=1024,
        head_count=16,
        kv_heads=(16,) * 24,
        key_length=64,
        value_length=64,
        context_length=context,
        vocabulary_size=250_000,
        task=ModelTask.EMBED,
        pooling="cls",
    )
