"""One backend weighed for one model: can it, and with which GPUs, options and memory?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts, ModelTask
from xgen_ray.placement.budget import gpu_budget, host_budget
from xgen_ray.placement.devices import usable_gpus
from xgen_ray.placement.fit import Shortage, ram_left, shortage
from xgen_ray.placement.footprint import KV_CACHE, footprint
from xgen_ray.placement.gpusets import Budgeted, GPUSet, gpu_sets, named_gpus
from xgen_ray.placement.options import contradictions, foreign_options
from xgen_ray.placement.policy import PlacementPolicy
from xgen_ray.placement.profiles import ProfileRow, is_integrated, profile
from xgen_ray.placement.resolve import Resolution, Rung, context_refusal, ladder, resolve
from xgen_ray.placement.sizes import MIB, gib
from xgen_ray.placement.types import (
    BackendRow,
    BackendStatus,
    Candidate,
    DeviceBudget,
    Engine,
    EngineOptions,
    Footprint,
    ProfileNote,
    ResolvedOptions,
)


class Cause(StrEnum):
    """Why a backend will not do, in the order in which it is asked."""

    NOT_ASKED = "not asked for"
    FORMAT = "format"
    EXCLUDED = "excluded"
    REQUEST = "request"
    ABSENT = "absent"
    DEVICE = "device"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that a backend is weighed against."""

    facts: ModelFacts
    task: ModelTask
    options: EngineOptions
    snapshot: NodeSnapshot
    usage: NodeUsage | None
    policy: PlacementPolicy


@dataclass(frozen=True, slots=True)
class Weighed:
    """A candidate with what a plan needs of it (``options``) or what kind of no it is (``cause``).

    ``short`` is a lack of memory in short, for the sentence that sums a refusal up.
    """

    candidate: Candidate
    cause: Cause | None = None
    short: str | None = None
    options: ResolvedOptions | None = None
    notes: tuple[ProfileNote, ...] = ()
    warnings: tuple[str, ...] = ()


def no(
    row: BackendRow,
    cause: Cause,
    reasons: Sequence[str],
    bill: Footprint | None = None,
    short: str | None = None,
) -> Weighed:
    candidate = Candidate(row.backend, fits=False, reasons=tuple(reasons), footprint=bill)
    return Weighed(candidate, cause, short=short)


def weigh(row: BackendRow, status: BackendStatus, question: Question) -> Weighed:
    """Weigh a backend of the model's format; ``status`` has the hardware's word merged in."""
    reasons = _request_reasons(row, question)
    if reasons:
        return no(row, Cause.REQUEST, reasons)
    if not status.available:
        return no(row, Cause.ABSENT, [status.reason])
    host = host_budget(question.snapshot.host, question.usage)
    if not row.needs_gpu:
        return _climb(row, question, ((),), host)
    budgeted = _budgeted(row, status, question, host)
    off_gpu = _kept_off_gpu(row, question, budgeted)
    if off_gpu is not None:
        # Forced onto this backend, the model runs on the CPU inside it.
        if question.options.backend is not row.backend:
            return no(row, Cause.DEVICE, [off_gpu])
        forced = _climb(row, question, ((),), host)
        return replace(forced, notes=(*forced.notes, ProfileNote("gpu_layers", "0", off_gpu)))
    named = _named(question)[0] or None
    sets, reasons = gpu_sets(row, budgeted, question.options, question.facts, named)
    if reasons:
        return no(row, Cause.DEVICE, reasons)
    return _climb(row, question, sets, host)


def _request_reasons(row: BackendRow, question: Question) -> tuple[str, ...]:
    facts, task, options = question.facts, question.task, question.options
    reasons: list[str] = []
    if task not in row.tasks:
        reasons.append(f"it cannot {task}")
    if facts.task is not ModelTask.GENERATE and task is not facts.task:
        reasons.append(f"the model is made to {facts.task}, so it cannot {task}")
    if facts.task is ModelTask.GENERATE and task is ModelTask.RERANK:
        reasons.append("the model is made to generate, so it cannot rerank")
    context = context_refusal(facts, options, question.policy)
    if context is not None:
        reasons.append(context)
    reasons += _named(question)[1]
    reasons += contradictions(options, question.snapshot.host.cpu_count)
    reasons += foreign_options(row, options)
    return tuple(reasons)


