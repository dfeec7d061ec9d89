"""vLLM's command and environment, decided for every kind of device."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.plans import H100, H100_TOO, XTX, facts, plan
from tests.backends.vllm_standin import HELP, fake_vllm, kept_answers
from xgen_ray.backends.engine import create_adapter
from xgen_ray.backends.flags import KnownFlags
from xgen_ray.backends.launch import Launch
from xgen_ray.backends.vllm import DRAIN_S, VllmLauncher, build, vllm_environment
from xgen_ray.backends.vllm_build import VllmBuild
from xgen_ray.backends.vllm_flags import check_extra_args, parse_help
from xgen_ray.errors import EngineFailed, InvalidRequest, UnknownOption
from xgen_ray.models.types import ModelFormat, ModelTask
from xgen_ray.placement.types import Backend, Footprint, FootprintItem, Plan
from xgen_ray.process import FailureClass
from xgen_ray.schema import Progress

CURRENT = parse_help(HELP.read_text())
# Before drains, and when tasks were told in another way.
OLDER = parse_help(
    "\n".join(
        f"  --{name} {name.upper()}  words"
        for name in (
            *("model", "served-model-name", "host", "port", "max-model-len", "max-num-seqs", "task"),
            "middleware",
        )
    )
    + "\n  --disable-log-requests  words\n"
)
MODEL = facts("/models/tiny", format=ModelFormat.SAFETENSORS)
SERVER = ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server")
BEGIN = "--model /models/tiny --host 127.0.0.1 --port 4711 --max-model-len 4096 --max-num-seqs 4 "
END = (
    f"--shutdown-timeout {DRAIN_S} --no-enable-log-requests "
    "--disable-access-log-for-endpoints /health,/metrics --disable-fastapi-docs "
    "--middleware xgen_ray_gate.Gate --allowed-origins []"
)
WORKERS = "--distributed-executor-backend mp "


def made(backend: Backend = Backend.VLLM_CPU, **options: Any) -> Plan:
    return plan(backend, SERVER, MODEL, **options)


def command(made: Plan, known: KnownFlags = CURRENT, **more: Any) -> Launch:
    return build(made, port=4711, key="k3y", known=known, **more)


def test_the_help_of_a_real_build_is_read() -> None:
    dtype, name = CURRENT.find("--dtype"), CURRENT.find("--served_model_name")
    assert dtype is not None
    assert name is not None
    assert dtype.accepts("bfloat16")
    assert not dtype.accepts("int3")
    assert (dtype.arity, name.arity) == (1, 1)
    flag, short = CURRENT.find("--no-enforce-eager"), CURRENT.find("-tp")
    assert flag is not None
    assert flag.arity == 0
    assert short is CURRENT.find("--tensor-parallel-size")


# One parser's words in Python 3.12 and in 3.13.
BEFORE_3_13 = """\
  --tensor-parallel-size TENSOR_PARALLEL_SIZE, -tp TENSOR_PARALLEL_SIZE
                        Number of tensor parallel groups. (default: 1)
  --data-parallel-external-lb, --no-data-parallel-external-lb, -dpe
                        Whether to use "external" DP LB mode.
  --dtype {auto,half}, -d {auto,half}
                        Data type for model weights and activations.
  --sizes SIZES [SIZES ...], -s SIZES [SIZES ...]
                        Sizes to capture.
"""
FROM_3_13 = """\
  --tensor-parallel-size, -tp TENSOR_PARALLEL_SIZE
                        Number of tensor parallel groups. (default: 1)
  --data-parallel-external-lb, --no-data-parallel-external-lb, -dpe
                        Whether to use "external" DP LB mode.
  --dtype, -d {auto,half}
                        Data type for model weights and activations.
  --sizes, -s SIZES [SIZES ...]
                        Sizes to capture.
