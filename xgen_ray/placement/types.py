"""The vocabulary of placement: backends as rows, what was asked, what was decided and why."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from xgen_ray.hardware.types import GPUInfo, GPUType
from xgen_ray.models.types import ModelFacts, ModelFormat, ModelTask

# A name as engines have them for types and parsers; never something that a command line takes apart.
_WORD = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Backend(StrEnum):
    """An engine built for one kind of device."""

    VLLM_CUDA = "vllm-cuda"
    VLLM_ROCM = "vllm-rocm"
    VLLM_CPU = "vllm-cpu"
    LLAMA_SERVER_VULKAN = "llama-server-vulkan"
    LLAMA_SERVER_CUDA = "llama-server-cuda"
    LLAMA_SERVER_ROCM = "llama-server-rocm"
    LLAMA_SERVER_METAL = "llama-server-metal"
    LLAMA_SERVER_CPU = "llama-server-cpu"
    LLAMA_CPP_PYTHON = "llama-cpp-python"


class Engine(StrEnum):
    """The program behind a backend."""

    VLLM = "vllm"
    LLAMA_SERVER = "llama-server"
    LLAMA_CPP_PYTHON = "llama-cpp-python"


class DeviceAPI(StrEnum):
    """How an engine talks to its device."""

    CUDA = "cuda"
    ROCM = "rocm"
    VULKAN = "vulkan"
    METAL = "metal"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class BackendRow:
    """What is always true of a backend, whatever the node. An empty ``gpu_types`` means it needs no GPU.

    ``binary_names`` are looked for in order on PATH when settings name none; ``module`` is the Python
    module it needs instead. ``device_prefix`` is how the engine names its devices (``Vulkan0``).
    ``visibility_env`` are the variables that limit which devices it sees.
    """

    backend: Backend
    engine: Engine
    device_api: DeviceAPI
    formats: frozenset[ModelFormat]
    tasks: frozenset[ModelTask]
    gpu_types: frozenset[GPUType] = frozenset()
    binary_names: tuple[str, ...] = ()
    module: str | None = None
    device_prefix: str | None = None
    visibility_env: tuple[str, ...] = ()

    @property
    def needs_gpu(self) -> bool:
        return bool(self.gpu_types)


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """A device as the engine itself lists it, with the memory the engine believes it has."""

    name: str
    description: str
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Whether a backend can start on this node, found out by trying. ``reason`` is always filled:
    why not, or what was found. ``command`` starts it; ``devices`` are the GPUs it can really use.
    ``advice`` is what to do, where more than the reason itself is known.
    """

    backend: Backend
    available: bool
    reason: str
    command: tuple[str, ...] = ()
    version: str | None = None
    devices: tuple[EngineDevice, ...] = ()
    advice: str | None = None


