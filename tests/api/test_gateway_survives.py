"""Engines that refuse, load, break off or lie: what is mended unseen, and what the client is told."""

import asyncio
import contextlib
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai import APIError, AsyncOpenAI

from tests.api.stack import LIMITS, Stack, stack
from tests.api.support import (
    COMPLETION,
    ENGINE_KEY,
    Exchange,
    Play,
    StandInEngine,
    answer,
    die,
    event,
    loading,
    served,
)
from xgen_ray.api.gateway import GatewayLimits
from xgen_ray.api.relay import RetryLimits

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def waiting(seconds: float) -> GatewayLimits:
    return replace(LIMITS, retry=RetryLimits(ready_wait_s=seconds))


def lively(seconds: float) -> GatewayLimits:
    return replace(LIMITS, retry=RetryLimits(ready_wait_s=seconds, sign_of_life_s=0.1))


async def ask(running: Stack, **fields: object) -> httpx.Response:
    return await running.client.post("/v1/chat/completions", json={**CHAT, **fields})


async def test_a_refused_connection_goes_to_the_next_replica(silent_port: int) -> None:
    async with stack() as running:
        await running.dispatcher.add(f"http://127.0.0.1:{silent_port}", "dead")
        running.dispatcher.replicas["m"].reverse()
        reply = await ask(running)
        assert reply.json() == COMPLETION
        assert reply.headers["x-xgen-replica"] == "r1"
        assert running.dispatcher.outcomes == [("dead", "failed"), ("r1", "ok")]


async def headers_only(exchange: Exchange) -> None:
    await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
    exchange.drop()


