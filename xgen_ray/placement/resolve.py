"""Every option decided: the user's word, else a profile row's, else a rule's, each with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xgen_ray.hardware.types import HostFacts
from xgen_ray.models.types import ModelFacts, ModelTask
from xgen_ray.placement.gpusets import GPUSet
from xgen_ray.placement.policy import PlacementPolicy
from xgen_ray.placement.precision import SINGLE, WHY_SINGLE, single_is_faster
from xgen_ray.placement.profiles import ProfileRow, profile, threads_for
from xgen_ray.placement.types import BackendRow, Engine, EngineOptions, ProfileNote, ResolvedOptions

# What llama.cpp counts as "all" when the file does not say how many layers there are.
_ALL_LAYERS = 999
OVERSUBSCRIBED = "the CPU is oversubscribed"


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of making a model smaller: its context, and at most how many slots (None: no limit)."""

    context: int
    most_slots: int | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """The options, why they are so, and what about them cannot work (``conflict``)."""

    options: ResolvedOptions
    notes: tuple[ProfileNote, ...]
    warnings: tuple[str, ...]
    conflict: str | None = None


def wanted_context(
    facts: ModelFacts, task: ModelTask, options: EngineOptions, policy: PlacementPolicy
) -> int:
    """The context that a model gets where memory is no question."""
    if options.context is not None:
        return options.context
    default = policy.context if task is ModelTask.GENERATE else policy.embedding_context
    return min(default, facts.context_length or default)


def context_refusal(facts: ModelFacts, options: EngineOptions, policy: PlacementPolicy) -> str | None:
    """Why the context asked for cannot be had from this model, or None."""
    if options.context is None:
        return None
    if facts.context_length is not None and options.context > facts.context_length:
        return (
            f"context {options.context} is more than the {facts.context_length} tokens that the model was "
            f"trained for; ask for {facts.context_length} or less"
        )
    if facts.context_length is None and options.context > policy.unknown_context:
        return (
            f"context {options.context} is more than {policy.unknown_context} tokens, the most for a model "
            "whose file does not say what it was trained for; ask for less"
        )
    return None


def ladder(
    row: BackendRow, facts: ModelFacts, task: ModelTask, options: EngineOptions, policy: PlacementPolicy
) -> tuple[Rung, ...]:
    """What is tried in turn: the full size first, then less of what the user left open."""
    context = wanted_context(facts, task, options, policy)
    rungs = [Rung(context)]
    if options.context is None:
        while context // 2 >= policy.smallest_context:
            context //= 2
            rungs.append(Rung(context))
    # Paged caches grow with use: fewer slots would free nothing at the start.
    if options.slots is None and row.engine is Engine.LLAMA_SERVER:
        rungs += [Rung(context, 2), Rung(context, 1)]
    return tuple(rungs)


def resolve(
    row: BackendRow,
    facts: ModelFacts,
    task: ModelTask,
    options: EngineOptions,
    gpus: GPUSet,
    host: HostFacts,
    rung: Rung,
    policy: PlacementPolicy,
    *,
    leased_threads: int = 0,
    overshoot: float = 1.0,
) -> Resolution:
    """Decide every option for ``gpus``; an empty set means the CPU.

    ``leased_threads`` compute for other models. ``overshoot`` is how many times its share of a GPU the
    engine was seen to take.
    """
    chosen = _Choice(options, profile(row, task, [item.usable.gpu for item in gpus], policy.profiles))
    slots = chosen.number("slots", 1)
    if rung.most_slots is not None:
        slots = min(slots, rung.most_slots)
    batch, ubatch = _batches(chosen, options, task, rung.context)
    layers = (facts.layer_count + 1) if facts.layer_count else _ALL_LAYERS
    gpu_layers = min(layers, layers if options.gpu_layers is None else options.gpu_layers) if gpus else 0
    on_gpu = bool(gpus) and gpu_layers >= (facts.layer_count or 1)
    threads, why_threads = threads_for(host.cpu_count, on_gpu, leased_threads)
    if options.threads is not None:
        threads = options.threads
    else:
        chosen.note("threads", threads, why_threads)
    flash, conflict = _flash_attention(chosen, options, row)
    conflict = conflict or _main_gpu_conflict(options, gpus)
    utilization = (
        _utilization(options, gpus, policy, overshoot) if row.engine is Engine.VLLM and gpus else None
    )
    resolved = ResolvedOptions(
        task=task,
        context=rung.context,
        slots=slots,
        batch=batch,
        ubatch=ubatch,
        threads=threads,
        gpu_layers=gpu_layers,
        devices=tuple(item.usable.device.name for item in gpus if item.usable.device is not None),
        gpus=tuple(item.usable.gpu for item in gpus),
        split_mode=(options.split_mode or ("layer" if len(gpus) > 1 else None)) if _splits(row) else None,
        main_gpu=_main_gpu(options, gpus),
        flash_attention=flash,
        fit=chosen.switch("fit"),
        kv_cache_type=options.kv_cache_type or "f16",
        chat_template=options.chat_template,
        pooling=_pooling(facts, task, chosen),
        tensor_parallel_size=_tensor_parallel(options, gpus) if row.engine is Engine.VLLM else 1,
        pipeline_parallel_size=options.pipeline_parallel_size or 1,
        gpu_memory_utilization=utilization,
        dtype=_dtype(options, row, facts, host, chosen),
        quantization=options.quantization,
        enforce_eager=bool(chosen.switch("enforce_eager")),
        tool_parser=options.tool_parser,
        extra_args=options.extra_args,
    )
    crowded = () if on_gpu else _oversubscribed(threads, leased_threads, host.cpu_count)
    return Resolution(resolved, tuple(chosen.notes), _warnings(resolved) + crowded, conflict)


