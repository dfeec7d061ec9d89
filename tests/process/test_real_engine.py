"""llama.cpp itself: becomes ready, answers, stops, and its real deaths get the right diagnosis."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from xgen_ray.errors import EngineFailed
from xgen_ray.process import ChildProcess, LaunchSpec, Readiness, free_port

pytestmark = pytest.mark.engine

SCRIPT = Path(__file__).with_name("real_engine.py")
MODEL = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct-q4_1.gguf"


def llama(model: Path, port: int | None = None) -> ChildProcess:
    port = port or free_port()
    spec = LaunchSpec(
        (sys.executable, str(SCRIPT), str(model), str(port)),
        readiness=Readiness(f"http://127.0.0.1:{port}/health", 60.0),
    )
    return ChildProcess(spec, base_env=dict(os.environ))


async def test_the_real_engine_lives_and_stops() -> None:
    async with llama(MODEL) as child:
        await child.wait_ready()
        assert child.spec.readiness is not None
        url = child.spec.readiness.url.replace("/health", "/v1/completions")
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(url, json={"prompt": "Once upon", "max_tokens": 2})
        assert answer.json()["usage"]["completion_tokens"] == 2
    assert child.exit_code == 0
    assert any("model loaded" in line for line in child.logs.tail(1000))


def sample() -> bytes:
    return MODEL.read_bytes()


def unknown_architecture() -> bytes:
    content = sample()
    at = content.index(b"llama", content.index(b"general.architecture"))
    return content[:at] + b"xlama" + content[at + 5 :]


@pytest.mark.parametrize(
    ("make", "failure", "words"),
    [
        (None, "bad_model_file", "cannot be opened"),
        (lambda: b"", "bad_model_file", "not a GGUF file"),
        (lambda: b"\x00\x01\x02\x03" * 5000, "bad_model_file", "not a GGUF file"),
        (lambda: sample()[:20_000_000], "bad_model_file", "damaged or incomplete"),
        (unknown_architecture, "unsupported_architecture", "architecture xlama"),
    ],
    ids=["missing", "empty", "no model", "truncated", "unknown architecture"],
)
async def test_real_deaths_of_bad_files(
    tmp_path: Path, make: Callable[[], bytes] | None, failure: str, words: str
) -> None:
    model = tmp_path / "model.gguf"
    if make is not None:
        model.write_bytes(make())
    async with llama(model) as child:
        with pytest.raises(EngineFailed, match=words) as caught:
            await child.wait_ready()
    assert caught.value.failure == failure


async def test_a_port_that_is_bound_already() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        async with llama(MODEL, other.getsockname()[1]) as child:
            with pytest.raises(EngineFailed) as caught:
                await child.wait_ready()
    assert caught.value.failure == "port_in_use"
