"""From what nodes say of themselves to what the management API answers about them. Pure."""

from collections.abc import Callable, Iterable, Mapping

from xgen_ray.console import LocalModel, LocalModelsReport
from xgen_ray.hardware.types import GPUInfo, GPUType, GPUUsage
from xgen_ray.models import Shelf, ShelvedModel
from xgen_ray.placement import PlacementPolicy, available_backends, gpu_key, recommend
from xgen_ray.placement.sizes import GIB, MIB
from xgen_ray.placement.types import BackendStatus
from xgen_ray.schema import (
    BackendReport,
    BackendsReport,
    DetectorLine,
    DrainReport,
    GPUReport,
    GPUsReport,
    LeaseReport,
    NodeReport,
    NodesReport,
)
from xgen_ray.serving.draining import why_closed
from xgen_ray.serving.node_state import NodeIdentity, NodeState
from xgen_ray.serving.nodes import NodesSeen, SilentNode
from xgen_ray.serving.state import App, ControlState

UNTAGGED = (
    "Ray was started here without its tags, so it counts as a CPU node; stop it, then join with "
    "`xgen-ray node --address HEAD:PORT`"
)

# The API speaks of run times where the hardware layer tells architectures apart.
API_GPU_TYPES: dict[GPUType, str] = {
    GPUType.NVIDIA: "cuda",
    GPUType.AMD_RDNA: "rocm",
    GPUType.AMD_CDNA: "rocm",
    GPUType.APPLE_MPS: "metal",
    GPUType.CPU: "cpu",
    GPUType.UNKNOWN: "gpu",
}
# What a node is called by the kinds of GPU that it has, in the order in which it names them.
_BADGES: dict[str, str] = {
    "cuda": "CUDA GPU",
    "rocm": "ROCm GPU",
    "metal": "Metal GPU",
    "gpu": "GPU",
    "cpu": "CPU only",
}
# A model that could run on either of two nodes runs best on the kind that comes first.
_KINDS = ("cuda", "rocm", "metal", "gpu", "cpu")


def nodes_report(
    seen: NodesSeen,
    control: ControlState,
    policy: PlacementPolicy,
    against: Callable[[NodeState], str] = lambda _: "",
) -> NodesReport:
    """Every node, by name. ``against`` says why a node that answers takes no models, if it takes none."""
    reports = [_node(state, control, policy, against(state)) for state in seen.states] + [
        _silent(one, control) for one in seen.silent
    ]
    there = {report.node for report in reports}
    return NodesReport(
        nodes=tuple(sorted(reports, key=lambda report: (report.node, report.node_id))),
        drained_away=tuple(sorted(control.drained.keys() - there)),
    )


def drain_report(node: str, control: ControlState) -> DrainReport:
    """What has come of a drain, or of its end, so far. ``node`` is a name or an id."""
    name = (control.nodes or {}).get(node, node)
    return DrainReport(node=name, drained_since=control.drained.get(name), models=control.models_on(name))


def gpus_report(nodes: NodesReport) -> GPUsReport:
    """The fleet as one: all GPUs, the best kind that is there, and every backend that can start somewhere."""
    kinds = [node.gpu_type for node in nodes.nodes]
    best = min(kinds, key=_KINDS.index, default="cpu")
    first = next((node for node in nodes.nodes if node.gpu_type == best), None)
    available = {backend: None for node in nodes.nodes for backend in node.available_backends}
    return GPUsReport(
        success=True,
        gpus=tuple(gpu for node in nodes.nodes for gpu in node.gpus),
        gpu_type=best,
        recommended_backend=first.recommended_backend if first else "cpu",
        available_backends=tuple(available),
        detection_method=first.detection_method if first else "cpu_fallback",
        badges=badges(gpu.type for node in nodes.nodes for gpu in node.gpus),
        nodes=nodes.nodes,
    )


def badges(kinds: Iterable[str]) -> tuple[str, ...]:
    """One for each of ``kinds`` (the API's words for them): of none, that there is a CPU and nothing else."""
    found = set(kinds) or {"cpu"}
    return tuple(badge for kind, badge in _BADGES.items() if kind in found)


def shelves_report(shelves: Mapping[str, Shelf]) -> LocalModelsReport:
    """What lies on the nodes, by their names: models of the same path, kind and size are one."""
    where: dict[ShelvedModel, list[str]] = {}
    for node, shelf in shelves.items():
        for model in shelf.models:
            where.setdefault(model, []).append(node)
    models = [
        LocalModel(
            model=str(model.path),
            name=model.name,
            format=model.format.value,
            size_bytes=model.size_bytes,
            nodes=tuple(sorted(nodes)),
        )
        for model, nodes in where.items()
    ]
    return LocalModelsReport(
        models=tuple(sorted(models, key=lambda model: (model.name, model.model))),
        incomplete=tuple(f"{node}: {text}" for node, shelf in shelves.items() for text in shelf.left_out),
    )


def backends_report(nodes: NodesReport) -> BackendsReport:
    return BackendsReport(nodes={node.node: node.backends for node in nodes.nodes})