async def half_a_header(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-ty")
    exchange.drop()


async def no_http(exchange: Exchange) -> None:
    await exchange.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    exchange.close()


async def closes(exchange: Exchange) -> None:
    exchange.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", [die, closes, headers_only, half_a_header, no_http])
async def test_an_engine_that_dies_before_the_first_byte_is_replaced(fault: Play, stream: bool) -> None:
    async with stack(otherwise=fault) as running, StandInEngine().running() as second:
        await running.dispatcher.add(second.url, "r2")
        reply = await ask(running, stream=stream)
        assert reply.headers["x-xgen-replica"] == "r2"
        assert reply.content.endswith(b"data: [DONE]\n\n") if stream else reply.json() == COMPLETION
        assert running.dispatcher.begun == ["r2"]
        assert running.dispatcher.outcomes == [("r1", "failed"), ("r2", "ok")]


async def test_a_request_that_stops_every_engine_is_given_up() -> None:
    async with stack(otherwise=die) as running, StandInEngine(otherwise=die).running() as second:
        await running.dispatcher.add(second.url, "r2")
        await running.dispatcher.add(running.engine.url, "r3")
        reply = await ask(running)
        error = reply.json()["error"]
        assert (reply.status_code, error["type"]) == (502, "engine_error")
        assert "2 broke off" in error["message"]
        assert "may be what stops them" in error["message"]
        assert running.dispatcher.outcomes == [("r1", "failed"), ("r2", "failed")]


async def test_a_request_that_kills_engines_kills_no_more_for_connections_that_were_kept() -> None:
    """The fresh connection is refused, since the engine has died: at work, not before."""
    async with contextlib.AsyncExitStack() as opened:
        running = await opened.enter_async_context(stack())
        engines = [running.engine]
        for name in ("r2", "r3"):
            engines.append(await opened.enter_async_context(StandInEngine().running()))
            await running.dispatcher.add(engines[-1].url, name)
        every = running.dispatcher.replicas["m"]
        for engine, endpoint in zip(engines, every, strict=True):
            running.dispatcher.replicas["m"] = [endpoint]
            await ask(running)
            engine.otherwise = engine.die
        running.dispatcher.replicas["m"] = every
        running.dispatcher.outcomes.clear()
        reply = await ask(running)
        assert reply.status_code == 502
        assert "2 broke off" in reply.json()["error"]["message"]
        assert running.dispatcher.outcomes == [("r1", "failed"), ("r2", "failed")]
        assert [len(engine.requests) for engine in engines] == [2, 2, 1]


async def test_the_same_replica_is_tried_again_when_there_is_no_other() -> None:
    async with stack(die) as running:
        assert (await ask(running)).json() == COMPLETION
        assert running.dispatcher.outcomes == [("r1", "failed"), ("r1", "ok")]


async def test_a_stale_kept_connection_is_not_taken_for_a_dead_engine() -> None:
    async with stack() as running:
        await ask(running)
        running.engine.plays.append(closes)  # as an engine whose idle timer fires on our reuse
        assert (await ask(running)).json() == COMPLETION
        assert [seen.connection for seen in running.engine.requests] == [1, 1, 2]
        assert running.dispatcher.outcomes == [("r1", "ok")] * 2


async def test_an_engine_that_is_loading_is_asked_again_until_it_is_ready() -> None:
    async with stack(loading, loading) as running:
        assert (await ask(running)).json() == COMPLETION
        assert running.dispatcher.outcomes == [("r1", "not_ready"), ("r1", "not_ready"), ("r1", "ok")]


@pytest.mark.parametrize(
    ("status", "outcome"), [(429, "full"), (503, "not_ready"), (400, "client_error"), (500, "failed")]
)
async def test_how_a_request_ended_is_told_apart(status: int, outcome: str) -> None:
    async with stack(answer(status, openai_shape())) as running:
        await ask(running)
        assert running.dispatcher.outcomes[0] == ("r1", outcome)
        assert running.dispatcher.without_engine == []


@pytest.mark.parametrize(
    ("why", "status", "counted"),
    [
        ("refused", 400, []),
        ("failed", 502, [("m", "unserved")]),
        ("lost", 503, [("m", "unserved")]),
    ],
)
async def test_a_request_without_an_engine_is_counted_unless_it_is_wrong_itself(
    why: str, status: int, counted: list[tuple[str, str]]
) -> None:
    async with stack() as running:
        getattr(running.dispatcher, why)["m"] = "no engine, and here is why"
        assert (await ask(running)).status_code == status
        assert running.dispatcher.without_engine == counted


async def test_a_request_for_what_is_not_served_is_not_counted() -> None:
    async with stack() as running:
        running.dispatcher.models.clear()
        assert (await ask(running)).status_code == 404
        assert running.dispatcher.without_engine == []


async def test_while_one_engine_loads_another_answers() -> None:
    async with stack(otherwise=loading) as running, StandInEngine().running() as second:
        await running.dispatcher.add(second.url, "r2")
        reply = await ask(running)
        assert reply.headers["x-xgen-replica"] == "r2"


async def test_a_model_that_is_not_ready_in_time_is_a_503_with_a_time_to_come_back() -> None:
    async with stack(otherwise=loading, limits=waiting(0.6)) as running:
        reply = await ask(running)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "8")
        error = reply.json()["error"]
        assert error["code"] == "not_ready"
        assert error["message"] == "m is still loading; gave up after 0.6 s. Try again."


async def test_a_stream_that_waits_has_signs_of_life() -> None:
    async with stack(limits=lively(20)) as running:
        (endpoint,) = running.dispatcher.replicas.pop("m")
        body = {**CHAT, "stream": True}
        async with running.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.aiter_lines()
            assert [await anext(lines), await anext(lines), await anext(lines)] == [
                ": waiting for m",
                "",
                ": waiting for m",
            ]
            await running.dispatcher.add(endpoint.url, "r9")
            rest = [line async for line in lines]
        assert reply.status_code == 200
        assert rest[-2] == "data: [DONE]"
        assert running.dispatcher.outcomes == [("r9", "ok")]


