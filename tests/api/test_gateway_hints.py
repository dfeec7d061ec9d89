"""What the gateway tells the dispatcher of a request and its answer, and the client of the choice."""

import json

import httpx
import pytest

from tests.api.stack import Stack, stack
from tests.api.support import COMPLETION, InMemoryDispatcher, StandInEngine, served, serving
from xgen_ray.api.gateway import Gateway
from xgen_ray.api.keys import ApiKeys
from xgen_ray.schema import RequestHints

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def hints_of(running: Stack, body: dict[str, object], **headers: str) -> RequestHints:
    await running.client.post("/v1/chat/completions", json=body, headers=headers)
    return running.dispatcher.hints[-1]


async def test_a_request_is_described() -> None:
    async with stack() as running:
        body = {**CHAT, "stream": True, "max_tokens": 7}
        hints = await hints_of(running, body, **{"x-session-id": "s-1", "x-xgen-pool": "gpus"})
        assert (hints.session, hints.pool, hints.max_tokens) == ("s-1", "gpus", 7)
        assert (hints.reads, hints.generates, hints.streamed) == (True, True, True)
        assert json.loads(hints.body) == body


@pytest.mark.parametrize(
    ("fields", "headers", "session"),
    [
        ({}, {}, None),
        ({"user": "u"}, {}, "u"),
        ({"user": "u", "prompt_cache_key": "k"}, {}, "k"),
        ({"user": 7, "prompt_cache_key": ""}, {}, None),
        ({"prompt_cache_key": "k"}, {"x-session-id": "s"}, "s"),
    ],
)
async def test_what_belongs_together_has_several_names(
    fields: dict[str, object], headers: dict[str, str], session: str | None
) -> None:
    async with stack() as running:
        assert (await hints_of(running, {**CHAT, **fields}, **headers)).session == session


@pytest.mark.parametrize(
    ("path", "task", "fields", "reads", "generates"),
    [
        ("/v1/completions", "generate", {"prompt": "a"}, True, True),
        ("/v1/embeddings", "embed", {"input": "a"}, True, False),
        ("/v1/rerank", "rerank", {"query": "a", "documents": ["b"]}, True, False),
        ("/v1/score", "rerank", {"text_1": "a", "text_2": "b"}, True, False),
        ("/tokenize", "generate", {"content": "a"}, False, False),
        ("/v1/messages/count_tokens", "generate", {"messages": CHAT["messages"]}, False, False),
    ],
)
async def test_the_kind_of_work_is_told(
    path: str, task: str, fields: dict[str, object], reads: bool, generates: bool
) -> None:
    async with stack() as running:
        running.dispatcher.models = [served("m", task)]
        await running.client.post(path, json={"model": "m", "stream": True, **fields})
        (hints,) = running.dispatcher.hints
        assert (hints.reads, hints.generates, hints.streamed) == (reads, generates, generates)


async def test_what_was_answered_is_counted_in_events_or_in_bytes() -> None:
    async with stack() as running:
        for stream in (True, False):
            await running.client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        assert running.dispatcher.begun == ["r1", "r1"]
        assert running.dispatcher.units == [4, len(json.dumps(COMPLETION)) // 4]


async def test_the_client_sees_which_pool_answered() -> None:
    async with stack() as running, StandInEngine().running() as second:
        await running.dispatcher.add(second.url, "r2", pool="gpus")
        first = await running.client.post("/v1/chat/completions", json=CHAT)
        del running.dispatcher.replicas["m"][0]
        then = await running.client.post("/v1/chat/completions", json=CHAT)
        assert "x-xgen-pool" not in first.headers
        assert (then.headers["x-xgen-pool"], then.headers["x-xgen-replica"]) == ("gpus", "r2")


@pytest.mark.parametrize(("own", "count"), [(True, 1), (False, 0)])
async def test_the_request_id_is_left_to_a_server_that_answers_it(own: bool, count: int) -> None:
    gateway = Gateway(InMemoryDispatcher(), ApiKeys(), answers_request_id=own)
    async with serving(gateway) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/v1/models", "/nowhere"):
            reply = await client.get(path, headers={"x-request-id": "mine"})
            assert reply.headers.get_list("x-request-id") == ["mine"] * count