class _Choice:
    """Picks each option's value and keeps the notes of the rows that decided one."""

    def __init__(self, options: EngineOptions, rows: Mapping[str, ProfileRow]) -> None:
        self._options = options
        self._rows = rows
        self.notes: list[ProfileNote] = []

    def note(self, option: str, value: object, reason: str) -> None:
        text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
        self.notes.append(ProfileNote(option, text, reason))

    def number(self, option: str, default: int) -> int:
        asked = getattr(self._options, option)
        if asked is not None:
            return int(asked)
        row = self._rows.get(option)
        if row is None:
            return default
        self.note(option, row.value, row.reason)
        return int(row.value)

    def switch(self, option: str) -> bool | None:
        asked = getattr(self._options, option)
        if asked is not None:
            return bool(asked)
        row = self._rows.get(option)
        if row is None:
            return None
        self.note(option, bool(row.value), row.reason)
        return bool(row.value)


def _batches(chosen: _Choice, options: EngineOptions, task: ModelTask, context: int) -> tuple[int, int]:
    """Batch and physical batch; a pooled input must fit both whole, and no batch is under its parts."""
    batch, ubatch = chosen.number("batch", 2048), chosen.number("ubatch", 512)
    pooled = task is not ModelTask.GENERATE
    if options.ubatch is None and options.batch is not None:
        ubatch = min(batch, max(ubatch, context) if pooled else ubatch)
    elif options.ubatch is None:
        ubatch = max(ubatch, context) if pooled else ubatch
    if options.batch is None:
        batch = max(batch, ubatch)
    return batch, ubatch


def _flash_attention(
    chosen: _Choice, options: EngineOptions, row: BackendRow
) -> tuple[bool | None, str | None]:
    flash = chosen.switch("flash_attention")
    if options.kv_cache_type in (None, "f16"):
        return flash, None
    if flash is False:
        return flash, (
            f"a {options.kv_cache_type} cache needs flash attention, which is off on {row.device_api} for "
            "stability; set flash_attention to force it, or leave kv_cache_type at f16"
        )
    if flash is None:
        chosen.note("flash_attention", value=True, reason=f"a {options.kv_cache_type} cache needs it")
    return True, None


def _utilization(options: EngineOptions, gpus: GPUSet, policy: PlacementPolicy, overshoot: float) -> float:
    """The share of each GPU's memory that vLLM takes: it refuses to start when so much is not free."""
    if options.gpu_memory_utilization is not None:
        return options.gpu_memory_utilization
    free = [item.budget.free_bytes / item.budget.total_bytes for item in gpus if item.budget.total_bytes]
    # Rounded down to hundredths, which is how it is written on the command line.
    return min([policy.gpu_memory_utilization, *(int(part / overshoot * 100) / 100 for part in free)])


def _dtype(
    options: EngineOptions, row: BackendRow, facts: ModelFacts, host: HostFacts, chosen: _Choice
) -> str | None:
    on_cpu = row.engine is Engine.VLLM and not row.needs_gpu
    if options.dtype is not None or not on_cpu or not single_is_faster(facts, host):
        return options.dtype
    chosen.note("dtype", SINGLE, WHY_SINGLE)
    return SINGLE


def _pooling(facts: ModelFacts, task: ModelTask, chosen: _Choice) -> str | None:
    if task is ModelTask.RERANK:
        return "rank"
    if task is ModelTask.EMBED and facts.pooling is None and facts.task is ModelTask.GENERATE:
        chosen.note("pooling", "last", "in a model that generates, the last token has seen all others")
        return "last"
    return facts.pooling if task is ModelTask.EMBED else None


def _main_gpu(options: EngineOptions, gpus: Sequence[object]) -> int | None:
    if options.main_gpu is None or not gpus:
        return None
    return options.main_gpu if len(gpus) > 1 else 0


def _main_gpu_conflict(options: EngineOptions, gpus: Sequence[object]) -> str | None:
    # With split_mode none it has already chosen the one GPU in use.
    if options.main_gpu is None or options.split_mode == "none" or options.main_gpu < max(len(gpus), 1):
        return None
    return f"main_gpu is {options.main_gpu}, but {len(gpus)} GPU(s) would be used; name the GPUs in gpus"


def _tensor_parallel(options: EngineOptions, gpus: Sequence[object]) -> int:
    return max(1, len(gpus) // (options.pipeline_parallel_size or 1))


def _splits(row: BackendRow) -> bool:
    return row.engine is Engine.LLAMA_SERVER and row.needs_gpu


def _oversubscribed(threads: int, leased: int, cpu_count: int) -> tuple[str, ...]:
    if not leased or threads + leased <= cpu_count:
        return ()
    numbers = f"{threads} thread(s) here and {leased} of other models on {cpu_count} cores"
    advice = "Use fewer threads, another node, or unload a model"
    return (f"{OVERSUBSCRIBED}: {numbers}; busy threads that share a core stall each other. {advice}",)


def _warnings(options: ResolvedOptions) -> tuple[str, ...]:
    warnings = []
    if options.task is not ModelTask.GENERATE and options.ubatch < options.context:
        warnings.append(
            f"the engine will refuse inputs of more than {options.ubatch} tokens (ubatch), although the "
            f"context is {options.context}"
        )
    if options.extra_args:
        warnings.append("extra_args are passed on as they are; what they change is not in the memory bill")
    return tuple(warnings)
