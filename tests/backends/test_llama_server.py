from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.plans import APU, H100, H100_TOO, JETSON, SAMPLES, XTX, facts, plan
from tests.backends.test_extra_args import flags_in
from xgen_ray.backends.flags import KnownFlags, parse_help
from xgen_ray.backends.launch import Launch
from xgen_ray.backends.llama_server import alias_of, build, engine_environment
from xgen_ray.errors import InvalidRequest, UnknownOption
from xgen_ray.models.types import ModelTask
from xgen_ray.placement.types import Backend, GPUNeed, Plan

CURRENT = parse_help((SAMPLES / "help_vulkan_build.txt").read_text())
OLDER = parse_help((SAMPLES / "help_older_build.txt").read_text())

COMMON = (
    "llama-server --model /models/tiny.gguf --host 127.0.0.1 --port 4711 --ctx-size 16384 --parallel 4 "
    "--no-kv-unified --batch-size 2048 --ubatch-size 512 --threads 3 --threads-batch 3 "
)
SERVING = "--cache-ram 0 --cont-batching --metrics --slots --no-ui --jinja"


def command(
    made: Plan, known: KnownFlags = CURRENT, *, host: str = "127.0.0.1", alias: str | None = None
) -> Launch:
    return build(made, port=4711, key="k3y", known=known, host=host, alias=alias)


@pytest.mark.parametrize(
    ("made", "argv"),
    [
        pytest.param(plan(), COMMON + "--n-gpu-layers 0 --device none " + SERVING, id="cpu"),
        pytest.param(
            plan(Backend.LLAMA_SERVER_VULKAN, gpus=(XTX,), devices=("Vulkan1",), gpu_layers=99),
            COMMON + "--n-gpu-layers 99 --device Vulkan1 " + SERVING,
            id="vulkan names its device as listed",
        ),
        pytest.param(
            plan(
                Backend.LLAMA_SERVER_CUDA,
                gpus=(H100, H100_TOO),
                devices=("CUDA0", "CUDA3"),
                gpu_layers=99,
                split_mode="layer",
                main_gpu=1,
                flash_attention=True,
            ),
            COMMON + "--n-gpu-layers 99 --device CUDA0,CUDA1 --split-mode layer --main-gpu 1 "
            "--flash-attn on " + SERVING,
            id="cuda counts what is visible",
        ),
        pytest.param(
            replace(
                plan(
                    Backend.LLAMA_SERVER_CUDA,
                    gpus=(H100, H100_TOO),
                    devices=("CUDA0", "CUDA3"),
                    gpu_layers=99,
                    split_mode="layer",
                ),
                gpu_needs=(GPUNeed(2**34, free_bytes=3 * 2**34), GPUNeed(2**33, free_bytes=2**34)),
            ),
            COMMON
            + "--n-gpu-layers 99 --device CUDA0,CUDA1 --split-mode layer --tensor-split 49152,16384 "
            + SERVING,
            id="layers are split as the leases are",
        ),
        pytest.param(
            plan(
                Backend.LLAMA_SERVER_ROCM,
                gpus=(APU,),
                devices=("ROCm0",),
                gpu_layers=99,
                flash_attention=False,
                fit=False,
                slots=1,
            ),
            COMMON.replace("16384", "4096").replace("--parallel 4", "--parallel 1")
            + "--n-gpu-layers 99 --device ROCm0 --flash-attn off --fit off "
            + SERVING,
            id="rocm, with its profile",
        ),
        pytest.param(
            plan(
                Backend.LLAMA_SERVER_ROCM,
                gpus=(APU,),
                devices=("ROCm0",),
                task=ModelTask.EMBED,
                pooling="cls",
                ubatch=2048,
            ),
            COMMON.replace("--ubatch-size 512", "--ubatch-size 2048")
            + "--n-gpu-layers 0 --device none "
            + SERVING
            + " --embeddings --pooling cls",
            id="embeddings on rocm stay on the cpu",
        ),
        pytest.param(
            plan(Backend.LLAMA_SERVER_METAL, devices=("MTL0",), gpus=(JETSON,), gpu_layers=20),
            COMMON + "--n-gpu-layers 20 --device MTL0 " + SERVING,
            id="metal",
        ),
        pytest.param(
            plan(
                memory_lock=True,
                fit=True,
                kv_cache_type="q8_0",
                prompt_cache_bytes=3 * 2**30,
                chat_template="{{ x }}",
                task=ModelTask.RERANK,
                extra_args=("--top-k", "7"),
            ),
            COMMON + "--n-gpu-layers 0 --device none --fit on --load-mode mlock --cache-type-k q8_0 "
            "--cache-type-v q8_0 --cache-ram 3072 --cont-batching --metrics --slots --no-ui --jinja "
            "--chat-template {{_x_}} --reranking --top-k 7",
            id="everything else",
        ),
    ],
)
def test_the_command_of_each_backend(made: Plan, argv: str) -> None:
    expected = tuple(word.replace("{{_x_}}", "{{ x }}") for word in argv.split())
    assert command(made).spec.argv == expected


