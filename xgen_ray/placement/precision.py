"""What vLLM computes in, and what that does to a model's size."""

from typing import Final

from xgen_ray.hardware.types import HostFacts
from xgen_ray.models.types import ModelFacts

SINGLE: Final = "float32"
WHY_SINGLE: Final = (
    "the processor has no AVX-512: without it vLLM computes single precision up to four times as fast as half"
)
# As config.json and safetensors write it, and as vLLM's own options do.
_HALF = frozenset({"bfloat16", "float16", "half", "bf16", "f16"})
_SINGLE = frozenset({SINGLE, "float"})
_X86 = frozenset({"x86_64", "AMD64"})
# Twice the size is worth it while most of the machine is left to others.
_MOST_OF_RAM = 4


def single_is_faster(facts: ModelFacts, host: HostFacts) -> bool:
    """Whether a CPU had better compute a model of half precision in single: four times as fast on SmolLM2
    with eight requests on an EPYC that has AVX2 alone. Not where its weights would then take more than a
    quarter of the RAM, nor where the processor does not say what it knows.
    """
    if host.machine not in _X86 or not host.cpu_flags or "avx512f" in host.cpu_flags:
        return False
    return _is_half(facts) and facts.weight_bytes * 2 * _MOST_OF_RAM <= host.memory_total_bytes


def widening(facts: ModelFacts, dtype: str | None) -> int:
    """How many times its files a model takes in memory when it is computed in ``dtype``."""
    return 2 if dtype in _SINGLE and _is_half(facts) else 1


def _is_half(facts: ModelFacts) -> bool:
    return (facts.quantization or "").lower() in _HALF
