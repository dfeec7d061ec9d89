"""Plans and cards for tests of this package."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from xgen_ray.hardware.types import GPUInfo, GPUType
from xgen_ray.models.types import ModelFacts, ModelFormat, ModelTask
from xgen_ray.placement.types import Backend, Footprint, Plan, ResolvedOptions

SAMPLES = Path(__file__).parent / "samples"
SAMPLE_MODEL = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct-q4_1.gguf"

OPTIONS = ResolvedOptions(
    task=ModelTask.GENERATE, context=4096, slots=4, batch=2048, ubatch=512, threads=3, gpu_layers=0
)
H100 = GPUInfo(GPUType.NVIDIA, 0, "NVIDIA H100 80GB HBM3", uuid="GPU-1f0a")
H100_TOO = GPUInfo(GPUType.NVIDIA, 3, "NVIDIA H100 80GB HBM3", uuid="GPU-77b2")
JETSON = GPUInfo(GPUType.NVIDIA, 0, "Orin", integrated=True)
XTX = GPUInfo(GPUType.AMD_RDNA, 1, "AMD Radeon RX 7900 XTX", gfx_version="gfx1100")
APU = GPUInfo(GPUType.AMD_RDNA, 0, "AMD Radeon 8060S", gfx_version="gfx1151", integrated=True)


def facts(path: str = "/models/tiny.gguf", weight_bytes: int = 2**30, **fields: Any) -> ModelFacts:
    made = ModelFacts(ModelFormat.GGUF, path, (path,), weight_bytes, has_chat_template=True)
    return replace(made, **fields)


def plan(
    backend: Backend = Backend.LLAMA_SERVER_CPU,
    command: tuple[str, ...] = ("llama-server",),
    model: ModelFacts | None = None,
    **options: Any,
) -> Plan:
    return Plan(
        facts=facts() if model is None else model,
        backend=backend,
        command=command,
        options=replace(OPTIONS, **options),
        footprint=Footprint(()),
        why="a test",
        candidates=(),
    )


def sample_facts() -> ModelFacts:
    return facts(str(SAMPLE_MODEL), SAMPLE_MODEL.stat().st_size)
