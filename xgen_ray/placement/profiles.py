"""What the field has taught about options, as rows: where a row holds, what it sets, and why.

The first row that matches and names an option decides it. A user's own option comes before all rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from xgen_ray.hardware.types import GPUInfo, GPUType
from xgen_ray.models.types import ModelTask
from xgen_ray.placement.types import BackendRow, DeviceAPI, Engine

OptionValue = int | bool | str
# A row with this option limits how many bytes of a GPU a model may use; no option of an engine.
MEMORY_LIMIT: Final = "memory_bytes"


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """``option`` is ``value`` wherever everything that the row names holds; an empty set names nothing.

    ``gpu_types``, ``gfx`` and ``integrated`` hold when they hold for any GPU in use: one weak card is
    enough to need the row.
    """

    option: str
    value: OptionValue
    reason: str
    engines: frozenset[Engine] = frozenset()
    device_apis: frozenset[DeviceAPI] = frozenset()
    tasks: frozenset[ModelTask] = frozenset()
    gpu_types: frozenset[GPUType] = frozenset()
    gfx: frozenset[str] = frozenset()
    integrated: bool | None = None

    def holds(self, backend: BackendRow, task: ModelTask, gpus: Sequence[GPUInfo]) -> bool:
        if self.engines and backend.engine not in self.engines:
            return False
        if self.device_apis and backend.device_api not in self.device_apis:
            return False
        if self.tasks and task not in self.tasks:
            return False
        if self.gpu_types and not any(gpu.gpu_type in self.gpu_types for gpu in gpus):
            return False
        if self.gfx and not any(gpu.gfx_version in self.gfx for gpu in gpus):
            return False
        return self.integrated is None or any(is_integrated(gpu) is self.integrated for gpu in gpus)


def is_integrated(gpu: GPUInfo) -> bool:
    """Whether a GPU lives off the host's RAM; a GPU that does not say counts as a card of its own."""
    return gpu.unified_memory or gpu.integrated is True


_LLAMA_SERVER = frozenset({Engine.LLAMA_SERVER})
_LLAMA = frozenset({Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON})
_VLLM = frozenset({Engine.VLLM})
_ROCM = frozenset({DeviceAPI.ROCM})
_CPU = frozenset({DeviceAPI.CPU})
_POOLED = frozenset({ModelTask.EMBED, ModelTask.RERANK})

PROFILES: Final = (
    # Stability on ROCm.
    ProfileRow(
        "flash_attention",
        False,
        "flash attention on ROCm has given broken text; off costs about a tenth of the speed",
        engines=_LLAMA_SERVER,
        device_apis=_ROCM,
    ),
    ProfileRow(
        "fit",
        False,
        "llama-server's own memory fitting has crashed on ROCm; sizes are decided here",
        engines=_LLAMA_SERVER,
        device_apis=_ROCM,
    ),
    ProfileRow(
        "gpu_layers",
        0,
        "embeddings on ROCm have crashed with page faults; they are small enough for the CPU",
        engines=_LLAMA_SERVER,
        device_apis=_ROCM,
        tasks=_POOLED,
    ),
    # Batches. An embedding input must fit one physical batch, or the engine answers 500.
    ProfileRow(
        "batch",
        2048,
        "a pooled input is computed in one batch, so it must fit it",
        engines=_LLAMA,
        tasks=_POOLED,
    ),
    ProfileRow(
        "ubatch",
        2048,
        "a pooled input longer than this is refused by the engine",
        engines=_LLAMA,
        tasks=_POOLED,
    ),
    ProfileRow("batch", 2048, "llama.cpp's default", engines=_LLAMA),
    ProfileRow("ubatch", 512, "llama.cpp's default", engines=_LLAMA),
    ProfileRow("batch", 8192, "tokens that vLLM computes in one step", engines=_VLLM),
    ProfileRow("ubatch", 8192, "vLLM does not divide its steps", engines=_VLLM),
    ProfileRow(
        "enforce_eager",
        True,
        "compiling for a CPU takes minutes and a C++ compiler on the node",
        engines=_VLLM,
        device_apis=_CPU,
    ),
    # Requests at the same time.
    ProfileRow(
        "slots",
        1,
        "an integrated GPU shares its memory with the whole system: more requests at once have ended in OOM",
        engines=_LLAMA_SERVER,
        integrated=True,
    ),
    ProfileRow("slots", 4, "llama-server's default", engines=_LLAMA_SERVER),
    ProfileRow("slots", 1, "it serves one request at a time", engines=frozenset({Engine.LLAMA_CPP_PYTHON})),
    ProfileRow("slots", 8, "a CPU gains little from more", engines=_VLLM, device_apis=_CPU),
    ProfileRow(
        "slots", 256, "vLLM pages its cache, so requests cost memory only as they grow", engines=_VLLM
    ),
)


def profile(
    backend: BackendRow, task: ModelTask, gpus: Sequence[GPUInfo], rows: Sequence[ProfileRow] = PROFILES
) -> Mapping[str, ProfileRow]:
    """The row that decides each option here; an option without a row is left to the engine."""
    chosen: dict[str, ProfileRow] = {}
    for row in rows:
        if row.option not in chosen and row.holds(backend, task, gpus):
            chosen[row.option] = row
    return chosen


def threads_for(cpu_count: int, on_gpu: bool, leased: int = 0) -> tuple[int, str]:
    """How many threads an engine gets, and why. ``leased`` are those that compute for other models.

    llama.cpp's threads wait busily: one that has to share its core stalls all others at every layer.
    """
    free = max(1, cpu_count - 1)
    if on_gpu:
        return min(4, free), "the GPU computes; threads only feed it"
    if cpu_count == 1:
        return 1, "the node has one core"
    if leased:
        others = f"{leased} that compute for other models"
        return max(1, free - leased), f"{cpu_count} cores less one for the system and {others}"
    return free, f"{cpu_count} cores less one for the system: busy threads must not share a core"
