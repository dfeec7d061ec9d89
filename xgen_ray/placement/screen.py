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
from xgen_ray.placement.survey import Kind, Means
from xgen_ray.placement.types import Backend, Engine, EngineOptions
from xgen_ray.placement.views import NodeView

UNTAGGED = (
    "this node was started by plain `ray start`, so only its CPU is used; start it with `xgen-ray node` "
    "to use its GPUs"
)
_WITHOUT_GPU = {
    model_format: tuple(backend for backend in able if not BACKENDS[backend].needs_gpu)
    for model_format, able in PREFERENCE.items()
}


def filtered(view: NodeView, facts: ModelFacts, kind: Kind, on: Collection[str] | None) -> tuple[str, ...]:
    """Why the node is out of the question for this model; empty when it is not. ``kind`` is the node's."""
    if on is not None and view.name not in on and view.node_id not in on:
        return (f"the request names other nodes: {', '.join(sorted(on))}",)
    if not view.schedulable:
        return (view.reason or "it takes no models now",)
    reasons = []
    if view.has_files is False and not view.can_fetch:
        reasons.append(f"{facts.path} is not on this node and cannot be fetched; copy it there")
    able = PREFERENCE[facts.format] if view.tagged else _WITHOUT_GPU[facts.format]
    if not any(kind.means[backend].status.available for backend in able):
        if not view.tagged:
            reasons.append(UNTAGGED)
        reasons += [f"{backend}: {kind.means[backend].status.reason}" for backend in able]
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


@dataclass(frozen=True, slots=True)
class Screen:
    """The model as every node is held against it. ``gpu_rows`` and ``cpu_rows`` are the backends that may
    be used, each with its place in the order of preference: the same for all nodes, and so worked out once.
    """

    options: EngineOptions
    size: Size
    spread: bool
    gpu_rows: tuple[tuple[int, Backend], ...]
    cpu_rows: tuple[tuple[int, Backend], ...]

    def promise(self, view: NodeView, kind: Kind) -> Promise:
        """``kind`` is the node's."""
        free, ram = _free(view)
        size = self.size
        hopeless = size.least_bytes > _most(free, ram, self.options) and None not in free
        files = FETCH_ORDER[view.has_files]
        for order, backend in self.gpu_rows if view.tagged else ():
            on = kind.means[backend]
            if on.status.available:
                place = _place(on, free, size.expected_bytes, self.spread)
                if place is not None:
                    device, tight, room = place
                    return Promise(hopeless, device, tight, order, files, room // GIB)
                break
        available = (order for order, backend in self.cpu_rows if kind.means[backend].status.available)
        left = ram - size.expected_bytes
        room = (-left if self.spread else left) // GIB
        return Promise(hopeless, cpu_of(view), left < 0, next(available, len(Backend)), files, room)

    def too_large(self, view: NodeView) -> str:
        """Why a hopeless node is that."""
        free, ram = _free(view)
        gpus = f"{gib(sum(filter(None, free)))} on all GPUs and " if free else ""
        least = gib(self.size.least_bytes)
        return f"it needs {least} at least; {gpus}{gib(ram)} of RAM is all that is free here"


def screen(facts: ModelFacts, options: EngineOptions, size: Size, *, spread: bool) -> Screen:
    asked = [
        (order, backend)
        for order, backend in enumerate(PREFERENCE[facts.format])
        if options.backend in (None, backend)
    ]
    to_gpus = options.gpus != () and options.gpu_layers != 0
    return Screen(
        options,
        size,
        spread,
        gpu_rows=tuple(item for item in asked if to_gpus and BACKENDS[item[1]].needs_gpu),
        cpu_rows=tuple(item for item in asked if not BACKENDS[item[1]].needs_gpu),
    )


def _most(free: Sequence[int | None], ram: int, options: EngineOptions) -> int:
    """What one model could have at most: all GPUs or the RAM, and both only if its layers are divided."""
    on_gpus = sum(filter(None, free))
    return on_gpus + ram if options.gpu_layers is not None else max(on_gpus, ram)


def _place(
    means: Means, free: Sequence[int | None], expected: int, spread: bool
) -> tuple[int, bool, int] | None:
    """The kind of device that could take it, whether only several together could, and what is left."""
    for device, positions in ((CARD, means.cards), (INTEGRATED, means.integrated)):
        sizes = [free[position] or 0 for position in positions]
        enough = [size for size in sizes if size >= expected]
        if enough:
            return device, False, expected - max(enough) if spread else min(enough) - expected
        if sizes and sum(sizes) >= expected:
            return device, True, sum(sizes) - expected
    return None


def _free(view: NodeView) -> tuple[list[int | None], int]:
    """What could be free on each GPU and of RAM: never less than the budgets, which look closer.

    None is a GPU whose size only the engine knows.
    """
    usage, host = view.usage, view.snapshot.host
    claimed = _claimed(view)
    available = host.memory_available_bytes if usage is None else usage.memory_available_bytes
    ram = max(0, available - claimed.get(RAM, 0))
    figures = {} if usage is None else {live.uuid or gpu_key(live): live for live in usage.gpus}
    free: list[int | None] = []
    for gpu in view.snapshot.detection.gpus:
        key = gpu.uuid or gpu_key(gpu)
        live = figures.get(key)
        own = None if live is None else live.memory_free_bytes
        if own is None:
            own = _own(gpu, live)
        if own is not None and claimed:
            own = max(0, own - claimed.get(key, 0))
        free.append((own or 0) + ram if is_integrated(gpu) else own)
    return free, ram


def _claimed(view: NodeView) -> Mapping[str, int]:
    """What has been promised of each device and no figure shows yet."""
    claimed: dict[str, int] = dict(view.usage.claimed) if view.usage is not None else {}
    for claim in view.outstanding.claims:
        claimed[claim.device] = claimed.get(claim.device, 0) + claim.size_bytes
    return claimed


def _own(gpu: GPUInfo, live: GPUUsage | None) -> int | None:
    """What is free of a GPU's own memory, where no figure says that itself."""
    used = 0 if live is None else live.memory_used_bytes or 0
    return None if gpu.memory_total_bytes is None else max(0, gpu.memory_total_bytes - used)
