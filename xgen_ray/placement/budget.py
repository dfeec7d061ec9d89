"""How much memory a model may use on each device of a node, now, and why that much."""

from dataclasses import replace

from xgen_ray.hardware.types import GPUInfo, GPUUsage, HostFacts, NodeSnapshot, NodeUsage
from xgen_ray.placement.claims import NO_MEMORY_OF_ITS_OWN, RAM, claimed_bytes, gpu_key
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.sizes import GIB, gib
from xgen_ray.placement.types import DeviceBudget, EngineDevice

# Left to the system, the router and the replicas themselves: a node that swaps serves nobody.
_RESERVE_AT_LEAST = GIB
_RESERVE_PART = 0.05
# A card whose use is not known is taken as idle but for what its driver and a desktop hold.
_IDLE_PART = 0.95


def budgets(snapshot: NodeSnapshot, usage: NodeUsage | None = None) -> tuple[DeviceBudget, ...]:
    """One budget per GPU, in the snapshot's order, and the RAM's last.

    What an engine says of its devices is not in these: :func:`gpu_budget` takes that too.
    """
    host = host_budget(snapshot.host, usage)
    gpus = tuple(gpu_budget(gpu, host, usage=usage) for gpu in snapshot.detection.gpus)
    return (*gpus, host)


def reserve_bytes(host: HostFacts) -> int:
    """RAM that no model gets: 1 GiB or 5%, whichever is more."""
    return max(_RESERVE_AT_LEAST, int(host.memory_total_bytes * _RESERVE_PART))


def host_budget(host: HostFacts, usage: NodeUsage | None = None) -> DeviceBudget:
    available = host.memory_available_bytes if usage is None else usage.memory_available_bytes
    reserve, claimed = reserve_bytes(host), claimed_bytes(usage, RAM)
    promised = f" and {gib(claimed)} promised to other models" if claimed else ""
    return DeviceBudget(
        gpu=None,
        free_bytes=max(0, available - reserve - claimed),
        reason=f"{gib(available)} of RAM available, less {gib(reserve)} kept for the system{promised}",
        total_bytes=host.memory_total_bytes,
    )


def gpu_budget(
    gpu: GPUInfo,
    host: DeviceBudget,
    *,
    usage: NodeUsage | None = None,
    device: EngineDevice | None = None,
) -> DeviceBudget:
    """The budget of ``gpu``, and no more than the engine says of it as ``device``.

    The same APU has shown 6 GB to ROCm and 53 GB to Vulkan, so an engine's word is the last one.
    """
    live = _usage_of(gpu, usage)
    claimed = claimed_bytes(usage, gpu_key(gpu))
    if is_integrated(gpu):
        budget = _shared(gpu, host, live, claimed)
    else:
        budget = _less(_own(gpu, live, device), claimed)
    return budget if device is None else _capped(budget, live, device, claimed)


def at_most(budget: DeviceBudget, limit_bytes: int, reason: str) -> DeviceBudget:
    """``budget`` where an operator's row allows a model no more than ``limit_bytes``."""
    if limit_bytes >= budget.free_bytes:
        return budget
    own = budget.free_bytes - budget.shared_bytes
    return replace(
        budget,
        free_bytes=limit_bytes,
        shared_bytes=max(0, limit_bytes - own),
        reason=f"memory_bytes in the configuration's profiles allows a model at most {gib(limit_bytes)}: "
        f"{reason}; without that, {budget.reason}",
        limited=True,
    )


def _less(budget: DeviceBudget, claimed: int) -> DeviceBudget:
    if not claimed:
        return budget
    reason = f"{budget.reason}, less {gib(claimed)} promised to other models"
    return replace(budget, free_bytes=max(0, budget.free_bytes - claimed), reason=reason)


def _own(gpu: GPUInfo, live: GPUUsage | None, device: EngineDevice | None) -> DeviceBudget:
    total = gpu.memory_total_bytes
    if total is None and device is not None:
        total = device.memory_total_bytes
    if live is not None and live.memory_free_bytes is not None:
        free, reason = live.memory_free_bytes, f"{gib(live.memory_free_bytes)} free"
    elif total is None:
        free, reason = 0, "neither the driver nor the engine says how much memory it has"
    elif live is not None and live.memory_used_bytes is not None:
        free = max(0, total - live.memory_used_bytes)
        reason = f"{gib(total)} less {gib(live.memory_used_bytes)} in use"
    else:
        free, reason = int(total * _IDLE_PART), f"{_IDLE_PART:.0%} of {gib(total)}; its use is not known"
    return DeviceBudget(gpu, free, reason, total_bytes=total)


