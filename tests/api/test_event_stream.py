"""vLLM reports the death of its worker as an event inside a stream that began with 200. OpenAI's clients
leave at the last event.
"""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from tests.api.stack import Stack, stack
from tests.api.support import DONE, Exchange, Play, StandInEngine, event
from xgen_ray.api.event_stream import EventStream

# Word for word vLLM's, when its worker was killed.
DIED = (
    b'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root '
    b'cause.", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
)
REFUSED = b'data: {"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}\n\n'
TYPED = b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n'
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
# A model that writes about errors: in JSON its line breaks are no line breaks.
ABOUT_ERRORS = event('\ndata: {"error": 1}\n\nevent: error\n')


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (event("one") + DIED + DONE, True),
        (DIED, True),
        (event("one") + TYPED, True),
        (event("one") + REFUSED + DONE, False),
        (event("one") + ABOUT_ERRORS + DONE, False),
        (b"", False),
    ],
)
@settings(max_examples=40)
@given(data=st.data())
def test_an_error_is_found_wherever_the_stream_is_cut(
    stream: bytes, fault: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=6)))
    events = EventStream()
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    found = [events.feed(piece) for piece in pieces]
    if fault:
        assert any(found)
    elif not cuts:
        assert found == [False]


@settings(max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("last", [DONE, b"data: [DONE]\r\n\r\n"])
def test_the_last_event_is_known_wherever_the_stream_is_cut(last: bytes, data: st.DataObject) -> None:
    stream = event("data: [DONE]") + event("\ndata: [DONE]\n\n") + last
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=6)))
    events = EventStream()
    assert not events.ended
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events.feed(stream[start:end])
        assert events.ended == (end >= len(stream.rstrip()))


def stream_of(*pieces: bytes) -> Play:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
        for piece in pieces:
            await exchange.chunk(piece)
        await exchange.send(b"0\r\n\r\n")

    return play


async def ask(running: Stack) -> httpx.Response:
    return await running.client.post("/v1/chat/completions", json=BODY)


async def test_an_error_before_anything_else_goes_to_the_next_replica() -> None:
    failing = stream_of(DIED + DONE)
    async with stack(otherwise=failing) as running, StandInEngine().running() as second:
        await running.dispatcher.add(second.url, "r2")
        reply = await ask(running)
        assert reply.headers["x-xgen-replica"] == "r2"
        assert b"error" not in reply.content
        assert running.dispatcher.outcomes == [("r1", "failed"), ("r2", "ok")]


async def test_an_error_in_mid_stream_is_passed_on_and_counts_against_the_replica() -> None:
    begun = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
        await exchange.chunk(event("one"))
        await begun.wait()
        await exchange.chunk(DIED + DONE)
        await exchange.send(b"0\r\n\r\n")

    async with stack(play) as running, asyncio.timeout(10):
        async with running.client.stream("POST", "/v1/chat/completions", json=BODY) as reply:
            pieces = reply.aiter_raw()
            received = await anext(pieces)
            begun.set()
            async for piece in pieces:
                received += piece
        assert received == event("one") + DIED + DONE
        assert running.dispatcher.outcomes == [("r1", "failed")]


async def test_a_request_that_is_at_fault_itself_counts_against_nobody() -> None:
    async with stack(stream_of(REFUSED + DONE)) as running:
        reply = await ask(running)
        assert reply.content == REFUSED + DONE
        assert running.dispatcher.outcomes == [("r1", "ok")]


async def test_who_leaves_at_the_last_event_has_got_the_whole_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The engine has not ended the body yet, and the official client does not wait for that."""
    caplog.set_level(logging.INFO, "xgen_ray.api")

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
        await exchange.chunk(event("one") + DONE)
        await exchange.client_left()

    async with (
        stack(play) as running,
        AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client,
        asyncio.timeout(10),
    ):
        answer: Any = await client.chat.completions.create(**BODY)
        assert [part.choices[0].delta.content async for part in answer] == ["one"]
        await running.engine.freed.wait()
        assert running.dispatcher.outcomes == [("r1", "ok")]
    fields = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "request"]
    assert [line["outcome"] for line in fields] == ["answered"]


async def test_an_engine_that_breaks_off_after_the_last_event_has_answered() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
        await exchange.chunk(event("one") + DONE)
        exchange.close()

    async with stack(play) as running:
        assert (await ask(running)).content == event("one") + DONE
        assert running.dispatcher.outcomes == [("r1", "ok")]
