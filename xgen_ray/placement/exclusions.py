"""Backends that must not run a model on a kind of node again, and which nodes are of that kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xgen_ray.hardware.types import GPUInfo, NodeSnapshot
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.estimates import model_key
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Backend


@dataclass(frozen=True, slots=True)
class Exclusion:
    """``backend`` failed on ``model`` (:func:`model_key`) where the node is of ``node_kind``."""

    backend: Backend
    node_kind: str
    reason: str
    model: str

    def is_like(self, other: "Exclusion") -> bool:
        """Whether both leave out the same, for whatever reason."""
        return (self.backend, self.node_kind, self.model) == (other.backend, other.node_kind, other.model)


def node_kind(snapshot: NodeSnapshot, backend: Backend) -> str:
    """The kinds of device that ``backend`` would use on a node: ``gfx1151``, ``cc8.9+gfx1100``, ``x86_64``.

    Two nodes of one kind can be expected to fail alike. How many devices there are makes no difference.
    """
    row = BACKENDS[backend]
    if not row.needs_gpu:
        return snapshot.host.machine
    kinds = {_kind(gpu) for gpu in snapshot.detection.gpus if gpu.gpu_type in row.gpu_types}
    return "+".join(sorted(kinds)) or "no GPU"


def exclusions_on(
    snapshot: NodeSnapshot, facts: ModelFacts, exclusions: Sequence[Exclusion]
) -> Mapping[Backend, str]:
    """The backends that are excluded for this model on this node, each with all its reasons."""
    if not exclusions:
        return {}
    key = model_key(facts)
    found: dict[Backend, list[str]] = {}
    for item in exclusions:
        if item.model == key and item.node_kind == node_kind(snapshot, item.backend):
            found.setdefault(item.backend, []).append(item.reason)
    return {backend: "; ".join(reasons) for backend, reasons in found.items()}


def _kind(gpu: GPUInfo) -> str:
    if gpu.gfx_version is not None:
        return gpu.gfx_version
    if gpu.compute_capability is not None:
        return f"cc{gpu.compute_capability}"
    return gpu.device_name
