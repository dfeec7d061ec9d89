"""What an operator may set about placement, with the defaults that hold without a word."""

from dataclasses import dataclass

from xgen_ray.placement.profiles import PROFILES, ProfileRow
from xgen_ray.placement.rows import VLLM_CUDA_CAPABILITY, VLLM_ROCM_GFX
from xgen_ray.placement.sizes import GIB


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """Every number that placement takes from nowhere else.

    ``context`` is given to a model when nobody asks for one and the model was trained for at least as
    much; ``smallest_context`` is how far it may shrink to make a model fit. ``unknown_context`` is the
    most that may be asked of a model whose file does not say what it was trained for. Configuration puts
    rows of its own in front of ``profiles``: the first that matches wins. ``spread`` holds where a model's
    own options do not say. ``nodes_weighed`` is how many unlike nodes of a fleet are weighed in full, the
    most promising first, before the best of them is taken.
    """

    context: int = 8192
    smallest_context: int = 2048
    unknown_context: int = 131_072
    embedding_context: int = 2048
    prompt_cache_bytes: int = 8 * GIB
    gpu_memory_utilization: float = 0.9
    vllm_rocm_gfx: frozenset[str] = VLLM_ROCM_GFX
    vllm_cuda_capability: tuple[int, int] = VLLM_CUDA_CAPABILITY
    profiles: tuple[ProfileRow, ...] = PROFILES
    spread: bool = False
    nodes_weighed: int = 16


DEFAULT_POLICY = PlacementPolicy()
