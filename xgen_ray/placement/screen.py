"""What can be said of a node without weighing a model on it: filters, with reasons, and its promise."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xgen_ray.hardware.types import GPUInfo, GPUUsage, HostFacts
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.claims import RAM, gpu_key
from xgen_ray.placement.footprint import footprint
from xgen_ray.placement.kvcache import kv_cache
from xgen_ray.placement.policy import PlacementPolicy
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.resolve import ladder, resolve
from xgen_ray.placement.rows import BACKENDS, PREFERENCE
from xgen_ray.placement.score import CARD, FETCH_ORDER, INTEGRATED, cpu_of
from xgen_ray.placement.sizes import GIB, gib
from xgen_ray.placement.survey import Found
from xgen_ray.placement.types import Backend, Engine, EngineOptions
from xgen_ray.placement.views import NodeView

UNTAGGED = (
    "this node was started by plain `ray start`, so only its CPU is used; start it with `xgen-ray node` "
    "to use its GPUs"
)


def filtered(
    view: NodeView, facts: ModelFacts, found: Mapping[Backend, Found], on: Collection[str] | None
) -> tuple[str, ...]:
    """Why the node is out of the question for this model; empty when it is not. ``found`` is its survey."""
    if on is not None and view.name not in on and view.node_id not in on:
        return (f"the request names other nodes: {', '.join(sorted(on))}",)
    if not view.schedulable:
        return (view.reason or "it takes no models now",)
    reasons = []
    if view.has_files is False and not view.can_fetch:
        reasons.append(f"{facts.path} is not on this node and cannot be fetched; copy it there")
    able = PREFERENCE[facts.format]
    usable = [backend for backend in able if view.tagged or not BACKENDS[backend].needs_gpu]
    if not any(found[backend].status.available for backend in usable):
        if not view.tagged:
            reasons.append(UNTAGGED)
        reasons += [f"{backend}: {found[backend].status.reason}" for backend in usable]
    return tuple(reasons)


class Promise(NamedTuple):
    """How well a node is likely to do; less is better. Only the order in which nodes are weighed hangs on
    it, so it may err. ``hopeless`` may not: then even the weights are larger than all memory that is free.
    """

    hopeless: bool
    device: int
    tight: bool
    backend: int
    files: int
    room: int


@dataclass(frozen=True, slots=True)
class Size:
    """About what the model takes where it lies on one device, and what it takes at the very least."""

    expected_bytes: int
    least_bytes: int


def size_of(
    facts: ModelFacts, options: EngineOptions, policy: PlacementPolicy, host: HostFacts, *, learned: bool
) -> Size:
    """``learned``: bills are corrected, perhaps to less than they say, but never to less than half."""
    row = next(BACKENDS[item] for item in PREFERENCE[facts.format] if not BACKENDS[item].needs_gpu)
    rungs = ladder(row, facts, options.task or facts.task, options, policy)
    full = resolve(row, facts, options.task or facts.task, options, (), host, rungs[0], policy).options
    expected = footprint(facts, row.backend, full).total_bytes
    # vLLM pages its cache: only one request must fit.
    slots = 1 if row.engine is Engine.VLLM else options.slots or 1
    cache = kv_cache(facts, full.kv_cache_type, None).gpu_bytes * rungs[-1].context * slots
    least = facts.weight_bytes + cache
    return Size(expected, least // 2 if learned else least)


def promise(
    view: NodeView,
    facts: ModelFacts,
    options: EngineOptions,
    found: Mapping[Backend, Found],
    size: Size,
    *,
    spread: bool,
) -> Promise:
    """``found`` is the node's survey."""
    backends = [
        (order, backend)
        for order, backend in enumerate(PREFERENCE[facts.format])
        if found[backend].status.available
        and options.backend in (None, backend)
        and (view.tagged or not BACKENDS[backend].needs_gpu)
    ]
    free, ram = _free(view)
    hopeless = None not in free and size.least_bytes > _most(free, ram, options)
    files = FETCH_ORDER[view.has_files]
    on_gpu = [item for item in backends if BACKENDS[item[1]].needs_gpu]
    if on_gpu and options.gpus != () and options.gpu_layers != 0:
        order, backend = on_gpu[0]
        sizes: dict[bool, list[int]] = {False: [], True: []}
        for item in found[backend].gpus:
            sizes[is_integrated(item.gpu)].append(free[item.position] or 0)
        place = _place(sizes[False], sizes[True], size.expected_bytes, spread)
        if place is not None:
            device, tight, room = place
            return Promise(hopeless, device, tight, order, files, room // GIB)
    order = next((order for order, backend in backends if not BACKENDS[backend].needs_gpu), len(Backend))
    left = ram - size.expected_bytes
    return Promise(hopeless, cpu_of(view), left < 0, order, files, (-left if spread else left) // GIB)


def _most(free: Sequence[int | None], ram: int, options: EngineOptions) -> int:
    """What one model could have at most: all GPUs or the RAM, and both only if its layers are divided."""
    on_gpus = sum(one or 0 for one in free)
    return on_gpus + ram if options.gpu_layers is not None else max(on_gpus, ram)


def too_large(view: NodeView, size: Size) -> str:
    """Why a hopeless node is that."""
    free, ram = _free(view)
    gpus = f"{gib(sum(one or 0 for one in free))} on all GPUs and " if free else ""
    return f"it needs {gib(size.least_bytes)} at least; {gpus}{gib(ram)} of RAM is all that is free here"


def _place(
    cards: Sequence[int], integrated: Sequence[int], expected: int, spread: bool
) -> tuple[int, bool, int] | None:
    """The kind of device that could take it, whether only several together could, and what is left."""
    for device, sizes in ((CARD, cards), (INTEGRATED, integrated)):
        enough = [free - expected for free in sizes if free >= expected]
        if enough:
            return device, False, -max(enough) if spread else min(enough)
        if sizes and sum(sizes) >= expected:
            return device, True, sum(sizes) - expected
    return None


def _free(view: NodeView) -> tuple[list[int | None], int]:
    """What could be free on each GPU and of RAM: never less than the budgets, which look closer.

    None is a GPU whose size only the engine knows.
    """
    usage, host = view.usage, view.snapshot.host
    claimed: dict[str, int] = dict(usage.claimed) if usage is not None else {}
    for claim in view.outstanding.claims:
        claimed[claim.device] = claimed.get(claim.device, 0) + claim.size_bytes
    available = host.memory_available_bytes if usage is None else usage.memory_available_bytes
    ram = max(0, available - claimed.get(RAM, 0))
    figures = {} if usage is None else {gpu_key(live): live for live in usage.gpus}
    free: list[int | None] = []
    for gpu in view.snapshot.detection.gpus:
        key = gpu_key(gpu)
        own = _own(gpu, figures.get(key))
        if is_integrated(gpu):
            free.append(max(0, (own or 0) - claimed.get(key, 0)) + ram)
        else:
            free.append(None if own is None else max(0, own - claimed.get(key, 0)))
    return free, ram


def _own(gpu: GPUInfo, live: GPUUsage | None) -> int | None:
    if live is not None and live.memory_free_bytes is not None:
        return live.memory_free_bytes
    used = 0 if live is None else live.memory_used_bytes or 0
    return None if gpu.memory_total_bytes is None else max(0, gpu.memory_total_bytes - used)
