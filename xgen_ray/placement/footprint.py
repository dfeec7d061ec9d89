"""The memory bill of a model on a backend, item by item, before anything is started.

Every line errs on the side of too much, and says how it was reckoned. The figures of llama.cpp were
compared with what the engine itself logs and what NVML counts (``tests/placement/samples``).
"""

from collections.abc import Sequence
from math import ceil

from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.kvcache import is_encoder, kv_cache, recurrent_state_bytes
from xgen_ray.placement.precision import SINGLE, widening
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.sizes import GIB, MIB, gib
from xgen_ray.placement.types import (
    Backend,
    BackendRow,
    DeviceAPI,
    Engine,
    Footprint,
    FootprintItem,
    ResolvedOptions,
)

WEIGHTS = "weights"
KV_CACHE = "kv cache"
STATE = "recurrent state"
COMPUTE = "compute buffers"
RUNTIME = "runtime"
PROCESS = "process"
EMBEDDINGS = "token embeddings"
PROMPT_CACHE = "prompt cache"
FURTHER_CACHE = "further kv cache"

# Items that several GPUs share out among themselves; every other item is paid once on each GPU.
DIVIDED = frozenset({WEIGHTS, KV_CACHE, STATE})

# What a device library takes on a GPU before the first tensor: context, kernels, scratch pools.
_RUNTIME = {
    DeviceAPI.CUDA: (768 * MIB, "context and kernels took 620 to 660 MiB on an H100"),
    DeviceAPI.ROCM: (512 * MIB, "a HIP context is 300 to 500 MiB"),
    DeviceAPI.VULKAN: (256 * MIB, "pipelines and staging buffers"),
    DeviceAPI.METAL: (128 * MIB, "compiled kernels"),
}
# RAM of the engine's process itself, without the model. llama.cpp's own server was measured at 60 MiB.
_LLAMA_PROCESS = 128 * MIB
_LLAMA_PROCESS_ON_GPU = 512 * MIB
_VLLM_PROCESS = 2560 * MIB
_VLLM_WORKER = 2 * GIB
_VLLM_RUNTIME = GIB
# Widest set of activations held at once, in embeddings of one token. Measured for a dense model: 12.7.
_ACTIVATIONS = 16
# llama.cpp copies a graph's inputs so that several GPUs can work on successive batches.
_PIPELINE_COPIES = 4


def footprint(
    facts: ModelFacts, backend: Backend, options: ResolvedOptions, gpu_totals: Sequence[int] = ()
) -> Footprint:
    """What ``facts`` will take under ``options``.

    ``gpu_totals`` is the total memory of each GPU in ``options.gpus``: vLLM takes its share of that at
    once, whatever the model needs.
    """
    row = BACKENDS[backend]
    if row.engine is Engine.VLLM:
        return _vllm_on_gpu(facts, options, gpu_totals) if row.needs_gpu else _vllm_on_cpu(facts, options)
    return _llama(facts, row, options)


def per_gpu_bytes(facts: ModelFacts, bill: Footprint, shares: Sequence[float]) -> tuple[int, ...]:
    """What each GPU pays when the divided items are split by ``shares``, which sum to one.

    Layers and the output matrix are not cut, so with several GPUs each may hold one more than its share.
    """
    divided = sum(item.size_bytes for item in bill.items if item.on_gpu and item.name in DIVIDED)
    each = (bill.gpu_bytes - divided) / len(shares)
    uncut = 0.0
    if len(shares) > 1:
        uncut = divided / max(facts.layer_count or 1, 1) + _matrix_bytes(facts)
    return tuple(ceil(min(divided, divided * share + uncut) + each) for share in shares)


def layers_on_gpu(facts: ModelFacts, options: ResolvedOptions) -> float:
    """The part of the layers that lies on GPUs, from 0 to 1."""
    if options.gpu_layers <= 0:
        return 0.0
    if not facts.layer_count:
        return 1.0
    return min(1.0, options.gpu_layers / facts.layer_count)


