"""The in-process engine."""

import asyncio
import gc
import os
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.backends.plans import facts, plan, sample_facts
from xgen_ray.backends.discovery import discover
from xgen_ray.backends.engine import EngineAdapter, EngineLoad, create_adapter
from xgen_ray.backends.llama_cpp_python import Gate
from xgen_ray.errors import EngineFailed, WrongState
from xgen_ray.models.types import ModelTask
from xgen_ray.placement.types import Backend
from xgen_ray.process import FailureClass


def adapter(**options: Any) -> EngineAdapter:
    given: dict[str, Any] = {"context": 512, "slots": 1, "batch": 512, "ubatch": 512, "threads": 1, **options}
    made = plan(Backend.LLAMA_CPP_PYTHON, (), **{"model": sample_facts(), **given})
    return create_adapter(made, host="127.0.0.1", base_env={}, cache_dir=Path("/nowhere"), alias="tiny")


async def test_the_gate_lets_in_only_who_has_the_key_and_counts() -> None:
    inside = []

    async def app(_scope: MutableMapping[str, Any], _receive: Any, send: Any) -> None:
        inside.append(gate.inside)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gate = Gate(app, "k3y")
    transport = httpx.ASGITransport(app=gate)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert (await http.get("/v1/models")).status_code == 401
        assert (await http.get("/docs", headers={"Authorization": "Bearer k3"})).status_code == 401
        assert inside == []
        assert (await http.get("/v1/models", headers={"Authorization": "Bearer k3y"})).status_code == 204
    assert inside == [1]
    assert gate.inside == 0


@pytest.mark.usefixtures("no_llama_cpp_python")
async def test_without_the_package_the_error_says_what_to_install() -> None:
    with pytest.raises(EngineFailed, match="pip install 'llama-cpp-python") as caught:
        async with adapter() as engine:
            await engine.load(lambda _: None)
    assert caught.value.failure == FailureClass.MISSING_LIBRARY


# The package's server drops the queue of a finished stream without closing it.
@pytest.mark.filterwarnings("ignore:.*MemoryObjectReceiveStream")
@pytest.mark.engine
async def test_loads_chats_and_stops() -> None:
    engine = adapter()
    stages: list[str] = []
    async with engine:
        address = await engine.load(lambda progress: stages.append(progress.stage))
        assert stages == ["start", "load", "canary"]
        assert await engine.health()
        status = await engine.status()
        assert (status.pid, status.load) == (os.getpid(), EngineLoad(0, 0, 1))
        headers = {"Authorization": f"Bearer {address.key}"}
        async with httpx.AsyncClient(base_url=address.url, headers=headers, timeout=60) as http:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
            answer = await http.post("/v1/chat/completions", json=body)
            async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
                events = [line async for line in stream.aiter_lines() if line.startswith("data:")]
            assert (await http.get("/docs", headers={"Authorization": ""})).status_code == 401
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert events[-1] == "data: [DONE]"
        with pytest.raises(WrongState, match="loaded once"):
            await engine.load(lambda _: None)
        assert not any("llama_graph_n_input_tensors" in line for line in engine.logs().tail(4000))
    assert not await engine.health()
    assert (await asyncio.wait_for(engine.wait(), 5)).failure is FailureClass.STOPPED
    # Here and not in another test.
    gc.collect()


@pytest.mark.engine
async def test_embeds() -> None:
    model = replace(sample_facts(), architecture="llama")
    async with adapter(task=ModelTask.EMBED, pooling="last", model=model) as engine:
        address = await engine.load(lambda _: None)
        headers = {"Authorization": f"Bearer {address.key}"}
        async with httpx.AsyncClient(base_url=address.url, headers=headers, timeout=60) as http:
            answer = await http.post("/v1/embeddings", json={"model": "tiny", "input": "one"})
    assert len(answer.json()["data"][0]["embedding"]) == 576


@pytest.mark.engine
async def test_a_bad_model_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    with pytest.raises(EngineFailed, match="not a GGUF file") as caught:
        async with adapter(model=facts(str(tmp_path / "bad.gguf"))) as engine:
            await engine.load(lambda _: None)
    assert caught.value.failure == FailureClass.BAD_MODEL_FILE


@pytest.mark.engine
async def test_discovery_finds_it_by_trying_it_in_a_child(tmp_path: Path) -> None:
    statuses = await discover(
        path="",
        commands={Backend.LLAMA_SERVER_CPU: ["/nowhere/llama-server"]},
        cache_dir=tmp_path,
        env=os.environ,
    )
    (status,) = [status for status in statuses if status.backend is Backend.LLAMA_CPP_PYTHON]
    assert status.available, status.reason
    assert status.version is not None
