"""What passes when all is well: bytes untouched, the right headers and no others."""

import asyncio
import json

import httpx
import pytest

from tests.api.stack import Stack, stack
from tests.api.support import DONE, ENGINE_KEY, NO_TLS, Exchange, answer, event, served

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json; charset=utf-8"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_body_reaches_the_engine_byte_for_byte(plain: Stack) -> None:
    body = (
        b'{ "model":"m",\n "messages":[{"role":"user","content":"\\u00e9"}], "x": 1.50, "seed":12345678901 }'
    )
    reply = await plain.client.post("/v1/chat/completions", content=body, headers=JSON)
    assert reply.status_code == 200
    assert plain.engine.requests[0].body == body


async def test_what_models_there_are_is_not_guessed() -> None:
    async with stack() as running:
        running.dispatcher.uninformed = True
        for reply in (
            await running.client.get("/v1/models"),
            await running.client.get("/v1/models/nope"),
            await running.client.post("/v1/chat/completions", json={**CHAT, "model": "nope"}),
        ):
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "8")
        assert (await running.client.get("/health")).status_code == 200


async def test_a_stream_arrives_byte_for_byte(plain: Stack) -> None:
    reply = await plain.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.content == event("one ") + event("two ") + event("three") + DONE
    assert plain.dispatcher.outcomes == [("r1", "ok")]


async def test_each_event_passes_as_soon_as_the_engine_sends_it() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def stepwise(exchange: Exchange) -> None:
        await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
        for number, gate in enumerate(gates):
            await gate.wait()
            await exchange.chunk(event(str(number)))
        await exchange.send(b"0\r\n\r\n")

    async with stack(stepwise) as running, asyncio.timeout(5):
        gates[0].set()
        async with running.client.stream("POST", "/v1/chat/completions", json=CHAT) as reply:
            parts = reply.aiter_raw()
            for number in range(3):
                assert await anext(parts) == event(str(number))
                if number < 2:
                    gates[number + 1].set()


async def test_the_engine_sees_its_own_key_and_only_listed_headers(plain: Stack) -> None:
    sent = {
        "authorization": "Bearer the-clients-key",
        "x-api-key": "the-clients-key",
        "cookie": "session=1",
        "x-session-id": "s-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-request-id": "mine-1",
        "accept-encoding": "gzip",
    }
    await plain.client.post("/v1/chat/completions", json=CHAT, headers=sent)
    seen = plain.engine.requests[0].headers
    assert seen["authorization"] == f"Bearer {ENGINE_KEY}"
    assert seen["x-session-id"] == "s-1"
    assert seen["traceparent"] == sent["traceparent"]
    assert seen["x-request-id"] == "mine-1"
    assert seen.keys().isdisjoint({"cookie", "x-api-key", "accept-encoding", "user-agent"})


async def test_the_client_sees_who_answered_but_not_the_engines_own_headers() -> None:
    extra = (
        "set-cookie: a=b",
        "access-control-allow-origin: *",
        "cache-control: no-cache",
        "x-powered-by: x",
    )
    async with stack(answer(200, b'{"a":1}', "application/json", *extra)) as running:
        reply = await running.client.post("/v1/chat/completions", json=CHAT)
    headers = reply.headers
    assert reply.content == b'{"a":1}'
    assert headers["x-xgen-replica"] == "r1"
    assert headers["x-xgen-backend"] == "llama-server-cpu"
    assert headers["cache-control"] == "no-cache"
    assert headers["content-length"] == "7"
    assert "stand-in" not in str(headers)
    assert headers.keys().isdisjoint({"set-cookie", "access-control-allow-origin", "x-powered-by"})
    assert f":{running.engine.port}" not in str(headers)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("abc-1_2.3:4", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ("a\tb", False),
        ("", False),
    ],
)
async def test_a_sane_request_id_is_kept_and_any_other_replaced(plain: Stack, sent: str, kept: bool) -> None:
    reply = await plain.client.get("/v1/models", headers={"x-request-id": sent})
    given = reply.headers["x-request-id"]
    assert (given == sent) is kept
    if not kept:
        assert given.startswith("req_")


async def test_an_empty_answer_passes(plain: Stack) -> None:
    plain.engine.plays.append(answer(200, b""))
    reply = await plain.client.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.content) == (200, b"")


async def test_a_large_body_and_a_large_answer_pass(plain: Stack) -> None:
    text = "x" * 1_900_000
    plain.engine.plays.append(answer(200, json.dumps({"text": text}).encode()))
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    reply = await plain.client.post("/v1/chat/completions", json=body)
    assert reply.json() == {"text": text}
    assert plain.engine.requests[0].json() == body


