"""What a plan takes of each device, and a node's figures with what has been promised taken into account."""

from collections import Counter
from dataclasses import dataclass, replace

from xgen_ray.hardware.types import GPUInfo, GPUType, GPUUsage, NodeSnapshot, NodeUsage
from xgen_ray.placement.footprint import layers_on_gpu, per_gpu_bytes
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import BackendRow, Engine, GPUNeed, Plan

# The key of the host's memory.
RAM = "ram"

# These have no memory of their own at all, whatever total they report.
NO_MEMORY_OF_ITS_OWN = frozenset({GPUType.NVIDIA, GPUType.APPLE_MPS})


@dataclass(frozen=True, slots=True)
class Claim:
    """Memory of one device for one model. ``exclusive``: no other model may use the device meanwhile."""

    device: str
    size_bytes: int
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What leases have been promised and the live figures do not show yet, and the CPU threads that all
    leases have together (busy threads show in no figure).
    """

    claims: tuple[Claim, ...] = ()
    threads: int = 0


def gpu_key(gpu: GPUInfo | GPUUsage) -> str:
    """What a GPU is called in claims: its UUID, else its PCI address, else its index.

    Slices of one card share address and index, so only their UUIDs tell them apart.
    """
    return gpu.uuid or gpu.pci_bus_id or f"index {gpu.device_index}"


def claims_of(plan: Plan) -> tuple[Claim, ...]:
    """One claim per GPU in the plan's order, then one on the RAM.

    What an integrated GPU takes of the host's RAM is in both its own claim, which is of all that the GPU
    may use, and in the RAM's, which is of the memory itself.
    """
    row, gpus = BACKENDS[plan.backend], plan.options.gpus
    needs = plan.gpu_needs if len(plan.gpu_needs) == len(gpus) else _needs_by_equal_parts(plan)
    whole = takes_whole_cards(row, plan.options.split_mode, len(gpus))
    on_gpus = [Claim(gpu_key(gpu), need.size_bytes, whole) for gpu, need in zip(gpus, needs, strict=True)]
    in_ram = plan.footprint.host_bytes + sum(need.in_ram_bytes for need in needs)
    return (*on_gpus, Claim(RAM, in_ram))


def threads_of(plan: Plan) -> int:
    """CPU threads that compute for the plan: none when all layers lie on GPUs, as threads only feed them."""
    row, options = BACKENDS[plan.backend], plan.options
    if options.gpus and (row.engine is Engine.VLLM or layers_on_gpu(plan.facts, options) >= 1):
        return 0
    return options.threads


def takes_whole_cards(row: BackendRow, split_mode: str | None, count: int) -> bool:
    """Whether a model over ``count`` GPUs must have each to itself.

    Where every layer is cut among the GPUs, all wait for the slowest: a neighbour on one slows all.
    """
    return count > 1 and (row.engine is Engine.VLLM or split_mode in ("row", "tensor"))


def with_outstanding(usage: NodeUsage | None, snapshot: NodeSnapshot, outstanding: Outstanding) -> NodeUsage:
    """``usage`` with ``outstanding`` added to what is claimed; the figures themselves stay as measured.

    Without live figures, those of the snapshot are the ones to start from.
    """
    known = usage or NodeUsage(
        gpus=(),
        memory_available_bytes=snapshot.host.memory_available_bytes,
        cpu_percent=None,
        taken_at=snapshot.taken_at,
    )
    claimed = Counter(dict(known.claimed))
    for claim in outstanding.claims:
        claimed[claim.device] += claim.size_bytes
    return replace(known, claimed=tuple(sorted(claimed.items())))


def claimed_bytes(usage: NodeUsage | None, device: str) -> int:
    """What is promised of ``device`` beyond what the figures show."""
    return 0 if usage is None else sum(size for key, size in usage.claimed if key == device)


def _needs_by_equal_parts(plan: Plan) -> tuple[GPUNeed, ...]:
    """The needs of a plan that does not carry them, such as one from an older record."""
    gpus = plan.options.gpus
    if not gpus:
        return ()
    sizes = per_gpu_bytes(plan.facts, plan.footprint, [1 / len(gpus)] * len(gpus))
    return tuple(
        GPUNeed(size, max(0, size - _own_memory(gpu)) if is_integrated(gpu) else 0)
        for gpu, size in zip(gpus, sizes, strict=True)
    )


def _own_memory(gpu: GPUInfo) -> int:
    return 0 if gpu.gpu_type in NO_MEMORY_OF_ITS_OWN else gpu.memory_total_bytes or 0
