"""Detection for a person's eyes: what was found, and every detector's reason."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from xgen_ray.hardware.types import GPUDetectionResult, GPUInfo, HostFacts, NodeSnapshot

_GIB = 2**30


def render_snapshot(snapshot: NodeSnapshot) -> RenderableType:
    """GPUs, the primary one, every detector's answer and the host, for a rich console."""
    return Group(render_detection(snapshot.detection), Text(), _host_line(snapshot.host))


def render_detection(result: GPUDetectionResult) -> RenderableType:
    """GPUs, the primary one, and every detector's answer, for a rich console."""
    parts: list[RenderableType] = []
    if result.gpus:
        parts.append(_gpu_table(result))
        parts.extend(_notes(result))
        parts.append(Text())
    primary = result.primary_gpu
    chosen = f"{primary.device_name}, found by" if primary is not None else "no GPU, so"
    parts.append(Text.assemble(("Primary: ", "bold"), f"{chosen} {result.detection_method}"))
    parts.append(Text())
    parts.append(_detector_table(result))
    return Group(*parts)


def _gpu_table(result: GPUDetectionResult) -> Table:
    table = Table(title="GPUs", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("Index", "Type", "Name", "Chip", "Memory", "PCI"):
        table.add_column(heading, justify="right" if heading in ("Index", "Memory") else "left")
    for gpu in result.gpus:
        table.add_row(
            "*" if gpu == result.primary_gpu else "",
            str(gpu.device_index),
            gpu.gpu_type.value,
            escape(gpu.device_name),
            gpu.gfx_version or gpu.compute_capability or "-",
            _memory(gpu),
            gpu.pci_bus_id or "-",
        )
    return table


def _memory(gpu: GPUInfo) -> str:
    own, shared = gpu.memory_total_bytes, gpu.shared_memory_total_bytes
    if own is None:
        return "the system's" if gpu.unified_memory else "unknown"
    text = f"{own / _GIB:.1f} GiB"
    if shared is not None:
        return f"{text} + {shared / _GIB:.1f} shared"
    return f"{text}, shared" if gpu.unified_memory else text


def _notes(result: GPUDetectionResult) -> list[Text]:
    return [
        Text(f"GPU {gpu.device_index} ({gpu.device_name}): {note}", style="yellow")
        for gpu in result.gpus
        for note in gpu.notes
    ]


def _detector_table(result: GPUDetectionResult) -> Table:
    table = Table(title="Detectors", title_justify="left", title_style="bold")
    table.add_column("Detector")
    table.add_column("Found", justify="right")
    table.add_column("Reason", overflow="fold")
    for report in result.reports:
        table.add_row(report.detector, str(len(report.gpus)), escape(report.reason or ""))
    return table


def _host_line(host: HostFacts) -> Text:
    return Text.assemble(
        ("Host: ", "bold"),
        f"{host.hostname}, {host.os} {host.machine}, ",
        f"{host.cpu_count} CPUs ({host.cpu_model or 'model unknown'}), ",
        f"{host.memory_available_bytes / _GIB:.1f} of {host.memory_total_bytes / _GIB:.1f} GiB RAM available",
    )