class EngineOptions(BaseModel):
    """What a user may ask of an engine. Everything is optional; what is None is decided in placement.

    A field that the chosen backend does not have is refused, not ignored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend | None = Field(None, description="Use this backend or refuse.")
    task: ModelTask | None = Field(None, description="generate, embed or rerank; else as the file says.")
    context: int | None = Field(None, ge=1, description="Context length of one request, in tokens.")
    slots: int | None = Field(None, ge=1, le=1024, description="Requests served at the same time.")
    gpus: tuple[int | str, ...] | None = Field(None, description="GPU indices or UUIDs; empty: the CPU.")
    split_mode: Literal["none", "layer", "row", "tensor"] | None = Field(
        None, description="How llama-server spreads a model over several GPUs."
    )
    main_gpu: int | None = Field(
        None, ge=0, description="Of the GPUs given, the one for what is not spread, by its place."
    )
    gpu_layers: int | None = Field(None, ge=0, description="Layers kept on the GPU; else all.")
    batch: int | None = Field(None, ge=1, description="Logical batch size, in tokens.")
    ubatch: int | None = Field(None, ge=1, description="Physical batch size, in tokens.")
    threads: int | None = Field(None, ge=1, description="Processor threads that compute.")
    flash_attention: bool | None = Field(
        None, description="Attention in one fused kernel; else as is stable on this backend."
    )
    fit: bool | None = Field(None, description="Let llama-server shrink what does not fit.")
    memory_lock: bool | None = Field(None, description="Keep the model in RAM, never swapped.")
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] | None = Field(
        None, description="What llama-server keeps its cache in: less memory for less precision."
    )
    chat_template: str | None = Field(None, description="Jinja, instead of the model's own.")
    tensor_parallel_size: int | None = Field(None, ge=1, description="GPUs that vLLM cuts each layer over.")
    pipeline_parallel_size: int | None = Field(
        None,
        ge=1,
        description="GPUs in a row, each with a part of the layers; times the tensor parallel size.",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="The part of a GPU's memory that vLLM takes for itself."
    )
    dtype: str | None = Field(
        None,
        pattern=_WORD,
        description=(
            "What vLLM computes in, such as bfloat16; else as the model says, or float32 on a CPU without "
            "AVX-512."
        ),
    )
    quantization: str | None = Field(
        None, pattern=_WORD, description="vLLM's name for how the weights are packed; else as the model says."
    )
    enforce_eager: bool | None = Field(
        None, description="vLLM without compilation and GPU graphs: it starts sooner and computes slower."
    )
    tool_parser: str | None = Field(
        None, pattern=_WORD, description="How vLLM reads this model's tool calls, such as hermes."
    )
    spread: bool | None = Field(None, description="The emptiest GPU and node first, instead of the fullest.")
    extra_args: tuple[str, ...] = Field((), description="Further arguments for the engine's command line.")


@dataclass(frozen=True, slots=True)
class FootprintItem:
    """One line of the memory bill. ``on_gpu`` says which memory it is charged to."""

    name: str
    size_bytes: int
    on_gpu: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Footprint:
    items: tuple[FootprintItem, ...]

    @property
    def gpu_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items if item.on_gpu)

    @property
    def host_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items if not item.on_gpu)

    @property
    def total_bytes(self) -> int:
        return self.gpu_bytes + self.host_bytes


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """Memory that a model may use on one device now. ``gpu`` is None for the host's RAM.

    ``shared_bytes`` is the part of ``free_bytes`` that is the host's RAM and so counts there too.
    ``total_bytes`` is all memory of the device, which vLLM's utilisation is a fraction of. ``limited`` is one
    that more free memory would not raise, because an operator's row allows a model no more.
    """

    gpu: GPUInfo | None
    free_bytes: int
    reason: str
    total_bytes: int | None = None
    shared_bytes: int = 0
    limited: bool = False


@dataclass(frozen=True, slots=True)
class ProfileNote:
    """An option that a profile row set, and why."""

    option: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """Every choice made: nothing here is left for the engine to guess.

    ``context`` is per request; ``slots`` requests share the engine. ``devices`` are the engine's own
    names of the GPUs to use, in the order of ``gpus``; ``main_gpu`` is a place in that order.
    ``prompt_cache_bytes`` is how much RAM llama-server may fill with the caches of idle conversations
    (its own default is 8 GiB, whatever the machine has).
    """

    task: ModelTask
    context: int
    slots: int
    batch: int
    ubatch: int
    threads: int
    gpu_layers: int
    devices: tuple[str, ...] = ()
    gpus: tuple[GPUInfo, ...] = ()
    split_mode: str | None = None
    main_gpu: int | None = None
    flash_attention: bool | None = None
    fit: bool | None = None
    memory_lock: bool = False
    kv_cache_type: str = "f16"
    chat_template: str | None = None
    pooling: str | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    dtype: str | None = None
    quantization: str | None = None
    enforce_eager: bool = False
    tool_parser: str | None = None
    prompt_cache_bytes: int = 0
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one option as it was asked for."""

    option: str
    reason: str


@dataclass(frozen=True, slots=True)
class GPUVerdict:
    """What a backend says of one GPU of the node. ``position`` is its place in the node's list. ``fits``:
    it would do, alone or together with others; ``chosen``: a replica on this node would be put there.
    """

    position: int
    name: str
    chosen: bool
    fits: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend as it was weighed. ``reasons`` explain a no, each with its numbers; ``faults`` are those of
    them that one option is to blame for.

    ``missing_bytes`` is how much memory more would have been enough, when memory is all that is missing;
    ``limited`` when an operator's row is what leaves too little.
    ``gpus`` are all of the node's, if they were asked for and the backend got as far as to look at them.
    """

    backend: Backend
    fits: bool
    reasons: tuple[str, ...]
    footprint: Footprint | None = None
    missing_bytes: int | None = None
    faults: tuple[Fault, ...] = ()
    limited: bool = False
    gpus: tuple[GPUVerdict, ...] = ()


@dataclass(frozen=True, slots=True)
class GPUNeed:
    """What a plan takes of one GPU, of the ``free_bytes`` that it could have had. ``in_ram_bytes`` is the
    part that lies in the host's RAM, because the GPU's own memory was too small for it.
    """

    size_bytes: int
    in_ram_bytes: int = 0
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision to run ``facts`` on ``backend``. ``candidates`` has every backend, best first.

    ``gpu_needs`` has one entry per GPU in ``options.gpus``. It may be larger than the bill: layers are not
    cut, and vLLM takes its share of a GPU whole.
    """

    facts: ModelFacts
    backend: Backend
    command: tuple[str, ...]
    options: ResolvedOptions
    footprint: Footprint
    why: str
    candidates: tuple[Candidate, ...]
    notes: tuple[ProfileNote, ...] = ()
    warnings: tuple[str, ...] = ()
    gpu_needs: tuple[GPUNeed, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing fits. ``message`` sums it up with the numbers and what to do."""

    message: str
    candidates: tuple[Candidate, ...]
