"""What is particular to vLLM among the options: GPUs in rows, eager computing, and a context that fits."""

import pytest

from tests.placement.builders import all_there, dense, h100, host, node, rtx4090
from xgen_ray.models.types import ModelFormat, ModelTask
from xgen_ray.placement import Backend, EngineOptions, Plan, Refusal, claims_of, plan
from xgen_ray.placement.options import contradictions

MODEL = dense(8, 16, model_format=ModelFormat.SAFETENSORS)
FOUR = node(h100(0), h100(1), h100(2), h100(3), on=host(cpus=64))


def decide(**options: object) -> Plan | Refusal:
    return plan(MODEL, EngineOptions.model_validate(options), FOUR, all_there(FOUR))


@pytest.mark.parametrize(
    ("options", "tensor", "pipeline", "count"),
    [
        ({}, 1, 1, 1),
        ({"pipeline_parallel_size": 2}, 1, 2, 2),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 2, 2, 4),
        ({"gpus": (0, 1, 2, 3), "pipeline_parallel_size": 2}, 2, 2, 4),
        ({"gpus": (1, 3), "pipeline_parallel_size": 2}, 1, 2, 2),
    ],
)
def test_gpus_in_rows(options: dict[str, object], tensor: int, pipeline: int, count: int) -> None:
    made = decide(**options)
    assert isinstance(made, Plan)
    assert (made.options.tensor_parallel_size, made.options.pipeline_parallel_size) == (tensor, pipeline)
    assert len(made.options.gpus) == count
    on_gpus = claims_of(made)[:-1]
    assert len(on_gpus) == count
    assert all(claim.exclusive is (count > 1) for claim in on_gpus)
    runtime = next(item for item in made.footprint.items if item.name == "runtime")
    assert runtime.size_bytes == count * 2**30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pipeline_parallel_size": 8}, "pipeline_parallel_size is 8, but the node has at most 4 equal GPUs"),
        (
            {"tensor_parallel_size": 4, "pipeline_parallel_size": 2},
            "tensor_parallel_size is 4 and pipeline_parallel_size is 2, but the node has at most 4",
        ),
        ({"pipeline_parallel_size": 8}, "for it, and an engine is on one node alone"),
        ({"gpus": (0, 1, 2), "pipeline_parallel_size": 2}, "is not the 3 GPUs that gpus names"),
        ({"pipeline_parallel_size": 65}, "pipeline_parallel_size is 65, but the model has 64 layers to part"),
        ({"tensor_parallel_size": 3}, "64 attention heads cannot be divided among 3 GPUs"),
        (
            {"gpus": (0, 1), "tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            "tensor_parallel_size 2 times pipeline_parallel_size 2 is not the 2 GPUs",
        ),
    ],
)
def test_rows_that_cannot_be_made(options: dict[str, object], words: str) -> None:
    made = decide(backend=Backend.VLLM_CUDA, **options)
    assert isinstance(made, Refusal)
    cuda = next(item for item in made.candidates if item.backend is Backend.VLLM_CUDA)
    assert words in " ".join(cuda.reasons)


def test_a_model_that_embeds_calls_no_tools() -> None:
    options = EngineOptions(task=ModelTask.EMBED, tool_parser="hermes")
    assert tuple(fault.reason for fault in contradictions(options, 8)) == (
        "tool_parser is hermes, but a model that must embed calls no tools",
    )


def test_a_cpu_computes_eagerly_unless_told_otherwise() -> None:
    left_open = decide(backend=Backend.VLLM_CPU)
    asked = decide(backend=Backend.VLLM_CPU, enforce_eager=False)
    on_gpu = decide()
    assert isinstance(left_open, Plan)
    assert isinstance(asked, Plan)
    assert isinstance(on_gpu, Plan)
    assert left_open.options.enforce_eager
    assert "enforce_eager" in [note.option for note in left_open.notes]
    assert not asked.options.enforce_eager
    assert not on_gpu.options.enforce_eager


def test_a_context_that_does_not_fit_is_lowered_and_that_is_said() -> None:
    card = node(rtx4090())
    large = dense(9.5, 16, model_format=ModelFormat.SAFETENSORS)
    made = plan(large, EngineOptions(backend=Backend.VLLM_CUDA), card, all_there(card))
    assert isinstance(made, Plan)
    assert made.options.context == 4096
    assert "made smaller to fit, to a context of 4096: at full size it needs" in made.warnings[0]


@pytest.mark.parametrize("word", ["", "-x", "a b", "a\n", "../x", "x" * 65])
@pytest.mark.parametrize("option", ["dtype", "quantization", "tool_parser"])
def test_a_name_is_a_word(option: str, word: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        EngineOptions.model_validate({option: word})


def test_a_row_may_be_longer_than_its_layers_divide() -> None:
    """vLLM gives some GPUs of a row a layer more: 64 layers over 3 GPUs."""
    made = decide(pipeline_parallel_size=3)
    assert isinstance(made, Plan)
    assert (made.options.tensor_parallel_size, made.options.pipeline_parallel_size) == (1, 3)