HIDDEN = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "ROCR_VISIBLE_DEVICES": None,
    "GGML_VK_VISIBLE_DEVICES": "",
    "LLAMA_API_KEY": "k3y",
}


@pytest.mark.parametrize(
    ("made", "different"),
    [
        (plan(), {}),
        (
            plan(Backend.LLAMA_SERVER_CUDA, gpus=(H100, H100_TOO), devices=("CUDA0", "CUDA1"), gpu_layers=9),
            {"CUDA_VISIBLE_DEVICES": "GPU-1f0a,GPU-77b2"},
        ),
        (
            plan(Backend.LLAMA_SERVER_CUDA, gpus=(JETSON,), devices=("CUDA0",), gpu_layers=9),
            {"CUDA_VISIBLE_DEVICES": "0"},
        ),
        (
            plan(Backend.LLAMA_SERVER_ROCM, gpus=(XTX,), devices=("ROCm1",), gpu_layers=9),
            {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": None},
        ),
        (plan(Backend.LLAMA_SERVER_ROCM, gpus=(XTX,), devices=("ROCm1",), gpu_layers=0), {}),
    ],
)
def test_sees_its_gpus_and_no_other(made: Plan, different: Mapping[str, str | None]) -> None:
    assert command(made).spec.env == {**HIDDEN, **different}


ON_VULKAN = plan(Backend.LLAMA_SERVER_VULKAN, gpus=(XTX,), devices=("Vulkan3", "Vulkan1"), gpu_layers=9)


def test_vulkan_sees_the_positions_of_its_devices_and_counts_them_anew() -> None:
    launch = build(ON_VULKAN, port=4711, key="k3y", known=CURRENT, vulkan_positions=(4, 1))
    assert launch.spec.env == {**HIDDEN, "GGML_VK_VISIBLE_DEVICES": "4,1"}
    assert launch.spec.argv[launch.spec.argv.index("--device") + 1] == "Vulkan0,Vulkan1"
    assert launch.notes == ()


def test_without_positions_vulkan_limits_stay_as_the_node_has_them_and_a_note_says_so() -> None:
    launch = command(ON_VULKAN)
    expected = {name: value for name, value in HIDDEN.items() if name != "GGML_VK_VISIBLE_DEVICES"}
    assert launch.spec.env == expected
    assert launch.spec.argv[launch.spec.argv.index("--device") + 1] == "Vulkan3,Vulkan1"
    assert [note for note in launch.notes if "--device alone" in note]


def test_the_key_is_in_the_environment_and_blanked_in_logs() -> None:
    spec = command(plan()).spec
    assert "k3y" not in " ".join(spec.argv)
    assert spec.secrets == ("k3y",)


def test_a_build_that_takes_no_key_from_the_environment_gets_it_as_an_argument() -> None:
    spec = command(plan(), OLDER).spec
    assert spec.argv[-2:] == ("--api-key", "k3y")
    assert "LLAMA_API_KEY" not in spec.env


def test_an_older_build_gets_its_own_words_and_a_note_for_what_it_lacks() -> None:
    launch = command(plan(memory_lock=True, flash_attention=True, fit=True), OLDER)
    assert "--mlock" in launch.spec.argv
    assert launch.spec.argv[launch.spec.argv.index("--flash-attn") + 1] == "--mlock"
    assert launch.notes == ("this build of llama-server has no --fit: left out",)


def test_a_build_that_cannot_name_devices_is_not_trusted_with_a_gpu() -> None:
    made = plan(Backend.LLAMA_SERVER_CUDA, gpus=(H100,), devices=("CUDA0",), gpu_layers=9)
    with pytest.raises(UnknownOption, match="--device"):
        command(made, OLDER)


def test_readiness_grows_with_the_model_and_asks_the_right_host() -> None:
    small = command(plan(model=facts(weight_bytes=0)), host="fd00::7").spec.readiness
    large = command(plan(model=facts(weight_bytes=100 * 2**30)), host="fd00::7").spec.readiness
    assert small is not None
    assert large is not None
    assert small.url == "http://[fd00::7]:4711/health"
    assert large.deadline_s > small.deadline_s > 0


@pytest.mark.parametrize(
    ("made", "given", "words"),
    [
        (plan(model=facts("--lora")), {}, "model is '--lora'"),
        (plan(model=facts("")), {}, "may not be empty"),
        (plan(model=facts("/a\0b")), {}, "zero byte"),
        (plan(chat_template="-{{ x }}"), {}, "chat_template"),
        (plan(chat_template="x" * 200_000), {}, "200000 bytes"),
        (plan(), {"alias": "a,b"}, "no name"),
        (plan(), {"alias": "--tools"}, "may not"),
        (plan(), {"host": "-h"}, "host is"),
        (plan(extra_args=("--port", "1")), {}, "where an engine listens"),
    ],
)
def test_no_value_passes_that_could_be_read_as_something_else(
    made: Plan, given: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        command(made, **given)


TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(sorted(CURRENT.by_name)),
    st.sampled_from(["--tools all", "-m", "--", "--model=/x", "a --port 1"]),
)


@settings(max_examples=100)
@given(path=TEXT, template=st.none() | TEXT, alias=st.none() | TEXT, pooling=st.none() | TEXT)
def test_no_string_of_a_user_becomes_a_flag(
    path: str, template: str | None, alias: str | None, pooling: str | None
) -> None:
    usual = command(plan(task=ModelTask.EMBED, chat_template="t", pooling="mean"), alias="a")
    allowed = set(flags_in(usual.spec.argv[1:], CURRENT))
    made = plan(model=facts(path), task=ModelTask.EMBED, chat_template=template, pooling=pooling)
    try:
        argv = command(made, alias=alias).spec.argv
    except InvalidRequest:
        return
    assert set(flags_in(argv[1:], CURRENT)) <= allowed
    assert argv[argv.index("--model") + 1] == path


def test_building_is_pure() -> None:
    assert command(plan()) == command(plan())


def test_the_environment_holds_no_flags_and_no_tokens() -> None:
    env = {"LLAMA_ARG_TOOLS": "all", "LLAMA_API_KEY": "x", "HF_TOKEN": "t", "PATH": "/bin", "HOME": "/root"}
    assert engine_environment(env) == {"PATH": "/bin", "HOME": "/root"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/Qwen3-32B Q4.gguf", "Qwen3-32B-Q4"),
        ("/m/--x,y.gguf", "x-y"),
        ("/m/\u6a21\u578b.gguf", "model"),
        ("/m/" + "a" * 200 + ".gguf", "a" * 128),
    ],
)
def test_a_model_without_a_name_gets_one_from_its_file(path: str, name: str) -> None:
    assert alias_of(path) == name
    assert command(plan(), alias=name).spec.argv