async def test_connections_to_the_engine_are_reused(plain: Stack) -> None:
    for _ in range(5):
        await plain.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert len({seen.connection for seen in plain.engine.requests}) == 1


async def test_a_hundred_at_once_each_get_their_own_answer(plain: Stack) -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.whole(200, exchange.seen.body)

    plain.engine.otherwise = echo

    async def ask(number: int) -> bool:
        body = {**CHAT, "user": f"user-{number}"}
        reply = await client.post("/v1/chat/completions", json=body)
        return bool(reply.json() == body)

    async with httpx.AsyncClient(
        base_url=plain.url, verify=NO_TLS, timeout=60, limits=httpx.Limits(max_connections=None)
    ) as client:
        assert all(await asyncio.gather(*(ask(number) for number in range(100))))
    assert plain.dispatcher.outcomes == [("r1", "ok")] * 100


@pytest.mark.parametrize(
    ("path", "upstream", "task", "body"),
    [
        ("/v1/completions", "/v1/completions", "generate", {"prompt": "a"}),
        ("/v1/responses", "/v1/responses", "generate", {"input": "a"}),
        ("/v1/messages", "/v1/messages", "generate", {"messages": CHAT["messages"], "max_tokens": 5}),
        (
            "/v1/messages/count_tokens",
            "/v1/messages/count_tokens",
            "generate",
            {"messages": CHAT["messages"]},
        ),
        ("/v1/embeddings", "/v1/embeddings", "embed", {"input": ["a", "b"]}),
        ("/v1/embeddings/", "/v1/embeddings", "embed", {"input": [1, 2]}),
        ("/v1/rerank", "/v1/rerank", "rerank", {"query": "a", "documents": ["b"]}),
        ("/rerank", "/v1/rerank", "rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/reranking", "/v1/rerank", "embed", {"query": "a", "documents": ["b"]}),
        ("/v1/score", "/v1/score", "rerank", {"text_1": "a", "text_2": ["b"]}),
        ("/score", "/v1/score", "embed", {"queries": "a", "documents": ["b"]}),
        ("/detokenize", "/detokenize", "embed", {"tokens": [1]}),
        ("/v1/detokenize", "/detokenize", "generate", {"tokens": []}),
        ("/tokenize", "/tokenize", "generate", {"messages": CHAT["messages"]}),
    ],
)
async def test_every_route_reaches_its_place_in_the_engine(
    plain: Stack, path: str, upstream: str, task: str, body: dict[str, object]
) -> None:
    plain.dispatcher.models = [served("m", task)]
    reply = await plain.client.post(path, json={"model": "m", **body})
    assert reply.status_code == 200
    seen = plain.engine.requests[0]
    assert (seen.method, seen.path) == ("POST", upstream)
    assert seen.json() == {"model": "m", **body}


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ('{"model":"m","content":"h\\"i"}', {"model": "m", "content": 'h"i', "prompt": 'h"i'}),
        ('{"model":"m","prompt":"hi" } ', {"model": "m", "content": "hi", "prompt": "hi"}),
        ('{"model":"m","prompt":"a","content":"b"}', {"model": "m", "content": "b", "prompt": "a"}),
    ],
)
async def test_tokenize_speaks_both_engines_vocabulary(plain: Stack, sent: str, got: dict[str, str]) -> None:
    await plain.client.post("/v1/tokenize", content=sent, headers=JSON)
    assert plain.engine.requests[0].json() == got


async def test_models_are_listed_as_openai_lists_them(plain: Stack) -> None:
    plain.dispatcher.models = [served("m"), served("org/Some-Model:q4", "embed", ready=False)]
    listed = (await plain.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["m", "org/Some-Model:q4"]
    one = {
        "id": "org/Some-Model:q4",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "xgen-ray",
        "task": "embed",
        "ready": False,
        "backend": "llama-server-cpu",
        "max_model_len": 2048,
        "pools": [],
    }
    assert listed["data"][1] == one
    for path in ("/v1/models/org/Some-Model:q4", "/v1/models/org%2FSome-Model%3Aq4"):
        assert (await plain.client.get(path)).json() == one


async def test_health_needs_nothing(plain: Stack) -> None:
    assert (await plain.client.get("/health")).json() == {"status": "ok"}
    head = await plain.client.head("/health")
    assert (head.status_code, head.content) == (200, b"")