def _node(state: NodeState, control: ControlState, policy: PlacementPolicy, refused: str) -> NodeReport:
    detection, host, usage = state.snapshot.detection, state.snapshot.host, state.usage
    statuses = available_backends(state.snapshot, state.statuses, vllm_rocm_gfx=policy.vllm_rocm_gfx)
    primary = detection.primary_gpu
    name = state.node.name
    if name in control.drained:
        refused = why_closed(name, refused)
    return NodeReport(
        node=name,
        node_id=state.node.node_id,
        tagged=state.node.tagged,
        schedulable=not refused,
        reason=refused or ("" if state.node.tagged else UNTAGGED),
        drained_since=control.drained.get(name),
        labels=dict(state.node.labels),
        leases=tuple(
            LeaseReport(
                lease=lease.lease_id,
                model=lease.model,
                backend=lease.backend,
                state="ending" if lease.released else lease.state.value,
                devices={claim.device: claim.size_bytes for claim in lease.claims},
                used={claim.device: claim.size_bytes for claim in lease.use.claims} if lease.use else {},
                threads=lease.threads,
            )
            for lease in state.leases
        ),
        models=tuple(
            sorted(model.name for model in control.models.values() if _is_on(model.live, state.node))
        ),
        gpus=tuple(_gpu(index, gpu, state) for index, gpu in enumerate(detection.gpus)),
        badges=badges(API_GPU_TYPES[gpu.gpu_type] for gpu in detection.gpus),
        gpu_type=API_GPU_TYPES[primary.gpu_type] if primary else "cpu",
        recommended_backend=recommend(state.snapshot, state.statuses, vllm_rocm_gfx=policy.vllm_rocm_gfx),
        available_backends=tuple(status.backend for status in statuses if status.available),
        backends=backend_reports(statuses),
        detection_method=detection.detection_method,
        detectors=tuple(
            DetectorLine(detector=report.detector, found=len(report.gpus), reason=report.reason)
            for report in detection.reports
        ),
        cpu=host.cpu_model,
        cpu_count=host.cpu_count,
        memory_total_bytes=host.memory_total_bytes,
        memory_available_bytes=usage.memory_available_bytes,
        cpu_percent=usage.cpu_percent,
        versions={
            "xgen-ray": state.versions.xgen_ray,
            "ray": state.versions.ray,
            "python": state.versions.python,
        },
    )


def _is_on(apps: Iterable[App], node: NodeIdentity) -> bool:
    return any(app.node_id == node.node_id for app in apps)


def _silent(silent: SilentNode, control: ControlState) -> NodeReport:
    name = silent.node.name
    # Its leases are not to be seen: an engine that is stopping counts until it is known to be gone.
    models = [one.name for one in control.models.values() if _is_on(one.apps.values(), silent.node)]
    reason = why_closed(name, silent.reason) if name in control.drained else silent.reason
    return NodeReport(
        node=name,
        node_id=silent.node.node_id,
        tagged=silent.node.tagged,
        schedulable=False,
        reason=reason,
        drained_since=control.drained.get(name),
        labels=dict(silent.node.labels),
        models=tuple(sorted(models)),
        gpus=(),
        gpu_type="cpu",
        recommended_backend="cpu",
        available_backends=(),
        backends=(),
        detection_method="no answer",
        detectors=(),
        cpu=None,
        cpu_count=0,
        memory_total_bytes=0,
        memory_available_bytes=0,
    )


def backend_reports(statuses: Iterable[BackendStatus]) -> tuple[BackendReport, ...]:
    """Every backend, with the engine's word and the hardware's taken together."""
    return tuple(
        BackendReport(
            backend=status.backend,
            available=status.available,
            reason=status.reason,
            version=status.version,
            devices=tuple(f"{device.name}: {device.description}" for device in status.devices),
        )
        for status in statuses
    )


def _gpu(index: int, gpu: GPUInfo, state: NodeState) -> GPUReport:
    memory_gb = round(gpu.memory_total_bytes / GIB, 1) if gpu.memory_total_bytes else None
    key = gpu_key(gpu)
    live = next((one for one in state.usage.gpus if gpu_key(one) == key), None) or GPUUsage(
        gpu.device_index, gpu.uuid, gpu.pci_bus_id
    )
    leased = [claim.size_bytes for lease in state.leases for claim in lease.claims if claim.device == key]
    kind = API_GPU_TYPES[gpu.gpu_type]
    memory = _size_words(gpu.memory_total_bytes)
    return GPUReport(
        id=index,
        name=gpu.device_name,
        type=kind,
        available=True,
        memory_gb=memory_gb,
        memory=memory,
        label=f"[{index}] {gpu.device_name} ({', '.join(word for word in (kind, memory) if word)})",
        node=state.node.name,
        gpu_type=gpu.gpu_type.value,
        uuid=gpu.uuid,
        pci_bus_id=gpu.pci_bus_id,
        gfx_version=gpu.gfx_version,
        compute_capability=gpu.compute_capability,
        integrated=gpu.integrated,
        unified_memory=gpu.unified_memory,
        shared_memory_bytes=gpu.shared_memory_total_bytes,
        memory_used_bytes=live.memory_used_bytes,
        memory_free_bytes=live.memory_free_bytes,
        leased_bytes=sum(leased),
        utilization_percent=live.utilization_percent,
        temperature_celsius=live.temperature_celsius,
        power_watts=live.power_watts,
    )


def _size_words(size_bytes: int | None) -> str | None:
    """As the origin writes it: ``24GB``; what is smaller than one, ``512MB``."""
    if not size_bytes:
        return None
    return f"{size_bytes / GIB:.0f}GB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f}MB"
