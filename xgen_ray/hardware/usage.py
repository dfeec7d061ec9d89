"""Live figures of a node: a query of its own, since facts do not change and figures do."""

import time
from collections.abc import Mapping

import psutil

from xgen_ray.hardware.codec import usage_from_json
from xgen_ray.hardware.detectors import DETECTORS
from xgen_ray.hardware.host import available_memory
from xgen_ray.hardware.isolate import collect
from xgen_ray.hardware.types import GPUDetectionResult, NodeUsage

_CPU_INTERVAL_S = 0.1


def take_usage(
    detection: GPUDetectionResult | None = None,
    *,
    deadline_s: float = 5.0,
    env: Mapping[str, str] | None = None,
) -> NodeUsage:
    """What this node's GPUs and RAM are doing now.

    Blocks. Given the node's ``detection``, only the libraries that found its GPUs are asked, so a node
    without GPUs starts no child. A library that hangs or crashes costs its own figures; ``notes`` say so.
    ``cpu_percent`` is over a tenth of a second.
    """
    asked = [
        name
        for name, detector in DETECTORS.items()
        if detector.read_usage is not None
        and (detection is None or any(gpu.detected_by == name for gpu in detection.gpus))
    ]
    gpus, notes = collect("usage", asked, usage_from_json, deadline_s=deadline_s, env=env)
    return NodeUsage(
        gpus=gpus,
        memory_available_bytes=available_memory(),
        cpu_percent=psutil.cpu_percent(interval=_CPU_INTERVAL_S),
        taken_at=time.time(),
        notes=notes,
    )
