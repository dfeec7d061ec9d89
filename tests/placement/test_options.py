"""Every option has its backends, and what cannot be had together is said."""

import pytest
from pydantic import ValidationError

from tests.placement.builders import all_there, dense, host, node, rtx4090, rx7900xtx, smollm2
from xgen_ray.models.types import ModelFormat, ModelTask
from xgen_ray.placement import BACKENDS, Backend, Engine, EngineOptions, Plan, Refusal, plan
from xgen_ray.placement.options import OPTION_BACKENDS, contradictions, foreign_options, given

SAFETENSORS = dense(8, 16, model_format=ModelFormat.SAFETENSORS)


def test_the_table_has_every_option() -> None:
    assert set(OPTION_BACKENDS) == set(EngineOptions.model_fields)
    assert all(OPTION_BACKENDS.values())


def test_only_what_was_asked_counts_as_given() -> None:
    assert given(EngineOptions()) == {}
    assert given(EngineOptions(gpus=(), fit=False)) == {"gpus": (), "fit": False}


VALUES: dict[str, object] = {
    "backend": Backend.LLAMA_SERVER_CUDA,
    "task": ModelTask.GENERATE,
    "context": 4096,
    "slots": 1,
    "gpus": (0,),
    "split_mode": "layer",
    "main_gpu": 0,
    "gpu_layers": 10,
    "batch": 1024,
    "ubatch": 256,
    "threads": 2,
    "flash_attention": True,
    "fit": True,
    "memory_lock": True,
    "kv_cache_type": "q8_0",
    "chat_template": "{{ messages }}",
    "tensor_parallel_size": 1,
    "gpu_memory_utilization": 0.9,
    "dtype": "bfloat16",
    "pipeline_parallel_size": 1,
    "enforce_eager": True,
    "tool_parser": "hermes",
    "quantization": "awq",
    "spread": True,
    "extra_args": ("--verbose",),
}


@pytest.mark.parametrize("option", VALUES)
def test_an_option_is_kept_or_refused_never_dropped(option: str) -> None:
    """On every backend: the plan has the value as it was asked for, or the backend refuses it."""
    assert set(VALUES) == set(EngineOptions.model_fields)
    snapshot = node(rtx4090(), on=host(cpus=8))
    for row in BACKENDS.values():
        if row.backend in (Backend.LLAMA_SERVER_ROCM, Backend.LLAMA_SERVER_METAL, Backend.VLLM_ROCM):
            continue
        facts = smollm2() if ModelFormat.GGUF in row.formats else SAFETENSORS
        values = {"backend": row.backend} | {option: VALUES[option]} if option != "backend" else {}
        options = EngineOptions.model_validate(values)
        made = plan(facts, options, snapshot, all_there(snapshot))
        mine = next(item for item in made.candidates if item.backend is row.backend)
        if isinstance(made, Plan) and option not in ("backend", "gpus", "spread"):
            assert getattr(made.options, option) == VALUES[option]
        if row.backend in OPTION_BACKENDS[option]:
            assert isinstance(made, Plan) or mine.reasons == ("it runs on the CPU, but gpus names 0",)
        else:
            assert isinstance(made, Refusal)
            assert option in " ".join(mine.reasons)


@pytest.mark.parametrize(
    ("options", "blamed", "words"),
    [
        (EngineOptions(batch=256, ubatch=512), "ubatch", ("ubatch 512", "batch 256")),
        (EngineOptions(threads=9), "threads", ("threads is 9", "8 cores")),
        (EngineOptions(gpus=(0, 1), main_gpu=2), "main_gpu", ("main_gpu is 2", "names 2")),
        (
            EngineOptions(gpus=(0,), tensor_parallel_size=2),
            "tensor_parallel_size",
            ("tensor_parallel_size is 2", "names 1"),
        ),
        (
            EngineOptions(kv_cache_type="q4_0", flash_attention=False),
            "kv_cache_type",
            ("q4_0", "flash attention"),
        ),
    ],
)
def test_contradictions(options: EngineOptions, blamed: str, words: tuple[str, ...]) -> None:
    (fault,) = contradictions(options, cpu_count=8)
    assert fault.option == blamed
    assert all(word in fault.reason for word in words)


def test_a_refusal_says_which_options_are_to_blame() -> None:
    snapshot = node(rtx4090(), on=host(cpus=8))
    asked = EngineOptions(context=10_000_000, threads=9, gpus=(3,))
    made = plan(smollm2(), asked, snapshot, all_there(snapshot))
    assert isinstance(made, Refusal)
    cuda = next(item for item in made.candidates if item.backend is Backend.LLAMA_SERVER_CUDA)
    assert [fault.option for fault in cuda.faults] == ["context", "gpus", "threads"]
    assert [fault.reason for fault in cuda.faults] == list(cuda.reasons)


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(batch=512, ubatch=512, threads=8),
        EngineOptions(gpus=(0, 1), main_gpu=1),
        EngineOptions(gpus=(0, 1), tensor_parallel_size=2),
        EngineOptions(kv_cache_type="f16", flash_attention=False),
    ],
)
def test_no_contradictions(options: EngineOptions) -> None:
    assert contradictions(options, cpu_count=8) == ()


def test_options_that_say_what_a_backend_does_anyway_are_taken() -> None:
    cpu = BACKENDS[Backend.LLAMA_SERVER_CPU]
    assert foreign_options(cpu, EngineOptions(gpu_layers=0)) == ()
    assert foreign_options(cpu, EngineOptions(gpu_layers=3))
    assert foreign_options(BACKENDS[Backend.LLAMA_CPP_PYTHON], EngineOptions(slots=1)) == ()
    assert foreign_options(BACKENDS[Backend.LLAMA_CPP_PYTHON], EngineOptions(slots=2))


def test_an_empty_list_of_gpus_asks_for_the_cpu() -> None:
    snapshot = node(rtx4090())
    for options in (EngineOptions(gpus=()), EngineOptions(gpu_layers=0)):
        made = plan(smollm2(), options, snapshot, all_there(snapshot))
        assert isinstance(made, Plan)
        assert made.backend is Backend.LLAMA_SERVER_CPU
        assert made.warnings == ()
    inside = EngineOptions(gpu_layers=0, backend=Backend.LLAMA_SERVER_CUDA)
    made = plan(smollm2(), inside, snapshot, all_there(snapshot))
    assert isinstance(made, Plan)
    assert (made.options.gpu_layers, made.options.devices, made.footprint.gpu_bytes) == (0, (), 0)


def test_layers_beyond_the_models_mean_all() -> None:
    snapshot = node(rx7900xtx())
    for layers in (99, 31, None):
        made = plan(smollm2(), EngineOptions(gpu_layers=layers), snapshot, all_there(snapshot))
        assert isinstance(made, Plan)
        assert made.options.gpu_layers == 31


def test_vllm_alone_knows_tensor_parallelism() -> None:
    for row in BACKENDS.values():
        refused = foreign_options(row, EngineOptions(tensor_parallel_size=2))
        assert bool(refused) is not (row.engine is Engine.VLLM and row.needs_gpu)


def test_options_go_through_json_and_back() -> None:
    for name, value in VALUES.items():
        options = EngineOptions.model_validate({name: value})
        assert EngineOptions.model_validate_json(options.model_dump_json()) == options
    assert EngineOptions.model_validate_json('{"gpus": []}').gpus == ()
    with pytest.raises(ValidationError):
        EngineOptions.model_validate({"n_ctx": 1})