"""


@pytest.mark.parametrize("text", [BEFORE_3_13, FROM_3_13], ids=["before 3.13", "from 3.13"])
def test_a_flag_with_two_names_keeps_its_value_in_the_help_of_every_python(text: str) -> None:
    flags = parse_help(text).by_name
    assert {name: flag.value for name, flag in flags.items()} == {
        "--tensor-parallel-size": "TENSOR_PARALLEL_SIZE",
        "-tp": "TENSOR_PARALLEL_SIZE",
        "--data-parallel-external-lb": None,
        "--no-data-parallel-external-lb": None,
        "-dpe": None,
        "--dtype": "{auto,half}",
        "-d": "{auto,half}",
        "--sizes": "SIZES",
        "-s": "SIZES",
    }


@pytest.mark.parametrize(
    ("made", "more", "argv"),
    [
        pytest.param(made(), {}, BEGIN + WORKERS + END, id="cpu"),
        pytest.param(
            made(Backend.VLLM_CUDA, gpus=(H100,), gpu_memory_utilization=0.9),
            {"alias": "team/tiny@big"},
            BEGIN.replace("--host", "--served-model-name team/tiny team/tiny@big team/tiny@vllm-cuda --host")
            + "--tensor-parallel-size 1 --gpu-memory-utilization 0.9 "
            + WORKERS
            + END,
            id="cuda",
        ),
        pytest.param(
            made(
                Backend.VLLM_ROCM,
                gpus=(XTX, XTX, XTX, XTX),
                tensor_parallel_size=2,
                pipeline_parallel_size=2,
                dtype="bfloat16",
                quantization="awq",
                enforce_eager=True,
                tool_parser="hermes",
                chat_template="{{ x }}",
                extra_args=("--seed", "-1", "--enable-prefix-caching", "--kv-cache-dtype=fp8"),
            ),
            {"template_file": "/cache/t.jinja"},
            BEGIN + "--dtype bfloat16 --quantization awq --tensor-parallel-size 2 --pipeline-parallel-size 2 "
            f"{WORKERS}--enforce-eager --chat-template /cache/t.jinja --enable-auto-tool-choice "
            f"--tool-call-parser hermes {END} --seed -1 --enable-prefix-caching --kv-cache-dtype=fp8",
            id="everything",
        ),
        pytest.param(
            made(task=ModelTask.EMBED), {}, f"{BEGIN}{WORKERS}--runner pooling {END}", id="embeddings"
        ),
        pytest.param(
            made(task=ModelTask.RERANK), {}, f"{BEGIN}{WORKERS}--runner pooling {END}", id="reranking"
        ),
    ],
)
def test_the_command_of_each_backend(made: Plan, more: Mapping[str, Any], argv: str) -> None:
    assert command(made, **more).spec.argv == (*SERVER, *argv.split())


def test_vllms_command_takes_the_model_by_its_place() -> None:
    serve = ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.cli.main", "serve")
    argv = command(plan(Backend.VLLM_CPU, serve, MODEL)).spec.argv
    assert argv[:5] == (*serve, "/models/tiny")
    assert "--model" not in argv
    with pytest.raises(InvalidRequest, match="model is '--help'"):
        command(plan(Backend.VLLM_CPU, serve, facts("--help")))


def test_an_older_build_gets_its_own_words_and_a_note_for_what_it_lacks() -> None:
    launch = command(made(task=ModelTask.RERANK, enforce_eager=True), OLDER)
    assert launch.spec.argv[-5:-2] == ("--task", "score", "--disable-log-requests")
    assert launch.notes == (
        "this build of vLLM has no --enforce-eager: left out",
        "this build of vLLM has no --shutdown-timeout: left out",
        "this build of vLLM has no --allowed-origins: left out",
    )
    with pytest.raises(UnknownOption, match=r"tool_choice needs --enable-auto-tool-choice, .* of vLLM lacks"):
        command(made(tool_parser="hermes"), OLDER)


def test_a_build_that_takes_no_gate_is_refused() -> None:
    """It would compute for whoever reaches its port."""
    open_one = KnownFlags({name: flag for name, flag in CURRENT.by_name.items() if name != "--middleware"})
    with pytest.raises(UnknownOption, match="key_everywhere needs --middleware"):
        command(made(), open_one)


ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "3",
    "VLLM_API_KEY": "k3y",
}
ON_CPU = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "CUDA_VISIBLE_DEVICES": "-1"}


@pytest.mark.parametrize(
    ("made", "more", "expected", "absent"),
    [
        (
            made(),
            {},
            {**ON_CPU, "VLLM_CPU_KVCACHE_SPACE": "1"},
            {"VLLM_USE_FLASHINFER_SAMPLER", "TORCH_COMPILE_DISABLE"},
        ),
        (made(enforce_eager=True), {}, {**ON_CPU, "TORCH_COMPILE_DISABLE": "1"}, set()),
        (
            made(Backend.VLLM_CUDA, gpus=(replace(H100, cuda_index=0), replace(H100_TOO, cuda_index=3))),
            {"installed": VllmBuild(("python",), "0.23.2")},
            {"CUDA_VISIBLE_DEVICES": "0,3", "VLLM_USE_FLASHINFER_SAMPLER": "0"},
            {"VLLM_TARGET_DEVICE", "VLLM_CPU_KVCACHE_SPACE"},
        ),
        (
            made(Backend.VLLM_CUDA, gpus=(replace(H100, cuda_index=0),)),
            {"installed": VllmBuild(("python",), "0.25.1", flashinfer=True)},
            {"CUDA_VISIBLE_DEVICES": "GPU-1f0a"},
            {"VLLM_USE_FLASHINFER_SAMPLER"},
        ),
        (
            made(Backend.VLLM_CUDA, gpus=(H100,)),
            {},
            {"CUDA_VISIBLE_DEVICES": "GPU-1f0a"},
            {"VLLM_USE_FLASHINFER_SAMPLER"},
        ),
        (
            made(Backend.VLLM_ROCM, gpus=(XTX,)),
            {"installed": VllmBuild(("python",))},
            {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": None},
            {"VLLM_USE_FLASHINFER_SAMPLER"},
        ),
    ],
)
def test_its_environment(
    made: Plan, more: Mapping[str, Any], expected: Mapping[str, str | None], absent: set[str]
) -> None:
    env = command(made, **more).spec.env
    assert env.items() >= {**ALWAYS, **expected}.items()
    assert not absent & env.keys()


def test_the_cache_on_a_cpu_is_as_large_as_the_bill_says() -> None:
    bill = Footprint(
        (FootprintItem("kv cache", 5 * 2**30, False, ""), FootprintItem("weights", 9, False, ""))
    )
    billed = Plan(MODEL, Backend.VLLM_CPU, SERVER, made().options, bill, "", ())
    assert command(billed).spec.env["VLLM_CPU_KVCACHE_SPACE"] == "5"


def test_a_stop_leaves_time_to_finish_and_does_not_reach_the_workers() -> None:
    spec = command(made()).spec
    assert spec.stop_grace_s > DRAIN_S
    assert not spec.term_group


def test_the_key_is_in_the_environment_alone_and_blanked_in_logs() -> None:
    spec = command(made()).spec
    assert "k3y" not in " ".join(spec.argv)
    assert spec.secrets == ("k3y",)


def test_readiness_waits_for_graphs_and_asks_the_right_host() -> None:
    readiness = command(made(), host="fd00::7").spec.readiness
    assert readiness is not None
    assert readiness.url == "http://[fd00::7]:4711/health"
    assert readiness.deadline_s >= 600


def test_what_would_change_the_engine_stays_out_of_its_environment() -> None:
    env = {"VLLM_API_KEY": "x", "HF_TOKEN": "t", "VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": "/ray"}
    kept = {"PATH": "/bin", "VLLM_ATTENTION_BACKEND": "TRITON_ATTN"}
    assert vllm_environment({**env, **kept}) == kept


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (("--port", "1"), InvalidRequest, "where an engine listens"),
        (("--uds=/tmp/x",), InvalidRequest, "where an engine listens"),
        (("--api-key", "x"), InvalidRequest, "who may ask it"),
        (("--trust-remote-code",), InvalidRequest, "run or fetch code"),
        (("--middleware", "os.system"), InvalidRequest, "cannot be set"),
        (("--max_model_len", "1"), InvalidRequest, "use the option 'context'"),
        (("-tp", "2"), InvalidRequest, "use the option 'tensor_parallel_size'"),
        (("--collect-detailed-traces", "all"), InvalidRequest, "not among the flags that users may set"),
        (("--hf-token", "t"), InvalidRequest, "not among the flags"),
        (("--disable-log-stats",), InvalidRequest, "figures"),
        # argparse would take it for the whole one.
        (("--trust-remote",), UnknownOption, "no --trust-remote"),
        (("--enable-prefix-cachin",), UnknownOption, "did you mean --enable-prefix-caching"),
        (("--seed",), InvalidRequest, "needs a value"),
        (("--seed", "--enable-prefix-caching"), InvalidRequest, "needs a value"),
        (("--enable-prefix-caching=1",), InvalidRequest, "takes no value"),
        (("--enable-prefix-caching", "yes"), InvalidRequest, "'yes' is not a flag"),
        (("seed", "1"), InvalidRequest, "'seed' is not a flag"),
        (("--kv-cache-dtype", "int99"), InvalidRequest, "takes {auto"),
        (("--reasoning-parser", "/etc/passwd"), InvalidRequest, "without paths"),
        (("--limit-mm-per-prompt", "{image: 1}"), InvalidRequest, "no JSON"),
    ],
)
def test_what_a_user_may_not_add(args: tuple[str, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        check_extra_args(args, CURRENT)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--seed", "-1"),
        ("--seed=7", "--enable-prefix-caching", "--block-size", "32"),
        ("--limit-mm-per-prompt", '{"image": 1}'),
        ("--default-chat-template-kwargs", '{"enable_thinking": false}'),
        ("--cudagraph-capture-sizes", "1", "2", "4", "--max-num-batched-tokens", "4096"),
    ],
)
def test_what_a_user_may_add(args: tuple[str, ...]) -> None:
    assert check_extra_args(args, CURRENT) == args


TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(sorted(CURRENT.by_name)),
    st.sampled_from(["--port=1", "--", "--model=/x", "--api-key", "-q", "-"]),
)
PLATFORMS = frozenset(flag for flag in command(made()).spec.argv if flag.startswith("--"))


@settings(max_examples=100)
@given(args=st.lists(TEXT, max_size=4))
def test_nothing_that_a_user_adds_undoes_what_the_platform_said(args: list[str]) -> None:
    try:
        passed = check_extra_args(args, CURRENT)
    except (InvalidRequest, UnknownOption):
        return
    flags = {word.partition("=")[0].replace("_", "-") for word in passed if word.startswith("--")}
    assert not flags & PLATFORMS


@pytest.mark.parametrize(
    ("broken", "more", "words"),
    [
        (plan(Backend.VLLM_CPU, SERVER, facts("--trust-remote-code")), {}, "model is '--trust"),
        (made(), {"alias": "--api-key"}, "name is '--api-key'"),
        (made(), {"alias": "a\0b"}, "zero byte"),
        (made(), {"host": "-h"}, "host is"),
    ],
)
def test_no_value_passes_that_could_be_read_as_a_flag(
    broken: Plan, more: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        command(broken, **more)


def fake_plan(words: str = "", **options: Any) -> Plan:
    server = (*fake_vllm(words), "-m", "vllm.entrypoints.openai.api_server")
    return plan(Backend.VLLM_CPU, server, MODEL, **options)


def launcher(made: Plan, folder: Path) -> VllmLauncher:
    return VllmLauncher(made, host="127.0.0.1", base_env=os.environ, cache_dir=folder, alias="team/tiny")


def test_what_vllm_keeps_is_in_our_folder_unless_another_is_named(tmp_path: Path) -> None:
    def cache_root(env: Mapping[str, str]) -> str:
        made = VllmLauncher(fake_plan(), host="127.0.0.1", base_env=env, cache_dir=tmp_path, alias=None)
        return made.environment["VLLM_CACHE_ROOT"]

    assert cache_root({"XDG_CACHE_HOME": "/var/cache"}) == str(tmp_path / "vllm")
    assert cache_root({"VLLM_CACHE_ROOT": "/scratch/vllm"}) == "/scratch/vllm"


async def test_a_template_is_given_as_a_file_since_vllm_reads_one_where_it_can(tmp_path: Path) -> None:
    template = "{{ 'Umlaut: ä' }}\n/etc/passwd"
    argv = (await launcher(fake_plan(chat_template=template), tmp_path)(4711, "k3y")).spec.argv
    (file,) = kept_answers(tmp_path / "templates", "*.jinja")
    assert argv[argv.index("--chat-template") + 1] == str(file)
    assert file.read_text() == template
    with pytest.raises(InvalidRequest, match="1000001 bytes"):
        await launcher(fake_plan(chat_template="x" * 1_000_001), tmp_path)(4711, "k3y")


async def test_a_template_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "templates").touch()
    with pytest.raises(InvalidRequest, match="cannot be kept in"):
        await launcher(fake_plan(chat_template="{{ x }}"), tmp_path)(4711, "k3y")


async def test_it_loads_tells_its_steps_and_its_load_and_stops(tmp_path: Path) -> None:
    heard: list[Progress] = []
    adapter = create_adapter(
        fake_plan(), host="127.0.0.1", base_env=os.environ, cache_dir=tmp_path, alias="team/tiny"
    )
    async with adapter:
        await adapter.load(heard.append)
        assert await adapter.health()
        status = await adapter.status()
        assert status.load is not None
        assert (status.load.running, status.load.slots) == (0, 4)
    assert (await adapter.wait()).failure is FailureClass.STOPPED
    assert [heard[0].stage, heard[-1].stage] == ["start", "canary"]
    assert any("checkpoint shards" in line for line in adapter.logs().tail())


async def test_a_dead_worker_is_a_crash_although_the_exit_code_is_0(tmp_path: Path) -> None:
    adapter = create_adapter(fake_plan("crash"), host="127.0.0.1", base_env=os.environ, cache_dir=tmp_path)
    with pytest.raises(EngineFailed, match="exit code 0, as if all were well") as caught:
        async with adapter:
            await adapter.load(lambda _: None)
    assert caught.value.failure == FailureClass.CRASHED
    assert "VllmWorker-0" in caught.value.message
