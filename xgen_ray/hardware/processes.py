"""Which processes have how much memory of this node's GPUs: asked when a model has been loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from xgen_ray.hardware.codec import processes_from_json
from xgen_ray.hardware.detectors import DETECTORS
from xgen_ray.hardware.isolate import collect
from xgen_ray.hardware.types import GPUDetectionResult, GPUProcess


@dataclass(frozen=True, slots=True)
class GPUProcesses:
    """``notes`` say why processes are missing: "pynvml: no answer in 5 s"."""

    processes: tuple[GPUProcess, ...]
    notes: tuple[str, ...] = ()


def take_processes(
    detection: GPUDetectionResult, *, deadline_s: float = 5.0, env: Mapping[str, str] | None = None
) -> GPUProcesses:
    """Every process on the GPUs of ``detection``, as the libraries that found them know them.

    Blocks; a node without GPUs starts no child. In a container of its own the ids that a driver gives may
    be those of the machine outside: then a process that should be there is missing.
    """
    asked = [
        name
        for name, detector in DETECTORS.items()
        if detector.read_processes is not None and any(gpu.detected_by == name for gpu in detection.gpus)
    ]
    return GPUProcesses(*collect("processes", asked, processes_from_json, deadline_s=deadline_s, env=env))
