"""What engines really took, and how that corrects the bills of the same model from then on.

A bill errs upwards by design, so a measurement below it changes little: only after several, and then half
of the way. A measurement above it counts at once. The correction is a line of the bill of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import PurePath
from typing import Final, Literal

from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.footprint import PROMPT_CACHE
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.sizes import gib_pair
from xgen_ray.placement.types import Backend, Engine, Footprint, FootprintItem, Plan

Memory = Literal["gpu", "ram"]

LEARNED: Final = "learned"
# Kept above what was measured: no two starts take the same to the byte.
_MARGIN: Final = 1.05
# Only so many of the latest count, so that a new engine build can prove itself.
_LATEST: Final = 8
_ENOUGH_TO_LOWER: Final = 3


@dataclass(frozen=True, slots=True)
class Observation:
    """What an engine took of one kind of memory, beside what its bill said without any correction.

    ``planned_bytes`` are all GPUs together for ``gpu``. For ``ram`` neither figure has the cache of idle
    conversations, which is empty at the start. Make one with :func:`observe`.
    """

    model: str
    backend: Backend
    memory: Memory
    planned_bytes: int
    measured_bytes: int


@dataclass(frozen=True, slots=True)
class Correction:
    """``factor`` times the bill is what to expect, and why."""

    factor: float
    reason: str


def model_key(facts: ModelFacts) -> str:
    """What identifies a model wherever its files lie: its name and the size of its weights."""
    return f"{facts.name or PurePath(facts.path).name} ({facts.weight_bytes} bytes)"


def observe(plan: Plan, memory: Memory, measured_bytes: int) -> Observation:
    """``measured_bytes`` is what the engine of ``plan`` takes once it is ready."""
    planned = _base(plan.footprint, memory)
    return Observation(model_key(plan.facts), plan.backend, memory, planned, measured_bytes)


def correction(
    facts: ModelFacts, backend: Backend, memory: Memory, observations: Sequence[Observation]
) -> Correction | None:
    """What ``observations``, oldest first, teach about a bill; None when they change nothing."""
    key = model_key(facts)
    seen = [
        item
        for item in observations
        if (item.model, item.backend, item.memory) == (key, backend, memory) and item.planned_bytes > 0
    ][-_LATEST:]
    if not seen:
        return None
    worst = max(seen, key=lambda item: item.measured_bytes / item.planned_bytes)
    ratio = worst.measured_bytes / worst.planned_bytes
    measured, planned = gib_pair(worst.measured_bytes, worst.planned_bytes)
    if ratio > 1:
        factor = ratio * _MARGIN
        return Correction(factor, f"took {measured} where {planned} was planned; {_MARGIN - 1:.0%} on top")
    if _takes_its_share_at_once(backend, memory) or len(seen) < _ENOUGH_TO_LOWER or ratio * _MARGIN >= 1:
        return None
    # Half of the way down; that never is below what was measured and its margin.
    factor = (1 + ratio * _MARGIN) / 2
    seen_so = f"the most of {len(seen)} starts took {measured} where {planned} was planned"
    return Correction(factor, f"{seen_so}; half of the difference is taken off")


def corrected(
    facts: ModelFacts, backend: Backend, bill: Footprint, observations: Sequence[Observation]
) -> Footprint:
    """``bill`` with a line for each kind of memory about which something was learned."""
    items = bill.items
    for memory in ("gpu", "ram") if observations else ():
        learned = correction(facts, backend, memory, observations)
        size = 0 if learned is None else ceil((learned.factor - 1) * _base(bill, memory))
        if learned is not None and size:
            items += (FootprintItem(LEARNED, size, memory == "gpu", learned.reason),)
    return Footprint(items)


def overshoot(facts: ModelFacts, backend: Backend, observations: Sequence[Observation]) -> float:
    """How many times its share of a GPU an engine takes that takes it at once; 1.0 if no more than that."""
    learned = correction(facts, backend, "gpu", observations) if observations else None
    return max(1.0, learned.factor) if learned is not None else 1.0


def _base(bill: Footprint, memory: Memory) -> int:
    """The bill without corrections, and without what fills only with use."""
    return sum(
        item.size_bytes
        for item in bill.items
        if item.on_gpu is (memory == "gpu") and item.name not in (LEARNED, PROMPT_CACHE)
    )


def _takes_its_share_at_once(backend: Backend, memory: Memory) -> bool:
    row = BACKENDS[backend]
    return row.engine is Engine.VLLM and row.needs_gpu and memory == "gpu"
