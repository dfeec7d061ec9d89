"""What a person sees of a detection."""

from rich.console import Console, RenderableType

from xgen_ray.hardware import (
    DetectorReport,
    GPUInfo,
    GPUType,
    HostFacts,
    NodeSnapshot,
    merge,
)
from xgen_ray.hardware.report import render_detection, render_snapshot

GIB = 2**30
HOST = HostFacts("node-1", "Linux", "x86_64", "Test CPU", 16, frozenset(), 64 * GIB, 48 * GIB, None)


def shown(renderable: RenderableType) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def line_with(text: str, output: str) -> str:
    (line,) = [line for line in output.splitlines() if text in line]
    return line


def test_gpus_primary_notes_and_every_reason() -> None:
    card = GPUInfo(
        GPUType.NVIDIA,
        0,
        "NVIDIA [RTX] 4090",
        24 * GIB,
        "8.9",
        pci_bus_id="0000:01:00.0",
        detected_by="pynvml",
    )
    apu = GPUInfo(
        GPUType.AMD_RDNA, 0, "AMD Radeon 8060S", GIB // 2, gfx_version="gfx1151", integrated=True,
        unified_memory=True, shared_memory_total_bytes=60 * GIB, detected_by="amdsmi",
        notes=("HIP index: AMDSMI_STATUS_NOT_SUPPORTED",),
    )  # fmt: skip
    detection = merge(
        [
            DetectorReport("amdsmi", (apu,)),
            DetectorReport("pynvml", (card,)),
            DetectorReport("torch-cuda", reason="not asked: pynvml found 1 GPU"),
        ]
    )
    output = shown(render_snapshot(NodeSnapshot(HOST, detection, 0.0)))
    row = line_with("0000:01:00.0", output)
    assert "*" in row
    assert "NVIDIA [RTX] 4090" in row
    assert "24.0 GiB" in row
    row = line_with("gfx1151", output)
    assert "*" not in row
    assert "0.5 GiB + 60.0 shared" in row
    assert "HIP index: AMDSMI_STATUS_NOT_SUPPORTED" in output
    assert "Primary: NVIDIA [RTX] 4090, found by pynvml" in output
    assert "not asked: pynvml found 1 GPU" in line_with("torch-cuda", output)
    assert "node-1, Linux x86_64, 16 CPUs (Test CPU), 48.0 of 64.0 GiB RAM available" in output


def test_a_node_without_gpu_explains_itself() -> None:
    detection = merge([DetectorReport("pynvml", reason="driver not loaded"), DetectorReport("cpu")])
    output = shown(render_detection(detection))
    assert "Primary: no GPU, so cpu_fallback" in output
    assert "driver not loaded" in line_with("pynvml", output)


def test_memory_that_is_not_known_is_not_shown_as_zero() -> None:
    gb10 = GPUInfo(
        GPUType.NVIDIA, 0, "NVIDIA GB10", unified_memory=True, integrated=True, detected_by="pynvml"
    )
    unknown = GPUInfo(GPUType.NVIDIA, 1, "NVIDIA Mystery", detected_by="pynvml")
    output = shown(render_detection(merge([DetectorReport("pynvml", (gb10, unknown))])))
    assert "the system's" in line_with("│ NVIDIA GB10", output)
    assert "unknown" in line_with("│ NVIDIA Mystery", output)
