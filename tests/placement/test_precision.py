"""What vLLM computes in on a CPU, by a table; and that the bill knows."""

from dataclasses import replace

import pytest

from tests.placement.builders import all_there, dense, host, node
from xgen_ray.hardware.types import HostFacts
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import Backend, EngineOptions, Plan, plan
from xgen_ray.placement.sizes import GIB

HALF = replace(dense(1, 16, model_format=ModelFormat.SAFETENSORS), quantization="bfloat16")
AVX2 = host(flags=frozenset({"avx2"}))


def on_cpu(facts: ModelFacts, on: HostFacts, **options: object) -> Plan:
    asked = EngineOptions.model_validate({"backend": Backend.VLLM_CPU, "context": 2048, **options})
    made = plan(facts, asked, node(on=on), all_there(node(on=on)))
    assert isinstance(made, Plan), made
    return made


@pytest.mark.parametrize(
    ("facts", "on", "dtype"),
    [
        (HALF, AVX2, "float32"),
        (replace(HALF, quantization="F16"), AVX2, "float32"),
        (HALF, host(flags=frozenset({"avx2", "avx512f"})), None),
        (HALF, host(), None),
        (HALF, replace(AVX2, machine="aarch64"), None),
        (replace(HALF, quantization="awq"), AVX2, None),
        (replace(HALF, quantization=None), AVX2, None),
        # In single precision its weights would be more than a quarter of the RAM.
        (HALF, host(15 * GIB, flags=frozenset({"avx2"})), "float32"),
        (HALF, host(14 * GIB, flags=frozenset({"avx2"})), None),
    ],
)
def test_single_precision_where_half_is_slow(facts: ModelFacts, on: HostFacts, dtype: str | None) -> None:
    made = on_cpu(facts, on)
    assert made.options.dtype == dtype
    assert [note.value for note in made.notes if note.option == "dtype"] == ([dtype] if dtype else [])


def test_the_operators_word_comes_first() -> None:
    assert on_cpu(HALF, AVX2, dtype="bfloat16").options.dtype == "bfloat16"


def test_wider_numbers_are_on_the_bill() -> None:
    half, single = on_cpu(HALF, AVX2, dtype="bfloat16"), on_cpu(HALF, AVX2)
    sizes = [{item.name: item.size_bytes for item in made.footprint.items} for made in (half, single)]
    assert sizes[1]["weights"] == 2 * sizes[0]["weights"] == 2 * HALF.weight_bytes
    assert sizes[1]["kv cache"] == 2 * sizes[0]["kv cache"]
    assert sizes[1]["compute buffers"] > sizes[0]["compute buffers"]
    told = next(item.detail for item in single.footprint.items if item.name == "weights")
    assert told == "1.9 GiB of files, 2 times that in float32"
