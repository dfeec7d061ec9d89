"""What a backend says of every single GPU of a node: where the model would go, and why not elsewhere."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from xgen_ray.placement.budget import host_budget
from xgen_ray.placement.claims import gpu_key
from xgen_ray.placement.fit import lacking_on, shortage
from xgen_ray.placement.gpusets import Budgeted, GPUSet, Sets, Wish, gpu_sets, left_out
from xgen_ray.placement.offer import TAKEN, kept_off_gpu, on_offer, wish_for, with_budgets
from xgen_ray.placement.question import Cause, Question, Weighed
from xgen_ray.placement.resolve import Resolution, Rung, ladder
from xgen_ray.placement.sizes import gib
from xgen_ray.placement.survey import Found
from xgen_ray.placement.types import (
    Backend,
    BackendRow,
    Candidate,
    DeviceBudget,
    Footprint,
    GPUNeed,
    GPUVerdict,
)
from xgen_ray.placement.weigh import bill_of, make_of, resolved

# With these it never came to a look at the GPUs.
_BEFORE_GPUS = frozenset({Cause.NOT_ASKED, Cause.FORMAT, Cause.EXCLUDED, Cause.REQUEST})


def with_gpu_verdicts(row: BackendRow, found: Found, question: Question, weighed: Weighed) -> Weighed:
    """``weighed`` with a word on each GPU of the node, in its order; with none where the backend needs no
    GPU, or was refused before it came to them.
    """
    if not row.needs_gpu or weighed.cause in _BEFORE_GPUS:
        return weighed
    gpus = question.snapshot.detection.gpus
    told = {
        place: GPUVerdict(place, gpus[place].device_name, chosen=False, fits=False, reason=why)
        for place, why in found.unusable
    }
    if found.gpus:
        told |= _usable(_look(row, found, question, weighed))
    verdicts = tuple(told[place] for place in sorted(told))
    return replace(weighed, candidate=replace(weighed.candidate, gpus=verdicts))


def behind(candidate: Candidate, first: Backend) -> Candidate:
    """``candidate``, which would do, where ``first`` is used: none of its GPUs is chosen."""
    gpus = tuple(
        replace(gpu, chosen=False, reason=f"fits; {first} comes first") if gpu.chosen else gpu
        for gpu in candidate.gpus
    )
    return replace(candidate, gpus=gpus)


@dataclass(frozen=True, slots=True)
class _Look:
    """What each GPU that the backend can use is held against.

    ``size`` is the size of the model as it was chosen, or the least that was tried. ``chosen`` are the
    positions that it was given, with what it takes there. Bills are kept for sets of the same make.
    """

    row: BackendRow
    question: Question
    host: DeviceBudget
    gpus: tuple[Budgeted, ...]
    wish: Wish
    sets: Sets
    size: Rung
    chosen: Mapping[int, GPUNeed]
    bills: dict[object, tuple[Resolution, Footprint]] = field(default_factory=dict)


def _look(row: BackendRow, found: Found, question: Question, weighed: Weighed) -> _Look:
    host = host_budget(question.snapshot.host, question.usage)
    gpus = with_budgets(row, found, question, host)
    wish = wish_for(question, gpus)
    offered, _, _ = on_offer(gpus, wish.named, question.leased)
    options = weighed.options
    if options is None:
        size = ladder(row, question.facts, question.task, question.options, question.policy)[-1]
        chosen = {}
    else:
        size = Rung(options.context, options.slots)
        places = {gpu_key(item.usable.gpu): item.usable.position for item in gpus}
        taken = zip(options.gpus, weighed.gpu_needs, strict=True)
        chosen = {places[gpu_key(gpu)]: need for gpu, need in taken}
    return _Look(row, question, host, gpus, wish, gpu_sets(row, offered, wish), size, chosen)


def _usable(look: _Look) -> dict[int, GPUVerdict]:
    fits = f"fits; {_first(look.chosen)}" if look.chosen else "fits"
    off_gpu = kept_off_gpu(look.row, look.question, look.gpus)
    told = {}
    for item in look.gpus:
        place, name = item.usable.position, item.usable.gpu.device_name
        need = look.chosen.get(place)
        if need is not None:
            takes = f"would take {gib(need.size_bytes)} of {gib(item.budget.free_bytes)} free"
            told[place] = GPUVerdict(place, name, chosen=True, fits=True, reason=takes)
            continue
        why_not = off_gpu or _not_offered(look, item) or _why_not(look, item)
        told[place] = GPUVerdict(place, name, chosen=False, fits=why_not is None, reason=why_not or fits)
    return told


def _first(places: Collection[int]) -> str:
    numbers = ", ".join(map(str, sorted(places)))
    return f"GPU {numbers} comes first" if len(places) == 1 else f"GPUs {numbers} come first"


def _not_offered(look: _Look, item: Budgeted) -> str | None:
    named = look.wish.named
    if named is not None and item.usable.position not in named:
        return "the options name other GPUs"
    return TAKEN if gpu_key(item.usable.gpu) in look.question.leased.taken else None


def _why_not(look: _Look, item: Budgeted) -> str | None:
    """Why a GPU on offer will not do, or None if it would have."""
    sets, refused = look.sets
    # Of the fewest GPUs: what speaks against them is then most likely this one's own.
    own = min((gpus for gpus in sets if item in gpus), key=len, default=None)
    if own is None:
        return "; ".join(refused) or left_out(look.row, item, look.wish)
    return _too_small(look, item, own)


def _too_small(look: _Look, item: Budgeted, gpus: GPUSet) -> str | None:
    row, facts = look.row, look.question.facts
    resolution, bill = _bill(look, gpus)
    if resolution.conflict is not None:
        return resolution.conflict
    short = shortage(row, facts, resolution.options, bill, gpus, look.host)
    if short is None:
        return None
    for one in (item, *gpus):
        lacks = lacking_on(one, row, facts, resolution.options, bill, gpus)
        if lacks is not None:
            return lacks if one is item else f"GPU {one.usable.position}, used with it, {lacks}"
    return f"{short.text} ({short.why})"


def _bill(look: _Look, gpus: GPUSet) -> tuple[Resolution, Footprint]:
    make = make_of(look.row, gpus)
    known = look.bills.get(make)
    if known is None:
        resolution = resolved(look.row, look.question, gpus, look.size)
        known = resolution, bill_of(look.row, look.question, gpus, resolution.options)
        if make is not None:
            look.bills[make] = known
    return known
