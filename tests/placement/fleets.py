"""Node views to plan a fleet with, each in one call."""

from collections.abc import Sequence
from dataclasses import replace

from tests.placement.builders import all_there, host, node, usage
from xgen_ray.hardware.types import GPUInfo, HostFacts
from xgen_ray.placement import BackendStatus, IdleModel, NodeView, Outstanding


def view(
    name: str,
    *gpus: GPUInfo,
    on: HostFacts | None = None,
    free: Sequence[int | None] | None = None,
    statuses: Sequence[BackendStatus] | None = None,
    idle: Sequence[IdleModel] = (),
    has_files: bool | None = True,
    tagged: bool = True,
) -> NodeView:
    """A node whose GPUs have names of its own; ``free`` is what live figures show of each."""
    own = tuple(replace(gpu, uuid=f"{name}/{gpu.uuid}") for gpu in gpus)
    snapshot = node(*own, on=on or host())
    return NodeView(
        node_id=f"id-{name}",
        name=name,
        snapshot=snapshot,
        statuses=tuple(all_there(snapshot) if statuses is None else statuses),
        usage=None if free is None else usage(snapshot, free),
        outstanding=Outstanding(),
        taken=frozenset(),
        has_files=has_files,
        can_fetch=False,
        tagged=tagged,
        idle_models=tuple(idle),
    )