def _llama(facts: ModelFacts, row: BackendRow, options: ResolvedOptions) -> Footprint:
    part = layers_on_gpu(facts, options)
    on_gpu = part > 0
    items = _two_sided(WEIGHTS, facts.weight_bytes, part, _weights_detail(facts, part))
    cells = padded_context(options.context) * options.slots
    cache = kv_cache(facts, options.kv_cache_type, None if part >= 1 else max(0, options.gpu_layers))
    detail = f"{options.slots} x {padded_context(options.context)} tokens x {cache.detail}"
    items += _item(KV_CACHE, cells * cache.gpu_bytes, True, detail)
    items += _item(KV_CACHE, cells * cache.host_bytes, False, detail)
    state = recurrent_state_bytes(facts) * options.slots
    items += _two_sided(STATE, state, part, "layers without attention keep a state instead; size estimated")
    items += _compute(facts, options, on_gpu)
    if on_gpu:
        size, why = _RUNTIME.get(row.device_api, (512 * MIB, "device library"))
        items += _item(RUNTIME, size * max(1, len(options.gpus)), True, f"{gib(size)} a GPU: {why}")
        items += _item(
            EMBEDDINGS,
            _matrix_bytes(facts) if part >= 1 else 0,
            False,
            "llama.cpp keeps the input layer in RAM",
        )
        items += _item(PROCESS, _LLAMA_PROCESS_ON_GPU, False, "the process and its driver, staging included")
    else:
        items += _item(PROCESS, _LLAMA_PROCESS, False, "the process itself, measured at about 60 MiB")
    items += _item(PROMPT_CACHE, options.prompt_cache_bytes, False, "caches of idle conversations, at most")
    return Footprint(tuple(items))


def _compute(facts: ModelFacts, options: ResolvedOptions, on_gpu: bool) -> list[FootprintItem]:
    """Scratch memory of one physical batch: activations, attention mask and scores, logits."""
    width = facts.embedding_length or 4096
    heads = facts.head_count or 32
    cells = padded_context(options.context)
    activations = options.ubatch * width * 4 * _ACTIVATIONS
    logits = 0 if is_encoder(facts) else options.ubatch * (facts.vocabulary_size or 32_000) * 4
    if options.flash_attention is False:
        attention = options.ubatch * cells * 4 * (1 + heads)
        how = "attention scores in full, since flash attention is off"
    else:
        attention = options.ubatch * cells * 2
        how = "attention mask"
    gpus = max(1, len(options.gpus)) if on_gpu else 1
    size = activations + logits + attention * (_PIPELINE_COPIES if gpus > 1 else 1)
    detail = f"physical batch of {options.ubatch}: activations {gib(activations)}, {how} {gib(attention)}, "
    detail += f"logits {gib(logits)} (most builds reserve them for the whole batch)"
    return _item(COMPUTE, size * gpus, on_gpu, detail)


def _vllm_on_gpu(facts: ModelFacts, options: ResolvedOptions, gpu_totals: Sequence[int]) -> Footprint:
    count = max(1, options.tensor_parallel_size * options.pipeline_parallel_size)
    width = widening(facts, options.dtype)
    items = _item(WEIGHTS, facts.weight_bytes * width, True, f"{_files(facts, options)} over {count} GPU(s)")
    cache = kv_cache(facts, options.kv_cache_type, None)
    # Heads are not cut: with fewer of them than GPUs, each GPU keeps a copy.
    heads = max(facts.kv_heads, default=0) if facts.kv_heads else 0
    copies = max(1, ceil(options.tensor_parallel_size / heads)) if heads else 1
    items += _item(
        KV_CACHE,
        options.context * cache.gpu_bytes * copies * width,
        True,
        f"one request of {options.context} tokens x {cache.detail}{_in_single(width)}",
    )
    items += _item(STATE, recurrent_state_bytes(facts), True, "estimated")
    items += _vllm_compute(facts, options, count, on_gpu=True)
    items += _item(RUNTIME, _VLLM_RUNTIME * count, True, f"{gib(_VLLM_RUNTIME)} a GPU: context and graphs")
    if options.gpu_memory_utilization is not None and gpu_totals:
        pool = sum(int(options.gpu_memory_utilization * total) for total in gpu_totals)
        rest = pool - sum(item.size_bytes for item in items)
        share = f"{options.gpu_memory_utilization:.2f} of {gib(sum(gpu_totals))}"
        items += _item(FURTHER_CACHE, max(0, rest), True, f"vLLM fills {share} with cache for more requests")
    items += _item(
        PROCESS, _VLLM_PROCESS + _VLLM_WORKER * count, False, "API server, engine and one worker a GPU"
    )
    return Footprint(tuple(items))


