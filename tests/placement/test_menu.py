"""The options as data: every one that a form can ask for, with the bounds that pydantic checks."""

import pytest
from pydantic import ValidationError

from xgen_ray.models.types import ModelFormat
from xgen_ray.placement import Backend, EngineOptions
from xgen_ray.placement.menu import OptionRow, backends_in_order, option_rows, options_of
from xgen_ray.placement.options import OPTION_BACKENDS

ROWS = {row.name: row for row in option_rows()}


def test_every_option_has_a_field_but_those_that_are_chosen_in_their_own_way() -> None:
    assert set(EngineOptions.model_fields) - set(ROWS) == {"backend", "gpus"}


def test_what_most_people_set_comes_first() -> None:
    essential = [row.name for row in option_rows() if row.essential]
    assert essential == [row.name for row in option_rows()][: len(essential)]
    assert {"context", "slots", "split_mode", "tensor_parallel_size", "gpu_memory_utilization"} == set(
        essential
    )


def test_fields_have_the_type_and_the_bounds_of_the_option() -> None:
    assert ROWS["context"].type == "integer"
    assert (ROWS["slots"].minimum, ROWS["slots"].maximum) == (1, 1024)
    share = ROWS["gpu_memory_utilization"]
    assert (share.type, share.exclusive_minimum, share.maximum) == ("number", 0, 1)
    assert ROWS["split_mode"].choices == ("none", "layer", "row", "tensor")
    assert ROWS["task"].choices == ("generate", "embed", "rerank")
    assert ROWS["fit"].type == "boolean"
    assert ROWS["extra_args"].type == "list"


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.minimum is not None])
def test_a_value_below_the_minimum_is_refused_as_the_form_says(row: OptionRow) -> None:
    assert row.minimum is not None
    EngineOptions.model_validate({row.name: row.minimum})
    with pytest.raises(ValidationError):
        EngineOptions.model_validate({row.name: row.minimum - 1})


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.choices])
def test_every_choice_is_taken(row: OptionRow) -> None:
    for choice in row.choices:
        EngineOptions.model_validate({row.name: choice})


def test_backends_come_as_their_format_prefers_them() -> None:
    order = [row.backend for row in backends_in_order() if ModelFormat.GGUF in row.formats]
    assert order[:3] == [Backend.LLAMA_SERVER_VULKAN, Backend.LLAMA_SERVER_CUDA, Backend.LLAMA_SERVER_ROCM]
    assert {row.backend for row in backends_in_order()} == set(Backend)


def test_a_backend_is_offered_its_own_options_only() -> None:
    assert "split_mode" not in options_of(Backend.VLLM_CUDA)
    assert "tensor_parallel_size" not in options_of(Backend.LLAMA_SERVER_VULKAN)
    assert "split_mode" not in options_of(Backend.LLAMA_SERVER_CPU)
    assert set(options_of(Backend.VLLM_CUDA)) < set(OPTION_BACKENDS)
