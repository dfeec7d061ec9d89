"""Which device of an engine's list is which GPU of the node, and which GPUs a backend can use."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from xgen_ray.hardware.types import GPUInfo, GPUType
from xgen_ray.placement.policy import PlacementPolicy
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.rows import DEVICE_PREFIX_ALIASES
from xgen_ray.placement.types import BackendRow, DeviceAPI, Engine, EngineDevice

_VENDOR_WORDS: Final = MappingProxyType(
    {
        "nvidia": ("nvidia", "geforce", "quadro", "tesla", "rtx", "gtx"),
        "amd": ("amd", "radeon", "radv", "instinct", "ryzen", "firepro"),
        "apple": ("apple",),
        "intel": ("intel", "arc", "iris"),
    }
)
# RADV names a chip by its code: "AMD Radeon RX 7900 XTX (RADV NAVI31)". Newer chips are named by their gfx.
_CODE_NAMES: Final = MappingProxyType(
    {
        "navi10": "gfx1010",
        "navi12": "gfx1011",
        "navi14": "gfx1012",
        "navi21": "gfx1030",
        "navi22": "gfx1031",
        "navi23": "gfx1032",
        "vangogh": "gfx1033",
        "navi24": "gfx1034",
        "rembrandt": "gfx1035",
        "raphael_mendocino": "gfx1036",
        "navi31": "gfx1100",
        "navi32": "gfx1101",
        "navi33": "gfx1102",
        "vega10": "gfx900",
        "vega20": "gfx906",
        "renoir": "gfx90c",
    }
)
_PCI = re.compile(r"\b(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b")
# Words that say what a device is, not which.
_COMMON = frozenset(word for words in _VENDOR_WORDS.values() for word in words) | {
    "corporation",
    "graphics",
    "gpu",
}


@dataclass(frozen=True, slots=True)
class UsableGPU:
    """A GPU that a backend can use. ``position`` is its place in the node's list; ``device`` is None for
    an engine that lists no devices and takes indices instead.
    """

    position: int
    gpu: GPUInfo
    device: EngineDevice | None = None


def usable_gpus(
    row: BackendRow, gpus: Sequence[GPUInfo], devices: Sequence[EngineDevice], policy: PlacementPolicy
) -> tuple[tuple[UsableGPU, ...], tuple[str, ...]]:
    """The GPUs that ``row`` can use, and for each of the others why not."""
    usable, why_not = sorted_out(row, gpus, devices, policy)
    return usable, tuple(f"{gpus[place].device_name}: {reason}" for place, reason in why_not.items())


def sorted_out(
    row: BackendRow, gpus: Sequence[GPUInfo], devices: Sequence[EngineDevice], policy: PlacementPolicy
) -> tuple[tuple[UsableGPU, ...], Mapping[int, str]]:
    """The GPUs that ``row`` can use, and by the position of each of the others why not."""
    kept: list[tuple[int, GPUInfo]] = []
    why_not: dict[int, str] = {}
    for position, gpu in enumerate(gpus):
        reason = unsupported(row, gpu, policy)
        if reason is None:
            kept.append((position, gpu))
        else:
            why_not[position] = reason
    if row.engine is Engine.VLLM:
        return tuple(UsableGPU(position, gpu) for position, gpu in kept), why_not
    own = [device for device in devices if _of_row(row, device)]
    found = match(kept, own)
    if own and row.device_api is DeviceAPI.CUDA and any(gpu.mig_profile is not None for _, gpu in kept):
        # Where CUDA sees a MIG slice it lists that alone. Any GPU is the first of a process that is given it.
        unlisted = {position: EngineDevice(own[0].name, gpu.device_name) for position, gpu in kept}
        found = {**unlisted, **found}
    usable = []
    for position, gpu in kept:
        if position in found:
            usable.append(UsableGPU(position, gpu, found[position]))
        else:
            listed = ", ".join(device.description for device in devices) or "none"
            why_not[position] = f"the engine does not list it (it lists: {listed})"
    return tuple(usable), why_not


def unsupported(row: BackendRow, gpu: GPUInfo, policy: PlacementPolicy) -> str | None:
    """Why this kind of GPU is none for ``row``, or None if it is one."""
    if gpu.gpu_type not in row.gpu_types:
        return f"{row.backend} is not for {gpu.gpu_type} GPUs"
    if row.engine is not Engine.VLLM:
        return None
    if row.device_api is DeviceAPI.ROCM and gpu.gfx_version not in policy.vllm_rocm_gfx:
        known = ", ".join(sorted(policy.vllm_rocm_gfx))
        gfx = gpu.gfx_version or "a GPU of unknown gfx id"
        return f"vLLM's ROCm build does not support {gfx} (it supports {known})"
    capability = _capability(gpu)
    if (
        row.device_api is DeviceAPI.CUDA
        and capability is not None
        and capability < policy.vllm_cuda_capability
    ):
        least = ".".join(map(str, policy.vllm_cuda_capability))
        return f"vLLM needs compute capability {least} or higher; this GPU has {gpu.compute_capability}"
    return None


def match(gpus: Sequence[tuple[int, GPUInfo]], devices: Sequence[EngineDevice]) -> dict[int, EngineDevice]:
    """Pair GPUs, given with their positions, with an engine's devices, each at most once.

    By address if the engine prints one, else by chip, by name and by memory; among equals in order, which
    is right because an engine and a driver both list equal cards by address.
    """
    pairs = []
    for position, gpu in gpus:
        for order, device in enumerate(devices):
            score = _likeness(gpu, device)
            if score is not None:
                pairs.append((-score, position, order))
    found: dict[int, EngineDevice] = {}
    taken: set[int] = set()
    for _, position, order in sorted(pairs):
        if position not in found and order not in taken:
            found[position] = devices[order]
            taken.add(order)
    return found


def _likeness(gpu: GPUInfo, device: EngineDevice) -> float | None:
    """How sure it is that both are one device; None when they cannot be."""
    name, description = gpu.device_name.lower(), device.description.lower()
    vendor, other = _vendor(gpu), _vendor_of_words(description)
    if vendor is not None and other is not None and vendor != other:
        return None
    score = 0.0
    address = _PCI.search(description)
    if address is not None and gpu.pci_bus_id is not None:
        # Bus, device and function: not every engine prints the domain.
        if gpu.pci_bus_id.lower()[-7:] != address.group()[-7:]:
            return None
        score += 10.0
    chip = _chip(description)
    if chip is not None and gpu.gfx_version is not None:
        if chip != gpu.gfx_version:
            return None
        score += 4.0
    mine, theirs = _words(name), _words(description)
    if (
        chip is None
        and address is None
        and _models(mine)
        and _models(theirs)
        and not _models(mine) & _models(theirs)
    ):
        return None
    if mine and theirs:
        score += 2.0 * len(mine & theirs) / len(mine | theirs)
    if gpu.memory_total_bytes and device.memory_total_bytes and not is_integrated(gpu):
        sizes = sorted((gpu.memory_total_bytes, device.memory_total_bytes))
        score += sizes[0] / sizes[1]
    return round(score, 2)


def _of_row(row: BackendRow, device: EngineDevice) -> bool:
    if row.device_prefix is None:
        return True
    names = DEVICE_PREFIX_ALIASES.get(row.device_prefix, (row.device_prefix,))
    return device.name.lower().startswith(tuple(name.lower() for name in names))


def _vendor(gpu: GPUInfo) -> str | None:
    known = {
        GPUType.NVIDIA: "nvidia",
        GPUType.AMD_RDNA: "amd",
        GPUType.AMD_CDNA: "amd",
        GPUType.APPLE_MPS: "apple",
    }
    if gpu.gpu_type in known:
        return known[gpu.gpu_type]
    return "amd" if gpu.gfx_version else _vendor_of_words(gpu.device_name.lower())


@lru_cache(maxsize=1024)
def _vendor_of_words(text: str) -> str | None:
    words = set(re.findall(r"[a-z]+", text))
    return next((vendor for vendor, marks in _VENDOR_WORDS.items() if words & set(marks)), None)


@lru_cache(maxsize=1024)
def _chip(description: str) -> str | None:
    gfx = re.search(r"\bgfx[0-9a-f]{3,4}\b", description)
    if gfx is not None:
        return gfx.group()
    return next(
        (_CODE_NAMES[word] for word in re.findall(r"[a-z0-9_]+", description) if word in _CODE_NAMES), None
    )


@lru_cache(maxsize=1024)
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text)) - _COMMON


@lru_cache(maxsize=1024)
def _models(words: frozenset[str]) -> frozenset[str]:
    """Words that name a model: 7900, 4090, h100, mi300x, 8060s; not a size or a gfx id."""
    return frozenset(
        word
        for word in words
        if re.fullmatch(r"[a-z]{0,3}\d{3,4}[a-z]{0,2}", word)
        and not word.startswith("gfx")
        and not word.endswith("gb")
    )


def _capability(gpu: GPUInfo) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", gpu.compute_capability or "")
    return (int(found[1]), int(found[2])) if found else None
