"""Which of the nodes that can have a model is best for it, as an order with a sentence for each node."""

from dataclasses import dataclass, field
from typing import Final

from xgen_ray.placement.budget import host_budget
from xgen_ray.placement.claims import RAM, claims_of
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.resolve import OVERSUBSCRIBED
from xgen_ray.placement.rows import preference
from xgen_ray.placement.sizes import GIB, gib
from xgen_ray.placement.types import Plan
from xgen_ray.placement.views import NodeView
from xgen_ray.placement.weigh import MADE_SMALLER

CARD: Final = 0
INTEGRATED: Final = 1
CPU: Final = 2
CPU_BESIDE_GPUS: Final = 3
_FILES: Final = {
    True: "the files are here",
    None: "nobody has looked for the files",
    False: "must fetch the files",
}
FETCH_ORDER: Final = {True: 0, None: 1, False: 2}


@dataclass(frozen=True, slots=True, order=True)
class Score:
    """Less is better, field by field in this order; ``text`` says the same in a sentence.

    ``device``: a card, an integrated GPU, the CPU of a node without GPUs, the CPU of one with GPUs, whose
    RAM and cores they need. ``compromises``: made smaller to fit, or more busy threads than cores.
    ``gpus``: how many are used. ``backend``: its place in the format's order. ``files``: here, not known, to
    be fetched. ``replicas``: of this same plan here already (only to spread). ``room``: GiB left where the
    model lies, less first to pack and more first to spread. ``load``: how busy those devices are, in
    quarters.
    """

    device: int
    compromises: int
    gpus: int
    backend: int
    files: int
    replicas: int
    room: int
    load: int
    text: str = field(compare=False)


def score(view: NodeView, plan: Plan, *, spread: bool, replicas: int) -> Score:
    """``replicas`` of the same plan have been given to this node already."""
    gpus = plan.options.gpus
    integrated = any(is_integrated(gpu) for gpu in gpus)
    compromises = [warning for warning in plan.warnings if warning.startswith((MADE_SMALLER, OVERSUBSCRIBED))]
    left, load = room_left(view, plan), _load(view, plan)
    where = ", ".join(gpu.device_name for gpu in gpus) or "the CPU"
    words = [
        f"{plan.backend} on {where}",
        *(warning.split(":")[0] for warning in compromises),
        _FILES[view.has_files],
        f"{gib(left)} left there",
        *([f"{replicas} replica(s) here already"] if replicas else []),
        *([f"{load:.0%} busy"] if load is not None else []),
    ]
    return Score(
        device=(INTEGRATED if integrated else CARD) if gpus else cpu_of(view),
        compromises=len(compromises),
        gpus=len(gpus),
        backend=preference(plan.facts.format).index(plan.backend),
        files=FETCH_ORDER[view.has_files],
        replicas=replicas if spread else 0,
        room=(-left if spread else left) // GIB,
        load=int(4 * (load or 0.0)),
        text="; ".join(words),
    )


def cpu_of(view: NodeView) -> int:
    return CPU_BESIDE_GPUS if view.snapshot.detection.gpus else CPU


def room_left(view: NodeView, plan: Plan) -> int:
    """What is free where the model lies, GPUs or RAM, once it has its part."""
    if plan.options.gpus:
        return sum((need.free_bytes or need.size_bytes) - need.size_bytes for need in plan.gpu_needs)
    ram = next(claim.size_bytes for claim in claims_of(plan) if claim.device == RAM)
    return max(0, host_budget(view.snapshot.host, view.figures()).free_bytes - ram)


def _load(view: NodeView, plan: Plan) -> float | None:
    """How busy the devices that the model would use are, from 0 to 1; None: not known."""
    usage = view.usage
    if plan.options.gpus:
        names = {gpu.uuid or gpu.pci_bus_id for gpu in plan.options.gpus}
        busy = [
            live.utilization_percent
            for live in (usage.gpus if usage else ())
            if (live.uuid or live.pci_bus_id) in names and live.utilization_percent is not None
        ]
        return max(busy) / 100 if busy else None
    leased = min(1.0, view.outstanding.threads / max(1, view.snapshot.host.cpu_count))
    percent = None if usage is None else usage.cpu_percent
    return leased if percent is None else max(leased, percent / 100)
