"""The backends as data: one row each, and the order in which each format prefers them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from xgen_ray.hardware.types import GPUType
from xgen_ray.models.types import ModelFormat, ModelTask
from xgen_ray.placement.types import Backend, BackendRow, DeviceAPI, Engine

_GGUF = frozenset({ModelFormat.GGUF})
_SAFETENSORS = frozenset({ModelFormat.SAFETENSORS})
_ALL_TASKS = frozenset(ModelTask)
_NVIDIA = frozenset({GPUType.NVIDIA})
_AMD = frozenset({GPUType.AMD_RDNA, GPUType.AMD_CDNA})
# Vega is neither RDNA nor CDNA: seen, not recognised. llama.cpp runs on it, so the engine's own device
# list decides there.
_AMD_ANY = _AMD | {GPUType.UNKNOWN}

# Which order each device API sees is the vendor's own; Vulkan has one list for all vendors.
_CUDA_ENV = ("CUDA_VISIBLE_DEVICES",)
_ROCM_ENV = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_VULKAN_ENV = ("GGML_VK_VISIBLE_DEVICES",)

_ROWS: Final = (
    BackendRow(
        backend=Backend.VLLM_CUDA,
        engine=Engine.VLLM,
        device_api=DeviceAPI.CUDA,
        formats=_SAFETENSORS,
        tasks=_ALL_TASKS,
        gpu_types=_NVIDIA,
        binary_names=("vllm",),
        module="vllm",
        visibility_env=_CUDA_ENV,
    ),
    BackendRow(
        backend=Backend.VLLM_ROCM,
        engine=Engine.VLLM,
        device_api=DeviceAPI.ROCM,
        formats=_SAFETENSORS,
        tasks=_ALL_TASKS,
        gpu_types=_AMD,
        binary_names=("vllm",),
        module="vllm",
        visibility_env=_ROCM_ENV,
    ),
    BackendRow(
        backend=Backend.VLLM_CPU,
        engine=Engine.VLLM,
        device_api=DeviceAPI.CPU,
        formats=_SAFETENSORS,
        tasks=_ALL_TASKS,
        binary_names=("vllm",),
        module="vllm",
    ),
    # A plain ``llama-server`` may be any build, so each row also looks for that name, after its own;
    # discovery asks the binary for its devices before it believes it.
    BackendRow(
        backend=Backend.LLAMA_SERVER_VULKAN,
        engine=Engine.LLAMA_SERVER,
        device_api=DeviceAPI.VULKAN,
        formats=_GGUF,
        tasks=_ALL_TASKS,
        gpu_types=_NVIDIA | _AMD_ANY,
        binary_names=("llama-server-vulkan", "llama-server"),
        device_prefix="Vulkan",
        visibility_env=_VULKAN_ENV,
    ),
    BackendRow(
        backend=Backend.LLAMA_SERVER_CUDA,
        engine=Engine.LLAMA_SERVER,
        device_api=DeviceAPI.CUDA,
        formats=_GGUF,
        tasks=_ALL_TASKS,
        gpu_types=_NVIDIA,
        binary_names=("llama-server-cuda", "llama-server"),
        device_prefix="CUDA",
        visibility_env=_CUDA_ENV,
    ),
    BackendRow(
        backend=Backend.LLAMA_SERVER_ROCM,
        engine=Engine.LLAMA_SERVER,
        device_api=DeviceAPI.ROCM,
        formats=_GGUF,
        tasks=_ALL_TASKS,
        gpu_types=_AMD_ANY,
        binary_names=("llama-server-rocm", "llama-server"),
        device_prefix="ROCm",
        visibility_env=_ROCM_ENV,
    ),
    BackendRow(
        backend=Backend.LLAMA_SERVER_METAL,
        engine=Engine.LLAMA_SERVER,
        device_api=DeviceAPI.METAL,
        formats=_GGUF,
        tasks=_ALL_TASKS,
        gpu_types=frozenset({GPUType.APPLE_MPS}),
        binary_names=("llama-server-metal", "llama-server"),
        device_prefix="MTL",
    ),
    BackendRow(
        backend=Backend.LLAMA_SERVER_CPU,
        engine=Engine.LLAMA_SERVER,
        device_api=DeviceAPI.CPU,
        formats=_GGUF,
        tasks=_ALL_TASKS,
        binary_names=("llama-server-cpu", "llama-server"),
        module="xllamacpp",
    ),
    BackendRow(
        backend=Backend.LLAMA_CPP_PYTHON,
        engine=Engine.LLAMA_CPP_PYTHON,
        device_api=DeviceAPI.CPU,
        formats=_GGUF,
        tasks=frozenset({ModelTask.GENERATE, ModelTask.EMBED}),
        module="llama_cpp",
    ),
)

BACKENDS: Final[Mapping[Backend, BackendRow]] = MappingProxyType({row.backend: row for row in _ROWS})

# Other names that builds give the same kind of device: Metal's was renamed to MTL.
DEVICE_PREFIX_ALIASES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"MTL": ("MTL", "Metal")})

# Vulkan stands before ROCm for stability, and before CUDA because a binary of its own on the node means
# that somebody put it there; a node for CUDA simply has no Vulkan build.
PREFERENCE: Final[Mapping[ModelFormat, tuple[Backend, ...]]] = MappingProxyType(
    {
        ModelFormat.GGUF: (
            Backend.LLAMA_SERVER_VULKAN,
            Backend.LLAMA_SERVER_CUDA,
            Backend.LLAMA_SERVER_ROCM,
            Backend.LLAMA_SERVER_METAL,
            Backend.LLAMA_SERVER_CPU,
            Backend.LLAMA_CPP_PYTHON,
        ),
        ModelFormat.SAFETENSORS: (Backend.VLLM_CUDA, Backend.VLLM_ROCM, Backend.VLLM_CPU),
    }
)

# The requirements of vLLM's ROCm installation page (docs.vllm.ai, getting_started/installation/gpu):
# MI200 (90a), MI300 (942), MI350 (950), RX 7900 (1100, 1101), RX 9000 (1200, 1201) and
# Ryzen AI 300 and AI Max (1150, 1151).
VLLM_ROCM_GFX: Final = frozenset(
    {"gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1150", "gfx1151", "gfx1200", "gfx1201"}
)

# The same page for CUDA: "compute capability 7.5 or higher".
VLLM_CUDA_CAPABILITY: Final = (7, 5)


def preference(model_format: ModelFormat) -> tuple[Backend, ...]:
    """Every backend, best first for ``model_format``; those that cannot read it come last."""
    able = PREFERENCE[model_format]
    return able + tuple(backend for backend in Backend if backend not in able)
