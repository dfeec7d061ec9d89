"""The bundled server is llama.cpp's own, so its answers to bad input are compared with the real ones."""

import hashlib
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.plans import SAMPLE_MODEL
from xgen_ray.backends.bundled_flags import FLAGS, BadFlag, help_text, parse
from xgen_ray.backends.flags import parse_help
from xgen_ray.backends.probe import parse_version
from xgen_ray.process import FailureClass, classify, free_port

PROGRAM = (sys.executable, "-m", "xgen_ray.backends.bundled_llama_server")
ENV = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *argv], capture_output=True, text=True, timeout=60, env=ENV)


def test_parses_values_switches_and_their_opposites() -> None:
    parsed = [
        (flag.names[0], value) for flag, _, value in parse(["-c", "5", "--jinja", "--no-webui", "-fa", "on"])
    ]
    assert parsed == [("-c", "5"), ("--jinja", "on"), ("--ui", "off"), ("-fa", "on")]


def test_a_value_is_a_value_whatever_it_looks_like() -> None:
    ((flag, _, value),) = parse(["--model", "--port"])
    assert (flag.names[1], value) == ("--model", "--port")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nosuch"], "error: invalid argument: --nosuch"),
        (["--port=1"], "error: invalid argument: --port=1"),
        (["--ctx"], "error: invalid argument: --ctx"),
        (["stray"], "error: invalid argument: stray"),
        (["--port"], 'error while handling argument "--port": expected value for argument'),
    ],
)
def test_refuses_in_llama_cpps_words(argv: list[str], words: str) -> None:
    with pytest.raises(BadFlag) as caught:
        parse(argv)
    assert str(caught.value) == words


def test_underscores_are_dashes() -> None:
    ((flag, written, _),) = parse(["--ctx_size", "1"])
    assert (flag.names[1], written) == ("--ctx-size", "--ctx_size")


def test_its_help_lists_every_flag_and_reads_like_llama_cpps() -> None:
    known = parse_help(help_text())
    for flag in FLAGS:
        for name in (*flag.names, *flag.no):
            found = known.find(name)
            assert found is not None
            assert found.value == flag.value
            assert found.env == flag.env
    assert len({name for flag in FLAGS for name in (*flag.names, *flag.no)}) == sum(
        len(flag.names) + len(flag.no) for flag in FLAGS
    )


@pytest.mark.engine
def test_says_what_it_is() -> None:
    assert run("--help").stdout == help_text() + "\n"
    version = run("--version")
    assert (version.returncode, version.stdout) == (0, "")
    assert version.stderr.startswith("version: ")
    # Kept answers are those of the flags that it has now, also where the Python and its wheel stay the same.
    told = parse_version(version.stderr.splitlines())
    assert told is not None
    assert hashlib.sha256(help_text().encode()).hexdigest()[:8] in told
    devices = run("--list-devices")
    assert devices.stdout.splitlines() == ["Available devices:", "  (none)"]


@pytest.fixture
def bad_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "bad.gguf"
    kind: str = request.param
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "other":
        path.write_text("no model at all")
    elif kind == "truncated":
        path.write_bytes(SAMPLE_MODEL.read_bytes()[:3_000_000])
    elif kind == "unknown":
        name, value = b"general.architecture", b"martian"
        path.write_bytes(
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 1)
            + struct.pack("<Q", len(name))
            + name
            + struct.pack("<IQ", 8, len(value))
            + value
        )
    return path


@pytest.mark.engine
@pytest.mark.parametrize(
    ("bad_model", "failure", "words"),
    [
        ("missing", FailureClass.BAD_MODEL_FILE, "failed to open GGUF file"),
        ("empty", FailureClass.BAD_MODEL_FILE, "failed to read magic"),
        ("other", FailureClass.BAD_MODEL_FILE, "invalid magic characters"),
        ("truncated", FailureClass.BAD_MODEL_FILE, "is not within the file bounds"),
        ("unknown", FailureClass.UNSUPPORTED_ARCHITECTURE, "unknown model architecture: 'martian'"),
    ],
    indirect=["bad_model"],
)
def test_a_bad_model_ends_it_with_1_and_llama_cpps_words(
    bad_model: Path, failure: FailureClass, words: str
) -> None:
    ended = run("-m", str(bad_model), "--port", str(free_port()), "-t", "1")
    assert ended.returncode == 1
    assert words in ended.stderr
    assert classify(ended.returncode, ended.stderr.splitlines()).failure is failure


@pytest.mark.engine
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--nosuch",), "error: invalid argument: --nosuch"),
        (("-m", "x", "--split-mode", "diagonal"), "invalid value"),
        (("-m", "x", "--device", "Vulkan0"), "invalid device: Vulkan0"),
        (("-m", "x", "--tensor-split", "3,x"), 'error while handling argument "--tensor-split"'),
        (("-m", "x", "--port", "seven"), 'error while handling argument "--port"'),
        (("-m", "x", "--chat-template-file", "/nowhere"), "No such file"),
        (("-m", "x", "--chat-template-kwargs", "[]"), "expected a JSON object"),
        ((), "--model is required"),
    ],
)
def test_a_bad_command_line_ends_it_with_1(argv: tuple[str, ...], words: str) -> None:
    ended = run(*argv)
    assert ended.returncode == 1
    assert words in ended.stderr


@pytest.mark.engine
@pytest.mark.parametrize(
    ("ready", "code"), [(True, 0), (False, -signal.SIGTERM)], ids=["when ready: 0", "loading: at once"]
)
def test_sigterm_ends_it_promptly(ready: bool, code: int) -> None:
    argv = [*PROGRAM, "-m", str(SAMPLE_MODEL), "--port", str(free_port()), "-c", "256", "-t", "1"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=ENV) as server:
        assert server.stderr is not None
        awaited = "serving on" if ready else "loading model"
        for line in server.stderr:
            if awaited in line:
                break
        server.terminate()
        assert server.wait(timeout=5) == code
