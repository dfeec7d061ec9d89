"""Telling real GPUs from programs that imitate one on the CPU."""

import re

# As Mesa, Google, Microsoft, Apple and X name their renderers, in lower case, words apart by one space.
_MARKERS = (
    "llvmpipe",
    "lavapipe",
    "softpipe",
    "swrast",
    "swiftshader",
    "software rasterizer",
    "software renderer",
    "software adapter",
    "microsoft basic render",
    "direct3d warp",
)


def is_software_renderer(name: str) -> bool:
    """Whether a device of this name computes on the CPU, so that it must never count as a GPU.

    Takes a device's name, or a whole line of an engine's device list.
    """
    words = re.sub(r"[^a-z0-9]+", " ", name.lower())
    return any(marker in words for marker in _MARKERS)
