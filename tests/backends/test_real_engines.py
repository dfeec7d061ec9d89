"""Real engines with the sample model."""

import os
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.backends.plans import facts, plan, sample_facts
from xgen_ray.backends.discovery import BUNDLED
from xgen_ray.backends.engine import EngineAddress, create_adapter
from xgen_ray.errors import EngineFailed
from xgen_ray.models.types import ModelTask
from xgen_ray.placement.types import Plan
from xgen_ray.process import FailureClass
from xgen_ray.schema import Progress

pytestmark = pytest.mark.engine


def small(command: tuple[str, ...] = BUNDLED, **options: Any) -> Plan:
    given: dict[str, Any] = {"context": 512, "slots": 2, "batch": 512, "ubatch": 512, "threads": 1, **options}
    return plan(command=command, model=sample_facts(), **given)


def client(address: EngineAddress) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {address.key}"}
    return httpx.AsyncClient(base_url=address.url, headers=headers, timeout=60, trust_env=False)


async def test_the_bundled_server_loads_chats_and_stops_again_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        engine = create_adapter(
            small(), host="127.0.0.1", base_env=os.environ, cache_dir=tmp_path, alias="team/tiny"
        )
        heard: list[Progress] = []
        async with engine:
            address = await engine.load(heard.append)
            assert await engine.health()
            status = await engine.status()
            load = status.load
            assert load is not None
            assert (load.running, load.waiting, load.slots) == (0, 0, 2)
            # The canary's.
            assert load.generated_tokens == 1
            async with client(address) as http:
                answer = await http.post(
                    "/v1/chat/completions",
                    json={"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4},
                )
                slots = (await http.get("/slots")).json()
                closed = await http.get("/v1/models", headers={"Authorization": "Bearer wrong"})
                page = await http.get("/")
            body = answer.json()
            assert answer.status_code == 200
            assert body["model"] == "team/tiny"
            assert body["usage"]["completion_tokens"] == 4
            assert [slot["n_ctx"] for slot in slots] == [512, 512]
            assert closed.status_code == 401
            assert page.status_code == 404
        assert status.pid is not None
        assert not psutil.pid_exists(status.pid)
        assert (await engine.wait()).failure is FailureClass.STOPPED
        assert [progress.stage for progress in heard][-1] == "canary"


async def test_the_bundled_server_embeds(tmp_path: Path) -> None:
    made = small(task=ModelTask.EMBED, pooling="mean")
    async with create_adapter(made, host="127.0.0.1", base_env=os.environ, cache_dir=tmp_path) as engine:
        address = await engine.load(lambda _: None)
        async with client(address) as http:
            answer = await http.post("/v1/embeddings", json={"model": "m", "input": ["one", "two"]})
            rerank = await http.post("/v1/rerank", json={"query": "one", "documents": ["two"]})
    assert [len(item["embedding"]) for item in answer.json()["data"]] == [576, 576]
    assert rerank.status_code == 501


async def test_every_option_is_taken(tmp_path: Path) -> None:
    made = small(
        flash_attention=True,
        fit=False,
        kv_cache_type="q8_0",
        prompt_cache_bytes=2**24,
        chat_template="{{ messages[0]['content'] }}",
        extra_args=("--top-k", "3", "--no-warmup", "--seed", "-1"),
    )
    async with create_adapter(made, host="127.0.0.1", base_env=os.environ, cache_dir=tmp_path) as engine:
        address = await engine.load(lambda _: None)
        async with client(address) as http:
            prompt = await http.post(
                "/apply-template", json={"messages": [{"role": "user", "content": "just this"}]}
            )
            props = (await http.get("/props")).json()
    assert prompt.json() == {"prompt": "just this"}
    assert props["default_generation_settings"]["params"]["top_k"] == 3


async def test_a_model_that_is_gone_is_told_in_words(tmp_path: Path) -> None:
    made = plan(command=BUNDLED, model=facts(str(tmp_path / "gone.gguf")))
    with pytest.raises(EngineFailed, match=r"gone\.gguf cannot be opened") as caught:
        async with create_adapter(made, host="127.0.0.1", base_env=os.environ, cache_dir=tmp_path) as engine:
            await engine.load(lambda _: None)
    assert caught.value.failure == FailureClass.BAD_MODEL_FILE
