"""Which GPUs of a node a backend is offered for a model, and with how much memory of each."""

from collections.abc import Sequence

from xgen_ray.placement.budget import at_most, gpu_budget
from xgen_ray.placement.claims import gpu_key
from xgen_ray.placement.devices import UsableGPU
from xgen_ray.placement.gpusets import Budgeted, Wish, named_gpus
from xgen_ray.placement.profiles import MEMORY_LIMIT, ProfileRow, profile
from xgen_ray.placement.question import Leased, Question
from xgen_ray.placement.survey import Found
from xgen_ray.placement.types import BackendRow, DeviceBudget

TAKEN = "another model has it whole"


def with_budgets(
    row: BackendRow, found: Found, question: Question, host: DeviceBudget
) -> tuple[Budgeted, ...]:
    """The GPUs that the backend can use, each with what this model may take of it."""
    limits = tuple(limit for limit in question.policy.profiles if limit.option == MEMORY_LIMIT)

    def budget(item: UsableGPU) -> DeviceBudget:
        budget = gpu_budget(item.gpu, host, usage=question.usage, device=item.device)
        limit = profile(row, question.task, [item.gpu], limits).get(MEMORY_LIMIT)
        return budget if limit is None else at_most(budget, int(limit.value), limit.reason)

    return tuple(Budgeted(item, budget(item)) for item in found.gpus)


def on_offer(
    gpus: Sequence[Budgeted], named: Sequence[int] | None, leased: Leased
) -> tuple[tuple[Budgeted, ...], tuple[str, ...], tuple[str, ...]]:
    """The GPUs that may be used, a reason for each of the others, and why there is nothing to try at all."""
    taken = [item for item in gpus if gpu_key(item.usable.gpu) in leased.taken]
    offered = tuple(item for item in gpus if item not in taken)
    withheld = tuple(
        f"GPU {item.usable.position} ({item.usable.gpu.device_name}) is not offered: {TAKEN}"
        for item in taken
    )
    if named is not None:
        positions = [item.usable.position for item in taken]
        asked = tuple(text for text, position in zip(withheld, positions, strict=True) if position in named)
        return offered, (), asked
    return offered, withheld, () if offered else withheld


def wish_for(question: Question, offered: Sequence[Budgeted]) -> Wish:
    """What decides which of the GPUs on offer are tried together."""
    leased = frozenset(
        item.usable.position for item in offered if gpu_key(item.usable.gpu) in question.leased.gpus
    )
    named = named_positions(question)[0] or None
    return Wish(question.options, question.facts, named, leased, question.spread)


def named_positions(question: Question) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The positions of the GPUs that the options name, and what is wrong with the names."""
    options = question.options
    names: tuple[int | str, ...] = options.gpus or ()
    if options.gpus is None and options.split_mode == "none" and options.main_gpu is not None:
        names = (options.main_gpu,)
    return named_gpus(question.snapshot.detection.gpus, names)


def kept_off_gpu(row: BackendRow, question: Question, gpus: Sequence[Budgeted]) -> str | None:
    """Why the model goes to the CPU although the backend has a GPU, or None."""
    options = question.options
    if options.gpu_layers == 0:
        return "gpu_layers is 0, which asks for the CPU"
    if options.gpu_layers is not None or options.gpus:
        return None
    layers = layers_row(row, question, gpus)
    return layers.reason if layers is not None else None


def layers_row(row: BackendRow, question: Question, gpus: Sequence[Budgeted]) -> ProfileRow | None:
    """The profile row that keeps this model off these GPUs, if there is one."""
    rows = profile(row, question.task, [item.usable.gpu for item in gpus], question.policy.profiles)
    layers = rows.get("gpu_layers")
    return layers if layers is not None and layers.value == 0 else None
