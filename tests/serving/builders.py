"""Small worlds for control: a CPU node with one engine, a model that fits it and one that does not."""

from xgen_ray.hardware.types import (
    DetectorReport,
    GPUDetectionResult,
    HostFacts,
    NodeSnapshot,
    NodeUsage,
)
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement.types import Backend, BackendStatus
from xgen_ray.schema import FailureReport, LoadRequest, ReplicaStatus
from xgen_ray.serving.state import Inventory

GIB = 2**30


def inventory(available_bytes: int = 16 * GIB) -> Inventory:
    host = HostFacts(
        hostname="box",
        os="Linux",
        machine="x86_64",
        cpu_model="a CPU",
        cpu_count=8,
        cpu_flags=frozenset({"avx2"}),
        memory_total_bytes=32 * GIB,
        memory_available_bytes=available_bytes,
        memlock_limit_bytes=None,
    )
    detection = GPUDetectionResult(False, (), None, "cpu_fallback", (DetectorReport("cpu"),))
    engine = BackendStatus(Backend.LLAMA_SERVER_CPU, True, "found", ("llama-server",), "1")
    return Inventory(NodeSnapshot(host, detection, 0.0), NodeUsage((), available_bytes, None), (engine,))


def facts(name: str = "small", weight_bytes: int = 100 * 2**20) -> ModelFacts:
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


def replica(replica_id: str = "r1", state: str = "ready", since: float = 10.0) -> ReplicaStatus:
    return ReplicaStatus(replica_id=replica_id, node="box", state=state, since=since)


def failure(kind: str = "crashed", at: float = 10.0) -> FailureReport:
    return FailureReport(failure=kind, message=f"the engine {kind}", log_tail=("last words",), at=at)
