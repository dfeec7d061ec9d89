"""One node as a decision about the fleet sees it, and what changes when a model comes or goes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from xgen_ray.hardware.types import GPUInfo, GPUUsage, NodeSnapshot, NodeUsage
from xgen_ray.placement.claims import (
    RAM,
    Claim,
    Outstanding,
    claims_of,
    gpu_key,
    threads_of,
    with_outstanding,
)
from xgen_ray.placement.types import BackendStatus, Plan


@dataclass(frozen=True, slots=True)
class IdleModel:
    """A model that nobody has asked anything for ``idle_s``, and what it holds on this node."""

    name: str
    idle_s: float
    claims: tuple[Claim, ...]
    threads: int = 0


@dataclass(frozen=True, slots=True)
class NodeView:
    """Everything that a decision needs of a node.

    ``outstanding`` is what ``usage`` does not show yet. ``taken`` are the keys of GPUs that one model has
    whole; ``leased`` those of all GPUs with a lease, once per lease. ``has_files`` is None when nobody has
    looked. A node that is not ``tagged`` was started by plain ``ray start``: only its CPU is used.
    ``reason`` says why a node is not ``schedulable``. ``node_type`` is what the autoscaler calls its kind.
    """

    node_id: str
    name: str
    snapshot: NodeSnapshot
    statuses: tuple[BackendStatus, ...]
    usage: NodeUsage | None
    outstanding: Outstanding
    taken: frozenset[str]
    has_files: bool | None
    can_fetch: bool
    tagged: bool
    schedulable: bool = True
    reason: str = ""
    idle_models: tuple[IdleModel, ...] = ()
    leased: tuple[str, ...] = ()
    node_type: str = ""

    def figures(self) -> NodeUsage:
        """The live figures with everything that has been promised."""
        return with_outstanding(self.usage, self.snapshot, self.outstanding)

    def leased_gpus(self) -> frozenset[str]:
        """The GPUs that some model uses, or is about to."""
        promised = {claim.device for claim in self.outstanding.claims if claim.device != RAM}
        return frozenset(self.leased) | promised


def with_plan(view: NodeView, plan: Plan) -> NodeView:
    """The node once ``plan`` has its leases there."""
    claims = claims_of(plan)
    gpus = tuple(claim.device for claim in claims if claim.device != RAM)
    outstanding = Outstanding(view.outstanding.claims + claims, view.outstanding.threads + threads_of(plan))
    return replace(
        view,
        outstanding=outstanding,
        taken=view.taken | {claim.device for claim in claims if claim.exclusive},
        leased=view.leased + gpus,
    )


def without_models(view: NodeView, idle: Sequence[IdleModel]) -> NodeView:
    """The node once the ``idle`` models are unloaded.

    A claim that is still outstanding is dropped; one that the figures show is given back to them, never
    beyond what the device has in all.
    """
    outstanding, leased = list(view.outstanding.claims), Counter(view.leased)
    freed: Counter[str] = Counter()
    released: set[str] = set()
    for claim in (claim for model in idle for claim in model.claims):
        if claim in outstanding:
            outstanding.remove(claim)
        else:
            freed[claim.device] += claim.size_bytes
        if claim.exclusive:
            released.add(claim.device)
        leased[claim.device] -= 1
    threads = max(0, view.outstanding.threads - sum(model.threads for model in idle))
    return replace(
        view,
        usage=_freed(view.usage, view.snapshot, freed),
        outstanding=Outstanding(tuple(outstanding), threads),
        taken=view.taken - released,
        leased=tuple(leased.elements()),
        idle_models=tuple(item for item in view.idle_models if item not in idle),
    )


def _freed(usage: NodeUsage | None, snapshot: NodeSnapshot, freed: Counter[str]) -> NodeUsage | None:
    # Without live figures every device counts as idle already, and the RAM is the snapshot's.
    known = usage or with_outstanding(None, snapshot, Outstanding())
    gpus = {gpu_key(gpu): gpu for gpu in snapshot.detection.gpus}
    available = min(known.memory_available_bytes + freed[RAM], snapshot.host.memory_total_bytes)
    figures = tuple(_given_back(live, gpus.get(gpu_key(live)), freed[gpu_key(live)]) for live in known.gpus)
    return replace(known, gpus=figures, memory_available_bytes=available)


def _given_back(live: GPUUsage, gpu: GPUInfo | None, size: int) -> GPUUsage:
    if gpu is None or not size:
        return live
    # What an integrated GPU has in RAM goes first: the rest is in its own memory.
    shared = live.shared_memory_used_bytes
    from_shared = min(shared or 0, size)
    own = size - from_shared
    used, free = live.memory_used_bytes, live.memory_free_bytes
    if free is not None:
        free = (
            free + own
            if gpu.memory_total_bytes is None
            else max(free, min(free + own, gpu.memory_total_bytes))
        )
    return replace(
        live,
        memory_used_bytes=None if used is None else max(0, used - own),
        memory_free_bytes=free,
        shared_memory_used_bytes=None if shared is None else shared - from_shared,
    )
