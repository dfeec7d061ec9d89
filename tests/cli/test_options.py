"""Engine options from the command line, by table."""

from pathlib import Path
from typing import Any

import pytest

from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.cli.options import absolute, engine_commands, engine_options, load_request, option_list
from xgen_ray.placement.types import Backend, EngineOptions


@pytest.mark.parametrize(
    ("pair", "field", "value"),
    [
        ("backend=llama-server-cpu", "backend", Backend.LLAMA_SERVER_CPU),
        ("context=4096", "context", 4096),
        ("flash_attention=true", "flash_attention", True),
        ("flash-attention=off", "flash_attention", False),
        ("memory_lock=0", "memory_lock", False),
        ("gpu_memory_utilization=0.9", "gpu_memory_utilization", 0.9),
        ("split_mode=layer", "split_mode", "layer"),
        ("gpus=0,2", "gpus", (0, 2)),
        ("gpus=GPU-1234,1", "gpus", ("GPU-1234", 1)),
        ("gpus=none", "gpus", ()),
        ("dtype=bfloat16", "dtype", "bfloat16"),
        (
            "extra_args=--no-warmup --seed 3 --x 'a b'",
            "extra_args",
            ("--no-warmup", "--seed", "3", "--x", "a b"),
        ),
        ("chat_template={{ a = b }}", "chat_template", "{{ a = b }}"),
    ],
)
def test_a_pair_becomes_a_typed_option(pair: str, field: str, value: object) -> None:
    options = engine_options(pairs=[pair])
    assert getattr(options, field) == value
    assert options.model_fields_set == {field}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"pairs": ["context"]}, "NAME=VALUE"),
        ({"pairs": ["contex=1"]}, "no engine option 'contex'"),
        ({"pairs": ["context=0"]}, "greater than or equal to 1"),
        ({"pairs": ["context=many"]}, "got 'many'"),
        ({"pairs": ["split_mode=diagonal"]}, "split_mode"),
        ({"pairs": ["extra_args='open"]}, "No closing quotation"),
        ({"pairs": ["slots=1", "slots=2"]}, "slots is given twice"),
        ({"slots": 2, "pairs": ["slots=2"]}, "slots is given twice"),
        ({"gpus": ["0"], "pairs": ["gpus=1"]}, "gpus is given twice"),
        ({"slots": 5000}, "slots"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint) as caught:
        engine_options(**arguments)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_command_of_an_engine_is_cut_into_words_as_a_shell_does() -> None:
    commands = engine_commands(["vllm-cuda='/opt/my vllm/bin/python' -X dev"])
    assert commands == {Backend.VLLM_CUDA: ("/opt/my vllm/bin/python", "-X", "dev")}
    with pytest.raises(CommandError, match=r"--engine vllm-cuda .* No closing quotation") as caught:
        engine_commands(['vllm-cuda=/opt/x "y'])
    assert caught.value.exit_code is ExitCode.USAGE


def test_flags_and_pairs_go_together() -> None:
    options = engine_options(
        backend=Backend.VLLM_CUDA, context=1, slots=2, gpus=["0,1", "GPU-9"], pairs=["dtype=half"]
    )
    assert options == EngineOptions(
        backend=Backend.VLLM_CUDA, context=1, slots=2, gpus=(0, 1, "GPU-9"), dtype="half"
    )


def test_nothing_asked_for_is_nothing_set() -> None:
    assert engine_options() == EngineOptions()


def test_local_paths_become_absolute_and_names_of_the_hub_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("m.gguf") == str(tmp_path / "m.gguf")
    assert absolute("./a/../m.gguf") == str(tmp_path / "m.gguf")
    assert absolute("/models/m.gguf") == "/models/m.gguf"
    assert absolute("~/m.gguf") == "/home/someone/m.gguf"
    assert absolute("hf:org/name:m.gguf") == "hf:org/name:m.gguf"
    assert absolute("https://example.com/m.gguf") == "https://example.com/m.gguf"


def test_a_bad_name_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(CommandError, match="--name"):
        load_request("m.gguf", name="no spaces please")


def test_the_help_lists_every_option_within_a_terminals_width() -> None:
    text = option_list()
    for name in EngineOptions.model_fields:
        assert f"  {name}" in text
    assert max(len(line) for line in text.splitlines()) <= 78
