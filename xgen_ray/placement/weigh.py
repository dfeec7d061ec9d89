"""One backend weighed for one model: can it, and with which GPUs, options and memory?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xgen_ray.models.types import ModelTask
from xgen_ray.placement.budget import host_budget
from xgen_ray.placement.estimates import corrected, overshoot
from xgen_ray.placement.fit import Shortage, gpu_needs, ram_left, shortage
from xgen_ray.placement.footprint import KV_CACHE, footprint
from xgen_ray.placement.gpusets import Budgeted, GPUSet, gpu_sets
from xgen_ray.placement.offer import (
    kept_off_gpu,
    layers_row,
    named_positions,
    on_offer,
    wish_for,
    with_budgets,
)
from xgen_ray.placement.options import contradictions, foreign_options
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.question import Cause, Question, Weighed, no, too_little
from xgen_ray.placement.resolve import Resolution, Rung, context_refusal, ladder, resolve
from xgen_ray.placement.sizes import MIB, gib
from xgen_ray.placement.survey import Found
from xgen_ray.placement.types import (
    BackendRow,
    Candidate,
    DeviceBudget,
    Engine,
    Fault,
    Footprint,
    ProfileNote,
    ResolvedOptions,
)

MADE_SMALLER = "made smaller to fit"


def weigh(row: BackendRow, found: Found, question: Question) -> Weighed:
    """Weigh a backend of the model's format, as it was found on the node."""
    faults = _faults(row, question)
    reasons = (*_task_reasons(row, question), *(fault.reason for fault in faults))
    if reasons:
        return no(row, Cause.REQUEST, reasons, faults=faults)
    if not found.status.available:
        return no(row, Cause.ABSENT, [found.status.reason])
    host = host_budget(question.snapshot.host, question.usage)
    if not row.needs_gpu:
        return _climb(row, question, ((),), host)
    budgeted = with_budgets(row, found, question, host)
    off_gpu = kept_off_gpu(row, question, budgeted)
    if off_gpu is not None:
        # Forced onto this backend, the model runs on the CPU inside it.
        if question.options.backend is not row.backend:
            return no(row, Cause.DEVICE, [off_gpu])
        forced = _climb(row, question, ((),), host)
        return replace(forced, notes=(*forced.notes, ProfileNote("gpu_layers", "0", off_gpu)))
    named = named_positions(question)[0] or None
    offered, withheld, reasons = on_offer(budgeted, named, question.leased)
    if reasons:
        return no(row, Cause.TAKEN, reasons)
    sets, reasons = gpu_sets(row, offered, wish_for(question, offered))
    if reasons:
        return no(row, Cause.DEVICE, (*reasons, *withheld))
    weighed = _climb(row, question, sets, host)
    if weighed.cause is None or not withheld:
        return weighed
    reasons = (*weighed.candidate.reasons, *withheld)
    return replace(weighed, candidate=replace(weighed.candidate, reasons=reasons))


def _task_reasons(row: BackendRow, question: Question) -> tuple[str, ...]:
    facts, task = question.facts, question.task
    reasons: list[str] = []
    if task not in row.tasks:
        reasons.append(f"it cannot {task}")
    if facts.task is not ModelTask.GENERATE and task is not facts.task:
        reasons.append(f"the model is made to {facts.task}, so it cannot {task}")
    if facts.task is ModelTask.GENERATE and task is ModelTask.RERANK:
        reasons.append("the model is made to generate, so it cannot rerank")
    return tuple(reasons)


def _faults(row: BackendRow, question: Question) -> tuple[Fault, ...]:
    options = question.options
    context = context_refusal(question.facts, options, question.policy)
    return (
        *((Fault("context", context),) if context is not None else ()),
        *(Fault("gpus", reason) for reason in named_positions(question)[1]),
        *contradictions(options, question.snapshot.host.cpu_count),
        *foreign_options(row, options),
    )


@dataclass(frozen=True, slots=True)
class _Fit:
    """A set of GPUs, and a size of the model that fits there."""

    rung: Rung
    gpus: GPUSet
    resolution: Resolution
    bill: Footprint


@dataclass(frozen=True, slots=True)
class _Miss:
    """No set holds the model at a size: how near it came to fit, or what speaks against every set."""

    short: Shortage | None = None
    bill: Footprint | None = None
    conflict: str | None = None


