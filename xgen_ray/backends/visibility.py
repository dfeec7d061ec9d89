"""Which devices an engine's process gets to see, as environment variables.

Everything not asked for is hidden: an engine that finds a spare GPU uses it, whoever holds its lease.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from xgen_ray.hardware.types import GPUInfo
from xgen_ray.placement.types import DeviceAPI

# CUDA and HIP stop reading their lists at the first index that does not exist. Vulkan's list is one of
# positions and may be empty.
_HIDDEN: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "CUDA_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "-1",
        "ROCR_VISIBLE_DEVICES": None,
        "GGML_VK_VISIBLE_DEVICES": "",
    }
)


def visibility(
    api: DeviceAPI,
    gpus: Sequence[GPUInfo],
    positions: Sequence[int] | None = None,
    *,
    cuda_by_index: bool = False,
) -> dict[str, str | None]:
    """Variables under which a process sees ``gpus`` through ``api`` and no other GPU. None: to be removed.

    Vulkan's variable takes ``positions`` among all devices of all drivers, which only the engine can tell
    (``vulkan_order``). Where they are not known, the variable is left as the node has it, and the engine is
    kept to its devices by their names alone.

    CUDA's variable takes UUIDs, which stay the same whatever else the node has. ``cuda_by_index`` is for
    engines that read numbers there: they get them wherever CUDA's are known.
    """
    variables = dict(_HIDDEN)
    # The order that the node's GPUs are numbered in; CUDA's own is by speed.
    variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if not gpus:
        return variables
    if api is DeviceAPI.CUDA:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(_cuda_name(gpu, cuda_by_index) for gpu in gpus)
    elif api is DeviceAPI.ROCM:
        variables["HIP_VISIBLE_DEVICES"] = ",".join(str(gpu.device_index) for gpu in gpus)
        # HIP heeds this one too where its own is not set, and Ray sets it.
        variables["CUDA_VISIBLE_DEVICES"] = None
    elif api is DeviceAPI.VULKAN and positions is not None:
        variables["GGML_VK_VISIBLE_DEVICES"] = ",".join(map(str, positions))
    elif api is DeviceAPI.VULKAN:
        del variables["GGML_VK_VISIBLE_DEVICES"]
    return variables


def _cuda_name(gpu: GPUInfo, by_index: bool) -> str:
    if by_index and gpu.cuda_index is not None:
        return str(gpu.cuda_index)
    return gpu.uuid or str(gpu.device_index)


def renumbered(
    api: DeviceAPI, prefix: str | None, devices: Sequence[str], positions: Sequence[int] | None = None
) -> tuple[str, ...]:
    """The engine's names of ``devices`` in a process that ``visibility`` was applied to.

    All count what is visible, from 0, in the order of the variable; the names that discovery saw count
    all. A Vulkan engine whose variable was left alone goes on to count those too.
    """
    limited = api in (DeviceAPI.CUDA, DeviceAPI.ROCM) or (api is DeviceAPI.VULKAN and positions is not None)
    if limited and prefix is not None:
        return tuple(f"{prefix}{position}" for position in range(len(devices)))
    return tuple(devices)