async def test_a_stream_whose_engine_is_asked_again_and_again_has_signs_of_life() -> None:
    """No pause between two requests is longer than the time between two signs."""
    limits = replace(LIMITS, retry=RetryLimits(ready_wait_s=20, sign_of_life_s=2.0))
    async with stack(otherwise=loading, limits=limits) as running, StandInEngine().running() as second:
        body = {**CHAT, "stream": True}
        async with running.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.aiter_lines()
            assert await anext(lines) == ": waiting for m"
            await running.dispatcher.add(second.url, "r2")
            rest = [line async for line in lines]
        assert rest[-2] == "data: [DONE]"
        assert running.dispatcher.outcomes[-1] == ("r2", "ok")


async def test_what_is_no_matter_of_time_is_told_at_once() -> None:
    async with stack(limits=lively(20)) as running:
        running.dispatcher.lost["m"] = "m is not served at the moment"
        reply = await ask(running, stream=True)
        assert (reply.status_code, reply.json()["error"]["message"]) == (503, "m is not served at the moment")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_after_a_sign_of_life_a_refusal_comes_as_an_event(path: str) -> None:
    async with stack(otherwise=loading, limits=lively(1.5)) as running:
        running.dispatcher.replicas.clear()
        body = {**CHAT, "input": "hi", "stream": True}
        reply = await running.client.post(path, json=body)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream")
    *_, last = reply.text.strip().split("\n\n")
    assert last.startswith("event: error\ndata: " if path.endswith("responses") else "data: "), last
    assert "still loading" in last


# llama-server's, which lacks fields, vLLM's, which lacks none, and Anthropic's own.
SHAPES = (
    {"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error"}},
    {"error": {"code": 400, "message": "too long", "type": "BadRequestError", "param": None}},
    {"type": "error", "error": {"type": "invalid_request_error", "message": "too long"}},
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_an_engines_error_has_the_types_of_the_newer_protocols(
    path: str, shape: dict[str, object]
) -> None:
    async with stack(answer(400, json.dumps(shape).encode()), limits=lively(20)) as running:
        body = {**CHAT, "input": "hi", "stream": True}
        error = (await running.client.post(path, json=body)).json()
        assert (error["type"], error["error"]["message"]) == ("error", "too long")

        running.engine.plays.append(answer(400, json.dumps(shape, indent=1).encode()))
        (endpoint,) = running.dispatcher.replicas.pop("m")
        async with running.client.stream("POST", path, json=body) as reply:
            lines = reply.aiter_lines()
            assert await anext(lines) == ": waiting for m"
            await running.dispatcher.add(endpoint.url, "r2")
            *_, event_line, data, _ = [line async for line in lines]
        assert event_line == "event: error"
        assert json.loads(data.removeprefix("data: ")) == error


async def test_what_cannot_be_streamed_is_never_answered_as_a_stream() -> None:
    async with stack(limits=lively(20)) as running:
        running.dispatcher.models = [served("m", "embed")]
        (endpoint,) = running.dispatcher.replicas.pop("m")
        body = {"model": "m", "input": "hi", "stream": True}
        asked = asyncio.create_task(running.client.post("/v1/embeddings", json=body))
        await asyncio.sleep(0.25)
        running.engine.plays.append(answer(200, b"{}"))
        await running.dispatcher.add(endpoint.url, "r2")
        reply = await asked
        assert (reply.headers["content-type"], reply.json()) == ("application/json", {})


async def test_the_official_client_reads_over_signs_of_life_and_raises_the_refusal() -> None:
    async with stack(limits=lively(1.5)) as running:
        running.dispatcher.replicas.clear()
        async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            with pytest.raises(APIError, match="still loading"):
                async for _ in stream:
                    pass


async def test_a_request_waits_for_a_model_that_loads() -> None:
    async with stack() as running:
        (endpoint,) = running.dispatcher.replicas.pop("m")
        asked = asyncio.create_task(ask(running))
        async with asyncio.timeout(2):
            await running.dispatcher.waited.wait()
        await running.dispatcher.add(endpoint.url, "r9")
        assert (await asked).headers["x-xgen-replica"] == "r9"


