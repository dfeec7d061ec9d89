"""Small worlds for control: nodes with engines, a model that fits them and one that does not."""

from collections.abc import Sequence

from xgen_ray.hardware.types import (
    DetectorReport,
    GPUDetectionResult,
    GPUInfo,
    GPUType,
    GPUUsage,
    HostFacts,
    NodeSnapshot,
    NodeUsage,
)
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import NodeView, Outstanding
from xgen_ray.placement.types import Backend, BackendStatus, EngineDevice
from xgen_ray.schema import FailureReport, LoadRequest, ReplicaStatus
from xgen_ray.serving.state import Fleet, Inventory, Replica

GIB = 2**30
MIB = 2**20


def snapshot(ram_bytes: int = 32 * GIB, gpus: Sequence[GPUInfo] = ()) -> NodeSnapshot:
    host = HostFacts(
        hostname="box",
        os="Linux",
        machine="x86_64",
        cpu_model="a CPU",
        cpu_count=8,
        cpu_flags=frozenset({"avx2"}),
        memory_total_bytes=ram_bytes,
        memory_available_bytes=ram_bytes,
        memlock_limit_bytes=None,
    )
    primary = gpus[0] if gpus else None
    method = "amdsmi" if gpus else "cpu_fallback"
    detection = GPUDetectionResult(bool(gpus), tuple(gpus), primary, method, (DetectorReport("cpu"),))
    return NodeSnapshot(host, detection, 0.0)


def radeon(memory_bytes: int = 24 * GIB, number: int = 0) -> GPUInfo:
    return GPUInfo(
        GPUType.AMD_RDNA,
        number,
        "AMD Radeon RX 7900 XTX",
        memory_total_bytes=memory_bytes,
        gfx_version="gfx1100",
        pci_bus_id=f"0000:{number + 3:02x}:00.0",
        uuid=f"radeon-{number}",
        integrated=False,
    )


def engines(gpus: Sequence[GPUInfo] = ()) -> tuple[BackendStatus, ...]:
    """llama-server for the CPU everywhere, for Vulkan and ROCm where there are GPUs."""
    found = [BackendStatus(Backend.LLAMA_SERVER_CPU, True, "found", ("llama-server",), "1")]
    for backend, prefix in ((Backend.LLAMA_SERVER_VULKAN, "Vulkan"), (Backend.LLAMA_SERVER_ROCM, "ROCm")):
        devices = tuple(
            EngineDevice(f"{prefix}{place}", gpu.device_name, gpu.memory_total_bytes)
            for place, gpu in enumerate(gpus)
        )
        if devices:
            found.append(BackendStatus(backend, True, "found", (f"ls-{prefix}",), "1", devices))
    return tuple(found)


def inventory(available_bytes: int = 16 * GIB) -> Inventory:
    return Inventory(snapshot(), NodeUsage((), available_bytes, None), engines())


def view(
    node_id: str = "n1",
    *,
    available_bytes: int = 16 * GIB,
    gpus: Sequence[GPUInfo] = (),
    **changes: object,
) -> NodeView:
    live = tuple(
        GPUUsage(gpu.device_index, gpu.uuid, gpu.pci_bus_id, 0, gpu.memory_total_bytes) for gpu in gpus
    )
    fields: dict[str, object] = {
        "node_id": node_id,
        "name": f"node-{node_id}",
        "snapshot": snapshot(gpus=gpus),
        "statuses": engines(gpus),
        "usage": NodeUsage(live, available_bytes, None),
        "outstanding": Outstanding(),
        "taken": frozenset(),
        "has_files": True,
        "can_fetch": False,
        "tagged": True,
    }
    return NodeView(**{**fields, **changes})  # type: ignore[arg-type]  # names and values are the caller's


def fleet(*views: NodeView) -> Fleet:
    return Fleet(views or (view(),))


def facts(name: str = "small", weight_bytes: int = 100 * MIB) -> ModelFacts:
    return ModelFacts(
        format=ModelFormat.GGUF,
        path=f"/models/{name}.gguf",
        files=(f"/models/{name}.gguf",),
        weight_bytes=weight_bytes,
        architecture="llama",
        name=name,
        layer_count=2,
        embedding_length=64,
        head_count=4,
        kv_heads=(2, 2),
        key_length=16,
        value_length=16,
        context_length=4096,
        vocabulary_size=1000,
        has_chat_template=True,
    )


def request(name: str = "small", **changes: object) -> LoadRequest:
    return LoadRequest.model_validate({"model": f"/models/{name}.gguf", **changes})


def replica(replica_id: str = "r1", state: str = "ready", since: float = 10.0, node: str = "box") -> Replica:
    ready = state == "ready"
    status = ReplicaStatus(
        replica_id=replica_id,
        node=node,
        state=state,
        since=since,
        url=f"http://127.0.0.1/{replica_id}" if ready else None,
    )
    return Replica(status, "key" if ready else None)


def failure(kind: str = "crashed", at: float = 10.0) -> FailureReport:
    return FailureReport(failure=kind, message=f"the engine {kind}", log_tail=("last words",), at=at)
