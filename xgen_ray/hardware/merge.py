"""One answer from many detectors: each GPU once, and the one that matters first. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from xgen_ray.hardware.software import is_software_renderer
from xgen_ray.hardware.types import DetectorReport, GPUDetectionResult, GPUInfo, GPUType

CPU_FALLBACK = "cpu_fallback"

# Detectors, most trusted first, and whose GPUs each sees.
_VENDORS = {
    "amdsmi": "amd",
    "pynvml": "nvidia",
    "torch-rocm": "amd",
    "torch-cuda": "nvidia",
    "apple": "apple",
    "cpu": "cpu",
}
_TRUST = {detector: rank for rank, detector in enumerate(_VENDORS)}


def merge(reports: Sequence[DetectorReport]) -> GPUDetectionResult:
    """All GPUs of the reports, each once, whatever order the reports come in.

    Where two detectors saw one card, the vendor's own library wins over torch. Software renderers are
    left out and the report says so. GPUs of one report are never taken for each other: MIG slices and
    partitions share an address.
    """
    trusted = sorted(reports, key=lambda report: _TRUST.get(report.detector, len(_TRUST)))
    cleaned = tuple(_without_software(report) for report in trusted)
    gpus: list[GPUInfo] = []
    for position, report in enumerate(cleaned):
        before = cleaned[:position]
        gpus.extend(gpu for gpu in report.gpus if not _seen(gpu, report, before))
    primary = choose_primary(gpus)
    return GPUDetectionResult(
        available=bool(gpus),
        gpus=tuple(gpus),
        primary_gpu=primary,
        detection_method=primary.detected_by if primary is not None else CPU_FALLBACK,
        reports=cleaned,
    )


def choose_primary(gpus: Sequence[GPUInfo]) -> GPUInfo | None:
    """The GPU to use first: on a card rather than in the processor, then of a known type, then the one
    with most memory; between equals the first.
    """
    return max(gpus, key=_worth, default=None)


def _worth(gpu: GPUInfo) -> tuple[bool, bool, int]:
    # An APU of the CDNA line (MI300A) is a data centre GPU, not a display's.
    drives_display = bool(gpu.integrated) and gpu.gpu_type is not GPUType.AMD_CDNA
    memory = (gpu.memory_total_bytes or 0) + (gpu.shared_memory_total_bytes or 0)
    return not drives_display, gpu.gpu_type is not GPUType.UNKNOWN, memory


def _without_software(report: DetectorReport) -> DetectorReport:
    renderers = [gpu.device_name for gpu in report.gpus if is_software_renderer(gpu.device_name)]
    if not renderers:
        return report
    reasons = [report.reason] if report.reason else []
    reasons.append(f"left out, since it computes on the CPU: {', '.join(renderers)}")
    real = tuple(gpu for gpu in report.gpus if not is_software_renderer(gpu.device_name))
    return replace(report, gpus=real, reason="; ".join(reasons))


def _seen(gpu: GPUInfo, report: DetectorReport, before: Sequence[DetectorReport]) -> bool:
    """Whether a more trusted detector has this card. Without an address or UUID to compare, the answer
    is yes as soon as it has any card of the same vendor.
    """
    for earlier in before:
        for other in earlier.gpus:
            if gpu.pci_bus_id is not None and other.pci_bus_id is not None:
                if gpu.pci_bus_id == other.pci_bus_id:
                    return True
            elif gpu.uuid is not None and other.uuid is not None:
                if gpu.uuid == other.uuid:
                    return True
            elif _VENDORS.get(earlier.detector) == _VENDORS.get(report.detector):
                return True
    return False
