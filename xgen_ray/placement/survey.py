"""What each backend finds on a node: the engine's word and the hardware's merged, and its GPUs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from xgen_ray.hardware.types import NodeSnapshot
from xgen_ray.placement.devices import UsableGPU, usable_gpus
from xgen_ray.placement.policy import PlacementPolicy
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Backend, BackendRow, BackendStatus

_UNSEEN = "nobody has looked for it on this node"


@dataclass(frozen=True, slots=True)
class Found:
    """One backend on one node: whether it can start there, why (not), and the GPUs that it can use."""

    status: BackendStatus
    gpus: tuple[UsableGPU, ...] = ()


def survey(
    snapshot: NodeSnapshot, statuses: Sequence[BackendStatus], policy: PlacementPolicy
) -> Mapping[Backend, Found]:
    """Every backend, in the order of the table. ``statuses`` come from discovery, in any order.

    Snapshot and statuses change seldom and are asked about at every decision: the last few thousand
    answers are kept.
    """
    return _survey(snapshot, tuple(statuses), policy.vllm_rocm_gfx, policy.vllm_cuda_capability)


def has_hardware(row: BackendRow, snapshot: NodeSnapshot) -> bool:
    return not row.needs_gpu or any(gpu.gpu_type in row.gpu_types for gpu in snapshot.detection.gpus)


@lru_cache(maxsize=4096)
def _survey(
    snapshot: NodeSnapshot,
    statuses: tuple[BackendStatus, ...],
    rocm_gfx: frozenset[str],
    capability: tuple[int, int],
) -> Mapping[Backend, Found]:
    policy = PlacementPolicy(vllm_rocm_gfx=rocm_gfx, vllm_cuda_capability=capability)
    known = _by_backend(statuses)
    return MappingProxyType(
        {
            backend: _with_hardware(
                row, known.get(backend, BackendStatus(backend, False, _UNSEEN)), snapshot, policy
            )
            for backend, row in BACKENDS.items()
        }
    )


def _by_backend(statuses: Sequence[BackendStatus]) -> Mapping[Backend, BackendStatus]:
    """One status per backend whatever the order: of two, the one that can start."""
    ranked = sorted(statuses, key=lambda status: (status.available, status.command, status.reason))
    return {status.backend: status for status in ranked}


def _with_hardware(
    row: BackendRow, status: BackendStatus, snapshot: NodeSnapshot, policy: PlacementPolicy
) -> Found:
    if not row.needs_gpu:
        return Found(status)
    if not has_hardware(row, snapshot):
        kinds = " or ".join(sorted(kind.value for kind in row.gpu_types if kind.value != "unknown"))
        reason = f"no {kinds} GPU on this node (the engine: {status.reason})"
        return Found(replace(status, available=False, reason=reason, devices=()))
    if not status.available:
        return Found(status)
    usable, reasons = usable_gpus(row, snapshot.detection.gpus, status.devices, policy)
    if not usable:
        return Found(replace(status, available=False, reason="; ".join(reasons), devices=()))
    devices = tuple(item.device for item in usable if item.device is not None)
    return Found(replace(status, devices=devices), usable)