async def test_a_request_waits_while_a_dead_engine_is_replaced(silent_port: int) -> None:
    """Whoever chooses replicas learns of a death later than the requests that are refused."""
    limits = replace(LIMITS, retry=RetryLimits(ready_wait_s=5, replicas=2))
    async with stack(limits=limits) as running:
        (living,) = running.dispatcher.replicas.pop("m")
        await running.dispatcher.add(f"http://127.0.0.1:{silent_port}", "dead")
        asked = asyncio.create_task(ask(running))
        async with asyncio.timeout(5):
            while len(running.dispatcher.outcomes) < 3:
                running.dispatcher.ended.clear()
                await running.dispatcher.ended.wait()
        await running.dispatcher.add(living.url, "r2")
        assert (await asked).json() == COMPLETION
        assert running.dispatcher.outcomes == [("dead", "failed")] * 3 + [("r2", "ok")]


async def test_a_dead_engine_that_is_not_replaced_in_time_is_told_of(silent_port: int) -> None:
    async with stack(limits=waiting(0.6)) as running:
        running.dispatcher.replicas.clear()
        await running.dispatcher.add(f"http://127.0.0.1:{silent_port}", "dead")
        reply = await ask(running)
        assert reply.status_code == 502
        assert "1 refused the connection" in reply.json()["error"]["message"]


async def test_a_model_that_failed_to_load_says_why_but_not_its_log() -> None:
    async with stack() as running:
        running.dispatcher.failed["m"] = "m needs 41.2 GiB; lower the context."
        reply = await ask(running)
        assert reply.status_code == 502
        assert reply.json()["error"]["message"] == "m needs 41.2 GiB; lower the context."
        assert "secret log line" not in reply.text


async def torn_stream(exchange: Exchange) -> None:
    await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
    await exchange.chunk(event("one "))
    await exchange.chunk(event("two ")[:30])
    await asyncio.sleep(0.05)
    exchange.drop()


async def clean_cut(exchange: Exchange) -> None:
    await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
    await exchange.chunk(event("one "))
    await asyncio.sleep(0.05)
    exchange.close()


async def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    async with stack(clean_cut) as running:
        reply = await ask(running, stream=True)
        first, error, rest = reply.content.split(b"\n\n")
        assert first + b"\n\n" == event("one ")
        assert rest == b""
        body = json.loads(error.removeprefix(b"data: "))
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert "incomplete" in body["error"]["message"]
        assert running.dispatcher.outcomes == [("r1", "failed")]
        assert len(running.engine.requests) == 1


async def test_a_torn_event_is_closed_before_the_error() -> None:
    async with stack(torn_stream) as running:
        reply = await ask(running, stream=True)
        _, torn, error, _ = reply.content.split(b"\n\n")
        assert torn == event("two ")[:30]
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "engine_failed"
        assert b"[DONE]" not in reply.content


async def test_the_error_event_of_the_newer_protocols_has_a_type() -> None:
    async with stack(clean_cut) as running:
        reply = await running.client.post("/v1/responses", json={"model": "m", "input": "a", "stream": True})
        error = reply.content.split(b"\n\n")[1]
        assert error.startswith(b'event: error\ndata: {"type": "error"')


