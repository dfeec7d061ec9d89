"""Which option belongs to which backend, and which values go together."""

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from xgen_ray.models.types import ModelTask
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Backend, BackendRow, Engine, EngineOptions, Fault

_ALL = frozenset(Backend)
_GPU = frozenset(row.backend for row in BACKENDS.values() if row.needs_gpu)


def _of(*engines: Engine) -> frozenset[Backend]:
    return frozenset(row.backend for row in BACKENDS.values() if row.engine in engines)


_LLAMA_SERVER = _of(Engine.LLAMA_SERVER)
_LLAMA = _of(Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON)
_VLLM = _of(Engine.VLLM)

# Every field of EngineOptions; a test holds the two together.
OPTION_BACKENDS: Final[Mapping[str, frozenset[Backend]]] = MappingProxyType(
    {
        "backend": _ALL,
        "task": _ALL,
        "context": _ALL,
        "slots": _ALL,
        "gpus": _ALL,
        "split_mode": _LLAMA_SERVER & _GPU,
        "main_gpu": _LLAMA_SERVER & _GPU,
        "gpu_layers": _LLAMA_SERVER & _GPU,
        "batch": _LLAMA,
        "ubatch": _LLAMA,
        "threads": _LLAMA | {Backend.VLLM_CPU},
        "flash_attention": _LLAMA,
        "fit": _LLAMA_SERVER,
        "memory_lock": _LLAMA,
        "kv_cache_type": _LLAMA_SERVER,
        "chat_template": _LLAMA_SERVER | _VLLM,
        "tensor_parallel_size": _VLLM & _GPU,
        "pipeline_parallel_size": _VLLM & _GPU,
        "gpu_memory_utilization": _VLLM & _GPU,
        "dtype": _VLLM,
        "quantization": _VLLM,
        "enforce_eager": _VLLM,
        "tool_parser": _VLLM,
        "spread": _ALL,
        "extra_args": _LLAMA_SERVER | _VLLM,
    }
)


def given(options: EngineOptions) -> Mapping[str, object]:
    """The options that somebody asked for."""
    values = {name: getattr(options, name) for name in type(options).model_fields}
    return {name: value for name, value in values.items() if value is not None and value != ()} | (
        {"gpus": ()} if options.gpus == () else {}
    )


def foreign_options(row: BackendRow, options: EngineOptions) -> tuple[Fault, ...]:
    """A fault for every option that ``row`` does not have, or has not with that value."""
    faults = [
        Fault(name, f"{name} is an option of {_names(OPTION_BACKENDS[name])} only")
        for name, value in given(options).items()
        if row.backend not in OPTION_BACKENDS[name] and not _already_so(row, name, value)
    ]
    if row.engine is Engine.LLAMA_CPP_PYTHON and options.slots is not None and options.slots > 1:
        reason = f"slots is {options.slots}, but {row.backend} serves one request at a time"
        faults.append(Fault("slots", reason))
    if options.gpus and not row.needs_gpu:
        named = ", ".join(map(str, options.gpus))
        faults.append(Fault("gpus", f"it runs on the CPU, but gpus names {named}"))
    if options.gpus == () and row.needs_gpu:
        faults.append(Fault("gpus", "gpus is empty, which asks for the CPU"))
    return tuple(faults)


def option_faults(options: EngineOptions) -> tuple[Fault, ...]:
    """What is wrong with the options wherever they are used, as far as no node and no model need be known."""
    foreign = foreign_options(BACKENDS[options.backend], options) if options.backend is not None else ()
    return (*foreign, *contradictions(options, sys.maxsize))


def contradictions(options: EngineOptions, cpu_count: int) -> tuple[Fault, ...]:
    """A fault for every pair of options, or option and machine, that cannot both be had."""
    faults = []
    if options.batch is not None and options.ubatch is not None and options.ubatch > options.batch:
        reason = f"ubatch {options.ubatch} is more than batch {options.batch}; lower it or raise batch"
        faults.append(Fault("ubatch", reason))
    if options.threads is not None and options.threads > cpu_count:
        reason = f"threads is {options.threads}, but the node has {cpu_count} cores; ask for at most that"
        faults.append(Fault("threads", reason))
    if (
        options.gpus is not None
        and options.main_gpu is not None
        and options.main_gpu >= max(len(options.gpus), 1)
    ):
        reason = f"main_gpu is {options.main_gpu}, but gpus names {len(options.gpus)}: it counts within gpus"
        faults.append(Fault("main_gpu", reason))
    faults += _parallel_contradiction(options)
    if options.tool_parser is not None and options.task in (ModelTask.EMBED, ModelTask.RERANK):
        reason = f"tool_parser is {options.tool_parser}, but a model that must {options.task} calls no tools"
        faults.append(Fault("tool_parser", reason))
    if options.flash_attention is False and options.kv_cache_type not in (None, "f16"):
        reason = f"a {options.kv_cache_type} cache needs flash attention, which the options turn off"
        faults.append(Fault("kv_cache_type", reason))
    return tuple(faults)


def _parallel_contradiction(options: EngineOptions) -> tuple[Fault, ...]:
    tensor, pipeline = options.tensor_parallel_size, options.pipeline_parallel_size
    if not options.gpus or (tensor is None and pipeline in (None, 1)):
        return ()
    count = len(options.gpus)
    if pipeline in (None, 1):
        if tensor == count:
            return ()
        reason = f"tensor_parallel_size is {tensor}, but gpus names {count}; make them equal or leave one out"
        return (Fault("tensor_parallel_size", reason),)
    if (tensor or 1) * pipeline == count or (tensor is None and count % pipeline == 0):
        return ()
    sizes = f"tensor_parallel_size {tensor or 1} times pipeline_parallel_size {pipeline}"
    reason = f"{sizes} is not the {count} GPUs that gpus names; make them equal or leave gpus out"
    return (Fault("pipeline_parallel_size", reason),)


def _already_so(row: BackendRow, name: str, value: object) -> bool:
    """Whether the option only says what a backend without it does anyway."""
    return name == "gpu_layers" and value == 0 and not row.needs_gpu


def _names(backends: frozenset[Backend]) -> str:
    return ", ".join(backend for backend in Backend if backend in backends)
