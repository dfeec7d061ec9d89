"""Whether a bill can be paid from the budgets, and by how much it cannot."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.estimates import LEARNED
from xgen_ray.placement.footprint import FURTHER_CACHE, per_gpu_bytes
from xgen_ray.placement.gpusets import Budgeted, GPUSet
from xgen_ray.placement.sizes import gib_pair
from xgen_ray.placement.types import BackendRow, DeviceBudget, Engine, Footprint, GPUNeed, ResolvedOptions


@dataclass(frozen=True, slots=True)
class Shortage:
    """How much is missing, and that in words: "needs 41.2 GiB for 4 x 8192 tokens; GPU X has 23.6 GiB free".

    ``why`` tells where the smaller number comes from; it is ``limited`` when that is an operator's row.
    """

    missing_bytes: int
    text: str
    why: str
    limited: bool = False


def needs_of(
    row: BackendRow, facts: ModelFacts, options: ResolvedOptions, bill: Footprint, gpus: GPUSet
) -> tuple[int, ...]:
    """What the model takes of each GPU in ``gpus``."""
    if not gpus:
        return ()
    if row.engine is Engine.VLLM:
        # What was learned is beyond the share: it lies outside vLLM's own count.
        beyond = sum(item.size_bytes for item in bill.items if item.on_gpu and item.name == LEARNED)
        each = ceil(beyond / len(gpus))
        pools = _pools(options, gpus)
        return tuple(max(pair) + each for pair in zip(pools, _least(facts, bill, gpus), strict=True))
    free = [item.budget.free_bytes for item in gpus]
    everything = sum(free)
    # llama-server is told to split layers by what is free now.
    shares = [size / everything if everything else 1 / len(free) for size in free]
    return per_gpu_bytes(facts, bill, shares)


def gpu_needs(
    row: BackendRow, facts: ModelFacts, options: ResolvedOptions, bill: Footprint, gpus: GPUSet
) -> tuple[GPUNeed, ...]:
    """What the model takes of each GPU, and how much of that from the host's RAM: a GPU that shares it takes
    there what its own memory does not hold.
    """
    return tuple(
        GPUNeed(
            need, max(0, need - (item.budget.free_bytes - item.budget.shared_bytes)), item.budget.free_bytes
        )
        for need, item in zip(needs_of(row, facts, options, bill, gpus), gpus, strict=True)
    )


def shortage(
    row: BackendRow,
    facts: ModelFacts,
    options: ResolvedOptions,
    bill: Footprint,
    gpus: GPUSet,
    host: DeviceBudget,
) -> Shortage | None:
    """What is missing on the GPUs, else in RAM; None when the bill can be paid."""
    size = _size(row, options)
    lack = next(_lacks(row, facts, options, bill, gpus), None)
    if lack is not None:
        wanted, has = gib_pair(lack.need, lack.free)
        name, limited = lack.item.usable.gpu.device_name, lack.item.budget.limited
        offered = f"a model may use {has} of {name}" if limited else f"{name} has {has} free"
        text = f"needs {wanted}{_on_each(gpus)} for {size}; {offered}"
        return Shortage(lack.need - lack.free, text, lack.why, limited)
    left = _ram_left(row, facts, options, bill, gpus, host)
    if left < 0:
        wanted, free = gib_pair(host.free_bytes - left, host.free_bytes)
        return Shortage(-left, f"needs {wanted} of RAM for {size}; {free} is free", host.reason)
    return None


def lacking_on(
    item: Budgeted,
    row: BackendRow,
    facts: ModelFacts,
    options: ResolvedOptions,
    bill: Footprint,
    gpus: GPUSet,
) -> str | None:
    """What ``item``, which is one of ``gpus``, is itself too small for; None when it has enough."""
    lack = next((lack for lack in _lacks(row, facts, options, bill, gpus) if lack.item is item), None)
    if lack is None:
        return None
    wanted, has = gib_pair(lack.need, lack.free)
    offered = f"a model may use {has}" if item.budget.limited else f"has {has} free"
    said = f"{offered}, needs {wanted}{_on_each(gpus)} for {_size(row, options)}"
    return said if lack.why == f"{has} free" else f"{said} ({lack.why})"


def ram_left(
    row: BackendRow,
    facts: ModelFacts,
    options: ResolvedOptions,
    bill: Footprint,
    gpus: GPUSet,
    host: DeviceBudget,
) -> int:
    """RAM that no one has claimed once the bill is paid."""
    return max(0, _ram_left(row, facts, options, bill, gpus, host))


def _ram_left(
    row: BackendRow,
    facts: ModelFacts,
    options: ResolvedOptions,
    bill: Footprint,
    gpus: GPUSet,
    host: DeviceBudget,
) -> int:
    spilled = sum(need.in_ram_bytes for need in gpu_needs(row, facts, options, bill, gpus))
    return host.free_bytes - spilled - bill.host_bytes


def _pools(options: ResolvedOptions, gpus: GPUSet) -> tuple[int, ...]:
    """What vLLM takes of each GPU at once."""
    part = options.gpu_memory_utilization or 0.0
    return tuple(int(part * (item.budget.total_bytes or item.budget.free_bytes)) for item in gpus)


def _least(facts: ModelFacts, bill: Footprint, gpus: GPUSet) -> tuple[int, ...]:
    """What must fit each GPU's pool: all but the cache that vLLM adds with what is left of it."""
    items = tuple(item for item in bill.items if item.name not in (FURTHER_CACHE, LEARNED))
    return per_gpu_bytes(facts, Footprint(items), [1 / len(gpus)] * len(gpus))


def _size(row: BackendRow, options: ResolvedOptions) -> str:
    # vLLM's cache is paged: one request of full length is what must fit.
    slots = "" if row.engine is Engine.VLLM else f"{options.slots} x "
    return f"{slots}{options.context} tokens"


def _on_each(gpus: GPUSet) -> str:
    return "" if len(gpus) == 1 else f" on each of {len(gpus)} GPUs"


@dataclass(frozen=True, slots=True)
class _Lack:
    """A GPU that has less than it needs."""

    need: int
    free: int
    why: str
    item: Budgeted


def _lacks(
    row: BackendRow, facts: ModelFacts, options: ResolvedOptions, bill: Footprint, gpus: GPUSet
) -> Iterator[_Lack]:
    if row.engine is Engine.VLLM and gpus:
        share = f"gpu_memory_utilization is {options.gpu_memory_utilization:.2f}"
        for pool, least, item in zip(_pools(options, gpus), _least(facts, bill, gpus), gpus, strict=True):
            if least > pool:
                yield _Lack(least, pool, f"{share}; {item.budget.reason}", item)
    for need, item in zip(needs_of(row, facts, options, bill, gpus), gpus, strict=True):
        if need > item.budget.free_bytes:
            yield _Lack(need, item.budget.free_bytes, item.budget.reason, item)
