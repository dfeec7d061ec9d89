"""vLLM itself, its CPU build, with the sample model as a Hugging Face folder."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio

from tests.backends.plans import plan
from tests.backends.vllm_standin import HF_MODEL, REAL_VLLM, why_no_vllm
from tests.stack import command_of, wait_until
from xgen_ray.backends import EngineAdapter, EngineAddress, create_adapter
from xgen_ray.backends.probe import AnswerCache
from xgen_ray.backends.vllm_ask import ask_build
from xgen_ray.models import inspect
from xgen_ray.placement.types import Backend, Plan
from xgen_ray.process import FailureClass
from xgen_ray.schema import Progress

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    # It takes most of a minute to start, and several on a busy machine.
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_no_vllm()), reason=why_no_vllm() or "it is there"),
]
PYTHON = (str(REAL_VLLM / "bin" / "python"),)
COMMAND = (*PYTHON, "-m", "vllm.entrypoints.openai.api_server")
# As of a service that may write into its own folder of the cache, and not beside it.
ENVIRONMENT = {**os.environ, "XDG_CACHE_HOME": "/proc/not-writable"}
NAME = "team/tiny"
QUESTION = {"model": NAME, "messages": [{"role": "user", "content": "Tell a story."}], "temperature": 0}


def made() -> Plan:
    facts = inspect(HF_MODEL)
    return plan(Backend.VLLM_CPU, COMMAND, facts, context=2048, slots=4, threads=1, enforce_eager=True)


class Running:
    """One loaded engine for all tests here; the last of them kills its worker."""

    def __init__(self, adapter: EngineAdapter, address: EngineAddress, heard: list[Progress]) -> None:
        self.adapter = adapter
        self.heard = heard
        self.http = httpx.AsyncClient(
            base_url=address.url,
            headers={"Authorization": f"Bearer {address.key}"},
            timeout=120,
            trust_env=False,
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(engine_answers: Path) -> AsyncIterator[Running]:
    heard: list[Progress] = []
    adapter = create_adapter(
        made(),
        host="127.0.0.1",
        base_env=ENVIRONMENT,
        cache_dir=engine_answers,
        alias=NAME,
    )
    async with adapter:
        running = Running(adapter, await adapter.load(heard.append), heard)
        async with running.http:
            yield running


async def test_it_says_that_it_runs_on_the_cpu(engine_answers: Path) -> None:
    build = await ask_build(PYTHON, ENVIRONMENT, AnswerCache(engine_answers / "engines"))
    assert (build.works, build.platform, build.version) == (True, "CpuPlatform", "0.29.0")


async def test_what_it_keeps_is_in_the_folder_that_it_was_given(
    running: Running, engine_answers: Path
) -> None:
    assert running.adapter.is_loaded
    assert list((engine_answers / "vllm").rglob("*.json"))


async def test_it_loads_and_tells_how_far_it_is(running: Running) -> None:
    messages = [progress.message for progress in running.heard]
    assert messages[0] == "starting vllm-cpu"
    assert "making room for requests" in messages
    assert messages[-1] == "computing a first answer"
    weights = [item.done_bytes for item in running.heard if item.done_bytes]
    assert weights
    assert weights[-1] == (HF_MODEL / "model.safetensors").stat().st_size - _header_bytes()
    assert await running.adapter.health()


def _header_bytes() -> int:
    """What of the file is not weights: the length, and the header of that length."""
    with (HF_MODEL / "model.safetensors").open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


async def test_it_chats_under_its_name_and_for_its_key_alone(running: Running) -> None:
    answer = await running.http.post("/v1/chat/completions", json={**QUESTION, "max_tokens": 4})
    assert answer.status_code == 200
    assert answer.json()["model"] == NAME
    assert answer.json()["usage"]["completion_tokens"] == 4
    other = await running.http.post("/v1/chat/completions", json={**QUESTION, "model": "other"})
    assert other.status_code == 404
    closed = await running.http.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    assert closed.status_code == 401
    page = await running.http.get("/docs")
    assert page.status_code in (401, 404)


async def test_who_has_no_key_gets_health_alone(running: Running) -> None:
    """By itself vLLM asks for it under a few prefixes, and computes at /invocations for anybody."""
    page = {"Origin": "https://elsewhere.example"}
    async with httpx.AsyncClient(base_url=running.http.base_url, timeout=120, trust_env=False) as stranger:
        for method, path in (
            ("POST", "/invocations"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/tokenize"),
            ("POST", "/pause"),
            ("OPTIONS", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/ping"),
            ("GET", "/docs"),
        ):
            body = QUESTION if method == "POST" else None
            assert (await stranger.request(method, path, json=body)).status_code == 401, path
        assert (await stranger.get("/health", headers=page)).status_code == 200
    known = await running.http.post("/invocations", json={**QUESTION, "max_tokens": 2}, headers=page)
    assert known.json()["usage"]["completion_tokens"] == 2
    assert "access-control-allow-origin" not in known.headers
    assert (await running.http.get("/metrics")).status_code == 200


async def test_a_model_that_generates_refuses_to_embed(running: Running) -> None:
    answer = await running.http.post("/v1/embeddings", json={"input": "Hi"})
    assert answer.status_code in (400, 404)


async def test_it_streams_and_tells_its_load_meanwhile(running: Running) -> None:
    # Long enough that it is still at work when it is asked.
    body = {**QUESTION, "max_tokens": 200, "ignore_eos": True, "stream": True}
    events, seen = 0, 0
    async with running.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            events += line.startswith("data: {")
            if events == 2 and not seen:
                load = (await running.adapter.status()).load
                assert load is not None
                assert load.slots == 4
                assert load.cache_used is not None
                seen = load.running
    assert events >= 24
    assert seen == 1
    assert await running.adapter.trouble(60) is None


async def test_a_killed_worker_is_an_error_in_the_stream_and_a_crash(running: Running) -> None:
    """The last one: nothing is left of the engine afterwards."""
    pid = (await running.adapter.status()).pid
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    worker = next(process for process in family if "Worker" in " ".join(command_of(process)))
    body = {**QUESTION, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    errors = []
    async with running.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                if worker.is_running():
                    worker.kill()
                told = json.loads(line.removeprefix("data: "))
                errors += [told["error"]["code"]] if "error" in told else []
    assert errors == [500]
    async with asyncio.timeout(60):
        failure = await running.adapter.wait()
    assert failure.failure in (FailureClass.CRASHED, FailureClass.KILLED)
    assert not running.adapter.is_loaded
    assert not any(process.is_running() for process in family)


OWNER = """
import asyncio, sys
from pathlib import Path
from tests.backends.test_real_vllm import ENVIRONMENT, made
from xgen_ray.backends import create_adapter
async def main():
    adapter = create_adapter(made(), host="127.0.0.1", base_env=ENVIRONMENT, cache_dir=Path(sys.argv[1]))
    async with adapter:
        await adapter.load(lambda _: None)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@contextmanager
def owner(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that owns an engine; killed with everything below it at the end."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_nothing_outlives_an_owner_that_is_killed(engine_answers: Path) -> None:
    with owner(engine_answers) as process:

        def workers() -> list[psutil.Process]:
            below = psutil.Process(process.pid).children(recursive=True)
            return below if any("EngineCore" in " ".join(command_of(each)) for each in below) else []

        family = await asyncio.to_thread(wait_until, workers, 300, "vLLM has started its engine")
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(
            wait_until, lambda: not any(map(psutil.Process.is_running, family)), 20, "all are gone"
        )
