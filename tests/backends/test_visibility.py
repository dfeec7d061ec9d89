import pytest

from xgen_ray.backends.visibility import renumbered
from xgen_ray.placement.types import DeviceAPI


@pytest.mark.parametrize(
    ("api", "prefix", "listed", "named"),
    [
        (DeviceAPI.CUDA, "CUDA", ("CUDA2", "CUDA5"), ("CUDA0", "CUDA1")),
        (DeviceAPI.ROCM, "ROCm", ("ROCm1",), ("ROCm0",)),
        (DeviceAPI.VULKAN, "Vulkan", ("Vulkan2",), ("Vulkan2",)),
        (DeviceAPI.METAL, "MTL", ("MTL0",), ("MTL0",)),
        (DeviceAPI.CUDA, "CUDA", (), ()),
    ],
)
def test_devices_are_called_as_the_limited_process_counts_them(
    api: DeviceAPI, prefix: str, listed: tuple[str, ...], named: tuple[str, ...]
) -> None:
    assert renumbered(api, prefix, listed) == named
