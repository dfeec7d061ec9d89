"""Memory that a plan has claimed and the device does not show as used yet."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from xgen_ray.hardware.types import GPUInfo, GPUUsage
from xgen_ray.placement.types import Plan
from xgen_ray.serving.state import Inventory


def with_reservations(inventory: Inventory, loading: Iterable[Plan]) -> Inventory:
    """The inventory less what the plans that are still loading will take.

    A plan over several GPUs is charged to each in equal parts. Free memory never goes below zero.
    """
    usage = inventory.usage
    plans = list(loading)
    if usage is None or not plans:
        return inventory
    claimed: Counter[str] = Counter()
    host = 0
    for plan in plans:
        host += plan.footprint.host_bytes
        for gpu in plan.options.gpus:
            claimed[_key(gpu)] += plan.footprint.gpu_bytes // len(plan.options.gpus)
    gpus = tuple(
        replace(gpu, memory_free_bytes=max(0, gpu.memory_free_bytes - claimed[_key(gpu)]))
        if gpu.memory_free_bytes is not None
        else gpu
        for gpu in usage.gpus
    )
    available = max(0, usage.memory_available_bytes - host)
    return replace(inventory, usage=replace(usage, gpus=gpus, memory_available_bytes=available))


def _key(gpu: GPUInfo | GPUUsage) -> str:
    return gpu.uuid or gpu.pci_bus_id or f"index {gpu.device_index}"