async def test_the_official_client_raises_when_a_stream_breaks_off() -> None:
    async with (
        stack(clean_cut) as running,
        AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        parts = aiter(stream)
        assert (await anext(parts)).choices[0].delta.content == "one "
        with pytest.raises(APIError, match="incomplete"):
            await anext(parts)


async def test_a_plain_body_that_breaks_off_is_not_passed_off_as_whole() -> None:
    async def half(exchange: Exchange) -> None:
        await exchange.head(200, "application/json", "content-length: 100")
        await exchange.send(b'{"half":')
        await asyncio.sleep(0.05)
        exchange.drop()

    async with stack(half) as running:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(running)
        assert running.dispatcher.outcomes == [("r1", "failed")]


async def test_an_engine_that_falls_silent_is_given_up() -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.client_left()

    limits = replace(LIMITS, engine_silence_s=0.3)
    async with stack(otherwise=silent, limits=limits) as running:
        reply = await ask(running)
        assert reply.status_code == 502
        assert "sent nothing for too long" in reply.json()["error"]["message"]
        assert len(running.engine.requests) == 1


def openai_shape(**fields: object) -> bytes:
    return json.dumps(
        {"error": {"message": "why", "type": "t", "param": None, "code": 400, **fields}}
    ).encode()


@pytest.mark.parametrize(
    ("status", "body", "got", "fields"),
    [
        (400, openai_shape(), 400, {"message": "why", "type": "t", "code": 400}),
        (
            400,
            b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":9}}',
            400,
            {"message": "too long", "code": "context_length_exceeded", "n_ctx": 9, "param": None},
        ),
        (422, b'{"detail":[{"loc":["body"]}]}', 422, {"message": '[{"loc": ["body"]}]'}),
        (400, b'{"error":"just text"}', 400, {"message": "just text", "type": "invalid_request_error"}),
        (400, b"plain words", 400, {"message": "plain words"}),
        (500, b"<html>Oops</html>", 500, {"type": "server_error", "code": "engine_error"}),
        (500, b"Traceback (most recent call last):\n  secret.py", 500, {"code": "engine_error"}),
        (
            500,
            openai_shape(message="Traceback (most recent call last): secret"),
            500,
            {"code": "engine_error"},
        ),
        (500, b"", 500, {"message": "The engine of 'm' answered 500 without a reason."}),
        (500, openai_shape(message="input is too large to process"), 400, {"code": "invalid_request"}),
        (
            500,
            b'{"error":{"code":500,"message":"Failed to parse tools: x","type":"server_error"}}',
            400,
            {"message": "Failed to parse tools: x", "type": "invalid_request_error"},
        ),
        (
            500,
            b'{"error":{"code":500,"message":"broken","type":"server_error"}}',
            500,
            {"message": "broken", "type": "server_error", "code": None},
        ),
        (501, openai_shape(message="no embeddings"), 501, {"code": "not_supported"}),
        (404, b'{"detail":"Not Found"}', 501, {"code": "not_supported"}),
        (404, openai_shape(message="no such lora"), 404, {"message": "no such lora"}),
        (401, openai_shape(message="Invalid API Key"), 502, {"code": "engine_failed"}),
        (429, openai_shape(), 429, {"message": "why"}),
    ],
)
async def test_engine_errors_reach_the_client_in_openais_shape(
    status: int, body: bytes, got: int, fields: dict[str, Any]
) -> None:
    async with stack(answer(status, body, "application/json", "retry-after: 3")) as running:
        reply = await ask(running)
        error = reply.json()["error"]
        assert reply.status_code == got
        assert fields.items() <= error.items()
        assert {"message", "type", "param", "code"} <= set(error)
        assert "secret" not in reply.text
        assert reply.headers["retry-after"] == "3"
        assert reply.headers["x-xgen-replica"] == "r1"
        ended = "full" if status == 429 else "client_error" if got < 500 or got == 501 else "failed"
        assert running.dispatcher.outcomes == [("r1", ended)]


async def test_an_engine_without_such_a_route_is_told_plainly() -> None:
    """Word for word llama-server's."""
    missing = b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}'
    async with stack(answer(404, missing)) as running:
        running.dispatcher.models = [served("m", "rerank")]
        reply = await running.client.post("/v1/score", json={"model": "m", "text_1": "a", "text_2": "b"})
        assert reply.status_code == 501
        assert reply.json()["error"]["message"] == "The engine of 'm' has no /v1/score. File Not Found"


async def test_neither_the_engines_address_nor_its_key_reaches_the_client() -> None:
    replies = []
    for plays in ([], [die] * 8, [loading] * 8, [answer(401, b"{}")], [clean_cut]):
        async with stack(*plays, limits=waiting(0.3)) as running:
            reply = await ask(running, stream=True)
            replies.append(reply.status_code)
            shown = str(reply.headers) + reply.text
            assert ENGINE_KEY not in shown
            assert f":{running.engine.port}" not in shown
    assert replies == [200, 502, 503, 502, 200]
