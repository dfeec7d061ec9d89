"""What this node has: GPUs of any vendor, the machine around them, and what they are doing now.

``detect_in_child`` is the one to call from a long-lived process. See README.md beside this file.

``report`` shows it to a person. It is imported by its own name: it brings rich along, which would be a third
of the start of every process that asks a vendor's library.
"""

from xgen_ray.hardware.apple import Platform
from xgen_ray.hardware.codec import snapshot_from_json, snapshot_to_json
from xgen_ray.hardware.gfx import GFX_FAMILIES, GfxClass, GfxFamily, classify_gfx, parse_gfx
from xgen_ray.hardware.host import read_host
from xgen_ray.hardware.merge import choose_primary, merge
from xgen_ray.hardware.pci import normalise_pci
from xgen_ray.hardware.processes import GPUProcesses, take_processes
from xgen_ray.hardware.snapshot import detect_in_child, take_snapshot
from xgen_ray.hardware.software import is_software_renderer
from xgen_ray.hardware.types import (
    DetectorReport,
    GPUDetectionResult,
    GPUInfo,
    GPUProcess,
    GPUType,
    GPUUsage,
    HostFacts,
    NodeSnapshot,
    NodeUsage,
)
from xgen_ray.hardware.usage import take_usage

__all__ = [
    "GFX_FAMILIES",
    "DetectorReport",
    "GPUDetectionResult",
    "GPUInfo",
    "GPUProcess",
    "GPUProcesses",
    "GPUType",
    "GPUUsage",
    "GfxClass",
    "GfxFamily",
    "HostFacts",
    "NodeSnapshot",
    "NodeUsage",
    "Platform",
    "choose_primary",
    "classify_gfx",
    "detect_in_child",
    "is_software_renderer",
    "merge",
    "normalise_pci",
    "parse_gfx",
    "read_host",
    "snapshot_from_json",
    "snapshot_to_json",
    "take_processes",
    "take_snapshot",
    "take_usage",
]
