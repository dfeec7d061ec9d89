"""The table of detectors that load a vendor's native code, and so run in processes of their own."""

from collections.abc import Callable
from dataclasses import dataclass

from xgen_ray.hardware import amd, nvidia, torch_gpus
from xgen_ray.hardware.codec import Processes, Usage
from xgen_ray.hardware.types import DetectorReport


@dataclass(frozen=True, slots=True)
class Detector:
    """One way of finding GPUs. ``detect`` never raises for what a machine may lack: its report says so.

    ``stands_in_for`` names the detector whose silence this one is asked after. ``read_usage`` gives live
    figures and the reason for those that are missing, ``read_processes`` the memory of every process; None
    where there is no such query.
    """

    name: str
    detect: Callable[[], DetectorReport]
    stands_in_for: str | None = None
    read_usage: Callable[[], Usage] | None = None
    read_processes: Callable[[], Processes] | None = None


DETECTORS: dict[str, Detector] = {
    detector.name: detector
    for detector in (
        Detector(
            amd.NAME,
            amd.detect_amdsmi,
            read_usage=amd.read_amdsmi_usage,
            read_processes=amd.read_amdsmi_processes,
        ),
        Detector(
            nvidia.NAME,
            nvidia.detect_pynvml,
            read_usage=nvidia.read_pynvml_usage,
            read_processes=nvidia.read_pynvml_processes,
        ),
        Detector(torch_gpus.ROCM_NAME, torch_gpus.detect_torch_rocm, stands_in_for=amd.NAME),
        Detector(torch_gpus.CUDA_NAME, torch_gpus.detect_torch_cuda, stands_in_for=nvidia.NAME),
    )
}