def _shared(gpu: GPUInfo, host: DeviceBudget, live: GPUUsage | None, claimed: int) -> DeviceBudget:
    """A GPU on the host's RAM: its carve-out, and of the rest no more than the system can spare.

    Claims fill the carve-out first; what lies in RAM beyond it is off ``host`` already, so here it only
    counts against the driver's limit.
    """
    if gpu.gpu_type in NO_MEMORY_OF_ITS_OWN or gpu.memory_total_bytes is None:
        return DeviceBudget(
            gpu,
            host.free_bytes,
            f"unified memory: {host.reason}",
            host.total_bytes,
            shared_bytes=host.free_bytes,
        )
    carve_out = gpu.memory_total_bytes
    used = live.memory_used_bytes if live is not None else None
    if live is not None and live.memory_free_bytes is not None:
        own = live.memory_free_bytes
    else:
        own = int(carve_out * _IDLE_PART) if used is None else max(0, carve_out - used)
    shared_total = gpu.shared_memory_total_bytes or 0
    shared_used = (live.shared_memory_used_bytes or 0) if live is not None else 0
    spilled = max(0, claimed - own)
    own = max(0, own - claimed)
    shared_free = max(0, shared_total - shared_used - spilled)
    shared = min(shared_free, host.free_bytes)
    reason = f"{gib(own)} free of its own {gib(carve_out)}"
    if shared_total:
        limit = "the system's limit for it" if shared == shared_free else host.reason
        reason += f", and {gib(shared)} of RAM ({limit})"
    if claimed:
        reason += f", after {gib(claimed)} promised to other models"
    return DeviceBudget(gpu, own + shared, reason, total_bytes=carve_out + shared_total, shared_bytes=shared)


def _capped(budget: DeviceBudget, live: GPUUsage | None, device: EngineDevice, claimed: int) -> DeviceBudget:
    if live is None:
        # Both were asked about an idle node, or nobody knows better.
        cap = device.memory_free_bytes if device.memory_free_bytes is not None else device.memory_total_bytes
    else:
        # The engine was asked when the node started; what has been taken since is in the live figures.
        used = (live.memory_used_bytes or 0) + (live.shared_memory_used_bytes or 0)
        cap = None if device.memory_total_bytes is None else max(0, device.memory_total_bytes - used)
    cap = None if cap is None else max(0, cap - claimed)
    total = budget.total_bytes
    if device.memory_total_bytes is not None:
        total = device.memory_total_bytes if total is None else min(total, device.memory_total_bytes)
    if cap is None or cap >= budget.free_bytes:
        return DeviceBudget(budget.gpu, budget.free_bytes, budget.reason, total, budget.shared_bytes)
    own = budget.free_bytes - budget.shared_bytes
    return DeviceBudget(
        gpu=budget.gpu,
        free_bytes=cap,
        reason=f"the engine sees {gib(cap)} on {device.name}; {budget.reason}",
        total_bytes=total,
        shared_bytes=max(0, cap - own),
    )


def _usage_of(gpu: GPUInfo, usage: NodeUsage | None) -> GPUUsage | None:
    """The live figures of ``gpu``: by UUID, else by address, else by index if there is but one such."""
    if usage is None:
        return None
    if gpu.uuid is not None:
        for live in usage.gpus:
            if live.uuid == gpu.uuid:
                return live
    # Slices of one card share its address and index.
    if gpu.mig_profile is not None:
        return None
    if gpu.pci_bus_id is not None:
        for live in usage.gpus:
            if live.pci_bus_id == gpu.pci_bus_id:
                return live
    nameless = [
        live
        for live in usage.gpus
        if live.device_index == gpu.device_index
        and (live.uuid is None or gpu.uuid is None)
        and live.pci_bus_id is None
    ]
    return nameless[0] if len(nameless) == 1 else None