def _named(question: Question) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The positions of the GPUs that the options name, and what is wrong with the names."""
    options = question.options
    names: tuple[int | str, ...] = options.gpus or ()
    if options.gpus is None and options.split_mode == "none" and options.main_gpu is not None:
        names = (options.main_gpu,)
    return named_gpus(question.snapshot.detection.gpus, names)


def _budgeted(
    row: BackendRow, status: BackendStatus, question: Question, host: DeviceBudget
) -> tuple[Budgeted, ...]:
    usable, _ = usable_gpus(row, question.snapshot.detection.gpus, status.devices, question.policy)
    return tuple(
        Budgeted(item, gpu_budget(item.gpu, host, usage=question.usage, device=item.device))
        for item in usable
    )


def _kept_off_gpu(row: BackendRow, question: Question, gpus: Sequence[Budgeted]) -> str | None:
    """Why the model goes to the CPU although the backend has a GPU, or None."""
    options = question.options
    if options.gpu_layers == 0:
        return "gpu_layers is 0, which asks for the CPU"
    if options.gpu_layers is not None or options.gpus:
        return None
    layers = _layers_row(row, question, gpus)
    return layers.reason if layers is not None else None


def _layers_row(row: BackendRow, question: Question, gpus: Sequence[Budgeted]) -> ProfileRow | None:
    """The profile row that keeps this model off these GPUs, if there is one."""
    rows = profile(row, question.task, [item.usable.gpu for item in gpus], question.policy.profiles)
    layers = rows.get("gpu_layers")
    return layers if layers is not None and layers.value == 0 else None


def _climb(row: BackendRow, question: Question, sets: Sequence[GPUSet], host: DeviceBudget) -> Weighed:
    """Try the sets at full size, then smaller; the first that fits is it."""
    first: Shortage | None = None
    nearest: Shortage | None = None
    bill: Footprint | None = None
    conflict: str | None = None
    rungs = ladder(row, question.facts, question.task, question.options, question.policy)
    for rung in rungs:
        nearest, bill = None, None
        for gpus in sets:
            resolution = _resolve(row, question, gpus, rung)
            if resolution.conflict is not None:
                conflict = resolution.conflict
                continue
            tried = _bill(row, question, gpus, resolution.options)
            short = shortage(row, question.facts, resolution.options, tried, gpus, host)
            if short is None:
                return _fitting(row, question, gpus, host, resolution, rung, first)
            if nearest is None or short.missing_bytes < nearest.missing_bytes:
                nearest, bill = short, tried
        first = first or nearest
    if nearest is None and conflict is not None:
        return no(row, Cause.REQUEST, [conflict])
    if nearest is None:
        return no(row, Cause.DEVICE, ["no GPU for it"])
    return no(row, Cause.MEMORY, [f"{nearest.text} ({nearest.why})"], bill, short=nearest.text)


def _fitting(
    row: BackendRow,
    question: Question,
    gpus: GPUSet,
    host: DeviceBudget,
    resolution: Resolution,
    rung: Rung,
    first: Shortage | None,
) -> Weighed:
    bill = _bill(row, question, gpus, resolution.options)
    left = ram_left(row, question.facts, resolution.options, bill, gpus, host)
    lock, notes, warnings = _memory_lock(row, question, gpus, left)
    spare = 0
    if row.engine is Engine.LLAMA_SERVER and question.task is ModelTask.GENERATE:
        spare = _prompt_cache(question, bill, left - (question.facts.weight_bytes if lock and gpus else 0))
    options = replace(resolution.options, memory_lock=lock, prompt_cache_bytes=spare)
    bill = _bill(row, question, gpus, options)
    candidate = Candidate(row.backend, fits=True, reasons=(), footprint=bill)
    if first is not None:
        warnings = (_shrunk(options, rung, first), *warnings)
    overridden = _layers_row(row, question, gpus) if gpus else None
    if overridden is not None:
        warnings += (f"on the GPU because the options say so: {overridden.reason}",)
    return Weighed(
        candidate,
        options=options,
        notes=resolution.notes + notes,
        warnings=resolution.warnings + warnings,
    )


def _prompt_cache(question: Question, bill: Footprint, left: int) -> int:
    """RAM for idle conversations: as much as the live ones have, and a quarter of what is left at most, so
    that the next model on this node finds room too.
    """
    live = sum(item.size_bytes for item in bill.items if item.name == KV_CACHE)
    return max(0, min(question.policy.prompt_cache_bytes, live, left // 4)) // MIB * MIB


def _memory_lock(
    row: BackendRow, question: Question, gpus: GPUSet, left: int
) -> tuple[bool, tuple[ProfileNote, ...], tuple[str, ...]]:
    """Whether to keep the weights from being swapped out: where they lie in RAM and both limits allow."""
    asked = question.options.memory_lock
    in_ram = not gpus or any(is_integrated(item.usable.gpu) for item in gpus)
    if row.engine is Engine.VLLM or asked is False or (asked is None and not in_ram):
        return False, (), ()
    weights = question.facts.weight_bytes
    limit = question.snapshot.host.memlock_limit_bytes
    # On the CPU the weights are already in the bill; beside a GPU their copy in RAM is not.
    if gpus and weights > left:
        return False, (), (f"memory is not locked: {gib(weights)} of weights, {gib(left)} of RAM left",)
    if limit is None and asked is None:
        return False, (), ("memory is not locked: the limit on locked memory is not known",)
    if limit is not None and weights > limit:
        advice = "raise RLIMIT_MEMLOCK (ulimit -l) to keep the model from being swapped out"
        return (
            False,
            (),
            (f"memory is not locked: {gib(weights)} of weights, a limit of {gib(limit)}; {advice}",),
        )
    note = ProfileNote("memory_lock", "on", "the weights lie in RAM and may be locked there: no swapping")
    return True, () if asked else (note,), ()


def _resolve(row: BackendRow, question: Question, gpus: GPUSet, rung: Rung) -> Resolution:
    return resolve(
        row,
        question.facts,
        question.task,
        question.options,
        gpus,
        question.snapshot.host,
        rung,
        question.policy,
    )


def _bill(row: BackendRow, question: Question, gpus: GPUSet, options: ResolvedOptions) -> Footprint:
    totals = [item.budget.total_bytes or item.budget.free_bytes for item in gpus]
    return footprint(question.facts, row.backend, options, totals)


def _shrunk(options: ResolvedOptions, rung: Rung, first: Shortage) -> str:
    size = f"a context of {options.context}" + (f" and {options.slots} slot(s)" if rung.most_slots else "")
    return f"made smaller to fit, to {size}: at full size it {first.text} ({first.why})"


def by_backend(statuses: Sequence[BackendStatus]) -> Mapping[str, BackendStatus]:
    """One status per backend whatever the order: of two, the one that can start."""
    ranked = sorted(statuses, key=lambda status: (status.available, status.command, status.reason))
    return {status.backend: status for status in ranked}