def _climb(row: BackendRow, question: Question, sets: Sequence[GPUSet], host: DeviceBudget) -> Weighed:
    """Try the sets at full size, then smaller; the first that fits is it."""
    rungs = ladder(row, question.facts, question.task, question.options, question.policy)
    full = _attempt(row, question, sets, host, rungs[0])
    if isinstance(full, _Fit):
        return _fitting(row, question, host, full, None)
    least = _attempt(row, question, sets, host, rungs[-1]) if len(rungs) > 1 else full
    if isinstance(least, _Fit):
        # What fits at a size fits at every smaller one, so only now are those between worth a try.
        between = (_attempt(row, question, sets, host, rung) for rung in rungs[1:-1])
        chosen = next((item for item in between if isinstance(item, _Fit)), least)
        return _fitting(row, question, host, chosen, full.short)
    if least.short is not None:
        return too_little(row, least.short, least.bill)
    if least.conflict is not None:
        return no(row, Cause.REQUEST, [least.conflict])
    return no(row, Cause.DEVICE, ["no GPU for it"])


def _attempt(
    row: BackendRow, question: Question, sets: Sequence[GPUSet], host: DeviceBudget, rung: Rung
) -> _Fit | _Miss:
    nearest = _Miss()
    alike: dict[object, tuple[Resolution, Footprint]] = {}
    for gpus in sets:
        make = make_of(row, gpus)
        known = alike.get(make)
        resolution = known[0] if known is not None else resolved(row, question, gpus, rung)
        if resolution.conflict is not None:
            nearest = replace(nearest, conflict=resolution.conflict)
            continue
        bill = known[1] if known is not None else bill_of(row, question, gpus, resolution.options)
        if make is not None:
            alike[make] = resolution, bill
        short = shortage(row, question.facts, resolution.options, bill, gpus, host)
        if short is None:
            own = resolution if known is None else resolved(row, question, gpus, rung)
            return _Fit(rung, gpus, own, bill)
        if nearest.short is None or short.missing_bytes < nearest.short.missing_bytes:
            nearest = replace(nearest, short=short, bill=bill)
    return nearest


def make_of(row: BackendRow, gpus: GPUSet) -> object:
    """The same for sets with the same options, but for the GPUs' names, and the same bill; None if no other
    set is like this one.

    llama.cpp takes the same of every card of one make: only what is free differs between sets of them.
    vLLM's share is a part of each card's own total.
    """
    return None if row.engine is Engine.VLLM else tuple(_make(item) for item in gpus)


def _make(item: Budgeted) -> object:
    """Everything of a GPU that options or a bill may hang on."""
    gpu = item.usable.gpu
    return gpu.gpu_type, gpu.gfx_version, gpu.integrated, gpu.unified_memory, item.budget.total_bytes


def _fitting(
    row: BackendRow, question: Question, host: DeviceBudget, chosen: _Fit, first: Shortage | None
) -> Weighed:
    gpus, resolution, bill = chosen.gpus, chosen.resolution, chosen.bill
    left = ram_left(row, question.facts, resolution.options, bill, gpus, host)
    lock, notes, warnings = _memory_lock(row, question, gpus, left)
    spare = 0
    if row.engine is Engine.LLAMA_SERVER and question.task is ModelTask.GENERATE:
        spare = _prompt_cache(question, bill, left - (question.facts.weight_bytes if lock and gpus else 0))
    options = replace(resolution.options, memory_lock=lock, prompt_cache_bytes=spare)
    bill = bill_of(row, question, gpus, options)
    candidate = Candidate(row.backend, fits=True, reasons=(), footprint=bill)
    if first is not None:
        warnings = (_shrunk(options, chosen.rung, first), *warnings)
    overridden = layers_row(row, question, gpus) if gpus else None
    if overridden is not None:
        warnings += (f"on the GPU because the options say so: {overridden.reason}",)
    return Weighed(
        candidate,
        options=options,
        notes=resolution.notes + notes,
        warnings=resolution.warnings + warnings,
        gpu_needs=gpu_needs(row, question.facts, options, bill, gpus),
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


def resolved(row: BackendRow, question: Question, gpus: GPUSet, rung: Rung) -> Resolution:
    """Every option for the model of that size on these GPUs."""
    return resolve(
        row,
        question.facts,
        question.task,
        question.options,
        gpus,
        question.snapshot.host,
        rung,
        question.policy,
        leased_threads=question.leased.threads,
        overshoot=overshoot(question.facts, row.backend, question.observations),
    )


def bill_of(row: BackendRow, question: Question, gpus: GPUSet, options: ResolvedOptions) -> Footprint:
    """What it takes with those options, corrected by what was measured."""
    totals = [item.budget.total_bytes or item.budget.free_bytes for item in gpus]
    bill = footprint(question.facts, row.backend, options, totals)
    return corrected(question.facts, row.backend, bill, question.observations)


def _shrunk(options: ResolvedOptions, rung: Rung, first: Shortage) -> str:
    size = f"a context of {options.context}" + (f" and {options.slots} slot(s)" if rung.most_slots else "")
    return f"{MADE_SMALLER}, to {size}: at full size it {first.text} ({first.why})"
