"""What each backend finds on a node: the engine's word and the hardware's merged, and its GPUs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from xgen_ray.hardware.types import GPUInfo, NodeSnapshot
from xgen_ray.placement.devices import UsableGPU, sorted_out
from xgen_ray.placement.policy import PlacementPolicy
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Backend, BackendRow, BackendStatus, EngineDevice

_UNSEEN = "nobody has looked for it on this node"


@dataclass(frozen=True, slots=True)
class Found:
    """One backend on one node: whether it can start there, why (not), the GPUs that it can use, and why not
    the others (``unusable``, by position). Where it cannot start for another reason, it has looked at none.
    """

    status: BackendStatus
    gpus: tuple[UsableGPU, ...] = ()
    unusable: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Means:
    """The same for a whole kind of node. ``cards`` and ``integrated`` are the positions of the GPUs that
    it can use, and ``devices`` what the engine calls each; ``unusable`` says why not the others.
    """

    status: BackendStatus
    cards: tuple[int, ...] = ()
    integrated: tuple[int, ...] = ()
    devices: tuple[tuple[int, EngineDevice | None], ...] = ()
    unusable: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """All nodes whose GPUs and engines differ in nothing but their names: one object for all of them."""

    means: Mapping[Backend, Means]


def survey(
    snapshot: NodeSnapshot, statuses: Sequence[BackendStatus], policy: PlacementPolicy
) -> Mapping[Backend, Found]:
    """Every backend, in the order of the table. ``statuses`` come from discovery, in any order."""
    gpus = snapshot.detection.gpus
    return {
        backend: Found(
            means.status,
            tuple(UsableGPU(place, gpus[place], device) for place, device in means.devices),
            means.unusable,
        )
        for backend, means in kind_of(snapshot, statuses, policy).means.items()
    }


def kind_of(snapshot: NodeSnapshot, statuses: Sequence[BackendStatus], policy: PlacementPolicy) -> Kind:
    """What can be said of a node without its names and live figures.

    Snapshot and statuses change seldom and are asked about at every decision: the last few thousand
    answers are kept.
    """
    return _kind_of(_Asked(snapshot, tuple(statuses)), policy.vllm_rocm_gfx, policy.vllm_cuda_capability)


def has_hardware(row: BackendRow, snapshot: NodeSnapshot) -> bool:
    return _has_hardware(row, snapshot.detection.gpus)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A node as it was asked about. Only the names go into its hash: to hash all that is known of eight
    GPUs and nine backends takes longer than to look the answer up.
    """

    snapshot: NodeSnapshot
    statuses: tuple[BackendStatus, ...]

    def __hash__(self) -> int:
        names = [gpu.uuid or gpu.pci_bus_id for gpu in self.snapshot.detection.gpus]
        return hash((self.snapshot.host.hostname, self.snapshot.taken_at, *names))


@lru_cache(maxsize=4096)
def _kind_of(asked: _Asked, rocm_gfx: frozenset[str], capability: tuple[int, int]) -> Kind:
    nameless = tuple(
        replace(gpu, uuid=None, mig_parent_uuid=None, driver_version=None, notes=(), detected_by="")
        for gpu in asked.snapshot.detection.gpus
    )
    return _kind(nameless, asked.statuses, rocm_gfx, capability)


@lru_cache(maxsize=4096)
def _kind(
    gpus: tuple[GPUInfo, ...],
    statuses: tuple[BackendStatus, ...],
    rocm_gfx: frozenset[str],
    capability: tuple[int, int],
) -> Kind:
    policy = PlacementPolicy(vllm_rocm_gfx=rocm_gfx, vllm_cuda_capability=capability)
    known = _by_backend(statuses)
    means = {
        backend: _with_hardware(row, known.get(backend, BackendStatus(backend, False, _UNSEEN)), gpus, policy)
        for backend, row in BACKENDS.items()
    }
    return Kind(MappingProxyType(means))


def _by_backend(statuses: Sequence[BackendStatus]) -> Mapping[Backend, BackendStatus]:
    """One status per backend whatever the order: of two, the one that can start."""
    ranked = sorted(statuses, key=lambda status: (status.available, status.command, status.reason))
    return {status.backend: status for status in ranked}


def _has_hardware(row: BackendRow, gpus: Sequence[GPUInfo]) -> bool:
    return not row.needs_gpu or any(gpu.gpu_type in row.gpu_types for gpu in gpus)


def _with_hardware(
    row: BackendRow, status: BackendStatus, gpus: Sequence[GPUInfo], policy: PlacementPolicy
) -> Means:
    if not row.needs_gpu:
        return Means(status)
    if not _has_hardware(row, gpus):
        kinds = " or ".join(sorted(kind.value for kind in row.gpu_types if kind.value != "unknown"))
        reason = f"no {kinds} GPU on this node (the engine: {status.reason})"
        return Means(replace(status, available=False, reason=reason, devices=()))
    if not status.available:
        return Means(status)
    usable, why_not = sorted_out(row, gpus, status.devices, policy)
    unusable = tuple(why_not.items())
    if not usable:
        reason = "; ".join(f"{gpus[place].device_name}: {why}" for place, why in unusable)
        return Means(replace(status, available=False, reason=reason, devices=()), unusable=unusable)
    return Means(
        replace(status, devices=tuple(item.device for item in usable if item.device is not None)),
        cards=tuple(item.position for item in usable if not is_integrated(item.gpu)),
        integrated=tuple(item.position for item in usable if is_integrated(item.gpu)),
        devices=tuple((item.position, item.device) for item in usable),
        unusable=unusable,
    )