def _vllm_on_cpu(facts: ModelFacts, options: ResolvedOptions) -> Footprint:
    cache = kv_cache(facts, options.kv_cache_type, None)
    width = widening(facts, options.dtype)
    wanted = options.context * min(options.slots, 4) * cache.gpu_bytes * width
    size = max(1, ceil(wanted / GIB)) * GIB
    items = _item(WEIGHTS, facts.weight_bytes * width, False, _files(facts, options))
    items += _item(
        KV_CACHE,
        size,
        False,
        f"whole GiB for {min(options.slots, 4)} x {options.context} tokens x "
        f"{cache.detail}{_in_single(width)}",
    )
    items += _item(STATE, recurrent_state_bytes(facts), False, "estimated")
    items += _vllm_compute(facts, options, 1, on_gpu=False)
    items += _item(PROCESS, _VLLM_PROCESS, False, "Python and torch, measured at 2.2 GiB")
    return Footprint(tuple(items))


def _vllm_compute(
    facts: ModelFacts, options: ResolvedOptions, count: int, *, on_gpu: bool
) -> list[FootprintItem]:
    # Half precision unless wider, and sampling holds the logits twice in single precision.
    step = min(options.batch, max(options.context, options.slots))
    element = 2 * widening(facts, options.dtype)
    activations = step * (facts.embedding_length or 4096) * element * _ACTIVATIONS
    logits = options.slots * (facts.vocabulary_size or 32_000) * 4 * 2
    detail = f"{step} tokens a step: activations {gib(activations)}; "
    detail += f"logits of {options.slots} requests: {gib(logits)}"
    return _item(COMPUTE, (activations + logits) * count, on_gpu, detail)


def _files(facts: ModelFacts, options: ResolvedOptions) -> str:
    return f"{gib(facts.weight_bytes)} of files{_in_single(widening(facts, options.dtype))}"


def _in_single(width: int) -> str:
    return "" if width == 1 else f", {width} times that in {SINGLE}"


def padded_context(context: int) -> int:
    """The cells that llama.cpp gives a slot: it rounds up to whole blocks of 256."""
    return ceil(context / 256) * 256


def _matrix_bytes(facts: ModelFacts) -> int:
    """Size of the token embedding, or output, matrix at the model's mean bits per weight."""
    if not facts.vocabulary_size or not facts.embedding_length:
        return 0
    elements = facts.vocabulary_size * facts.embedding_length
    if facts.parameter_count:
        return min(facts.weight_bytes, ceil(elements * facts.weight_bytes / facts.parameter_count))
    return min(facts.weight_bytes, elements * 2)


def _weights_detail(facts: ModelFacts, part: float) -> str:
    detail = f"{facts.quantization or 'weights'}, as the file holds them"
    return detail if part in (0.0, 1.0) else f"{detail}; {part:.0%} of the layers on the GPU"


def _two_sided(name: str, size: int, part: float, detail: str) -> list[FootprintItem]:
    on_gpu = ceil(size * part)
    return _item(name, on_gpu, True, detail) + _item(name, size - on_gpu, False, detail)


def _item(name: str, size: int, on_gpu: bool, detail: str) -> list[FootprintItem]:
    return [FootprintItem(name, size, on_gpu, detail)] if size > 0 else []
