"""From control's state to what the management API answers. Pure."""

import dataclasses

from xgen_ray.hardware.types import GPUInfo, GPUType, HostFacts
from xgen_ray.placement import available_backends, recommend
from xgen_ray.placement.types import Candidate, Footprint, Plan, Refusal
from xgen_ray.schema import (
    BackendReport,
    CandidateReport,
    DetectorLine,
    FootprintLine,
    GPUReport,
    GPUsReport,
    ModelStatus,
    NodeReport,
    Phase,
    PlanReport,
)
from xgen_ray.serving.state import Inventory, Model

GIB = 2**30

# The API speaks of run times where the hardware layer tells architectures apart.
API_GPU_TYPES: dict[GPUType, str] = {
    GPUType.NVIDIA: "cuda",
    GPUType.AMD_RDNA: "rocm",
    GPUType.AMD_CDNA: "rocm",
    GPUType.APPLE_MPS: "metal",
    GPUType.CPU: "cpu",
    GPUType.UNKNOWN: "gpu",
}


def model_status(model: Model, base_url: str) -> ModelStatus:
    """``base_url`` is where clients reach the router, without ``/v1``."""
    plan: PlanReport | None = None
    decision = model.plan or model.refusal
    if decision is not None:
        plan = plan_report(model.request.model, decision)
    reachable = model.phase in (Phase.READY, Phase.RECOVERING)
    return ModelStatus(
        name=model.name,
        model=model.request.model,
        origin=model.origin,
        phase=model.phase,
        reason=model.reason,
        endpoint=f"{base_url}/v1" if reachable else None,
        task=model.plan.options.task.value if model.plan else None,
        format=model.facts.format.value if model.facts else None,
        backend=model.plan.backend if model.plan else None,
        plan=plan,
        replicas=tuple(sorted(model.replicas.values(), key=lambda status: status.replica_id)),
        wanted_replicas=model.request.replicas,
        progress=model.progress,
        failures=model.failures,
        since=model.since,
    )


def plan_report(source: str, decision: Plan | Refusal) -> PlanReport:
    """The same words for a dry run and for a real load."""
    if isinstance(decision, Refusal):
        return PlanReport(
            accepted=False,
            model=source,
            message=decision.message,
            candidates=tuple(_candidate(candidate) for candidate in decision.candidates),
        )
    options = {
        field.name: getattr(decision.options, field.name)
        for field in dataclasses.fields(decision.options)
        if field.name != "gpus"
    }
    return PlanReport(
        accepted=True,
        model=source,
        message=f"would run on {decision.backend.value}: {decision.why}",
        backend=decision.backend,
        why=decision.why,
        gpus=tuple(_gpu_words(gpu) for gpu in decision.options.gpus),
        options={name: value for name, value in options.items() if value not in (None, ())},
        footprint=_footprint(decision.footprint),
        footprint_bytes=decision.footprint.total_bytes,
        candidates=tuple(_candidate(candidate) for candidate in decision.candidates),
        notes=tuple(f"{note.option} = {note.value}: {note.reason}" for note in decision.notes),
        warnings=decision.warnings,
    )


def gpus_report(node: str, inventory: Inventory) -> GPUsReport:
    """The answer for one node; ``nodes`` has the details."""
    report = node_report(node, inventory)
    return GPUsReport(
        success=True,
        gpus=report.gpus,
        gpu_type=report.gpu_type,
        recommended_backend=report.recommended_backend,
        available_backends=report.available_backends,
        detection_method=report.detection_method,
        nodes=(report,),
    )


def node_report(node: str, inventory: Inventory) -> NodeReport:
    detection = inventory.snapshot.detection
    primary = detection.primary_gpu
    host: HostFacts = inventory.snapshot.host
    usage = inventory.usage
    backends = backend_reports(inventory)
    return NodeReport(
        node=node,
        gpus=tuple(_gpu(index, gpu, node) for index, gpu in enumerate(detection.gpus)),
        gpu_type=API_GPU_TYPES[primary.gpu_type] if primary else "cpu",
        recommended_backend=recommend(
            inventory.snapshot, inventory.statuses, vllm_rocm_gfx=inventory.policy.vllm_rocm_gfx
        ),
        available_backends=tuple(report.backend for report in backends if report.available),
        backends=backends,
        detection_method=detection.detection_method,
        detectors=tuple(
            DetectorLine(detector=report.detector, found=len(report.gpus), reason=report.reason)
            for report in detection.reports
        ),
        cpu=host.cpu_model,
        cpu_count=host.cpu_count,
        memory_total_bytes=host.memory_total_bytes,
        memory_available_bytes=usage.memory_available_bytes if usage else host.memory_available_bytes,
    )


def backend_reports(inventory: Inventory) -> tuple[BackendReport, ...]:
    """Every backend, with the engine's word and the hardware's taken together."""
    statuses = available_backends(
        inventory.snapshot, inventory.statuses, vllm_rocm_gfx=inventory.policy.vllm_rocm_gfx
    )
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


def _gpu(index: int, gpu: GPUInfo, node: str) -> GPUReport:
    memory_gb = round(gpu.memory_total_bytes / GIB, 1) if gpu.memory_total_bytes else None
    return GPUReport(
        id=index,
        name=gpu.device_name,
        type=API_GPU_TYPES[gpu.gpu_type],
        available=True,
        memory_gb=memory_gb,
        memory=f"{memory_gb:.0f}GB" if memory_gb else None,
        node=node,
        gpu_type=gpu.gpu_type.value,
        uuid=gpu.uuid,
        pci_bus_id=gpu.pci_bus_id,
        gfx_version=gpu.gfx_version,
        compute_capability=gpu.compute_capability,
        integrated=gpu.integrated,
        unified_memory=gpu.unified_memory,
    )


def _gpu_words(gpu: GPUInfo) -> str:
    return f"[{gpu.device_index}] {gpu.device_name}"


def _footprint(footprint: Footprint) -> tuple[FootprintLine, ...]:
    return tuple(
        FootprintLine(name=item.name, size_bytes=item.size_bytes, on_gpu=item.on_gpu, detail=item.detail)
        for item in footprint.items
    )


def _candidate(candidate: Candidate) -> CandidateReport:
    return CandidateReport(
        backend=candidate.backend,
        fits=candidate.fits,
        reasons=candidate.reasons,
        needs_bytes=candidate.footprint.total_bytes if candidate.footprint else None,
    )
