"""A client that leaves frees the engine's slot within a second, wherever its request is."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

from tests.api.stack import LIMITS, Stack, stack
from tests.api.support import Exchange, event

CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
SOON = 1.0


@asynccontextmanager
async def raw_request(
    running: Stack, body: bytes = CHAT, declared: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    where = urlsplit(running.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1024)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {declared or len(body)}\r\n\r\n".encode() + body)
    try:
        yield reader, writer
    finally:
        writer.close()


async def endless(exchange: Exchange) -> None:
    """Streams until the other side leaves."""
    await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
    left = asyncio.create_task(exchange.client_left())
    try:
        while not left.done():
            await exchange.chunk(event("x"))
            await asyncio.wait((left,), timeout=0.01)
    finally:
        left.cancel()


async def silent(exchange: Exchange) -> None:
    await exchange.client_left()


async def test_while_the_body_is_on_its_way() -> None:
    async with stack() as running:
        async with raw_request(running, b"{", declared=100):
            pass
        reply = await running.client.get("/health")
        assert reply.status_code == 200
        assert running.dispatcher.outcomes == []


async def test_while_waiting_for_the_model_to_load() -> None:
    async with stack() as running:
        running.dispatcher.replicas.clear()
        async with raw_request(running), asyncio.timeout(2):
            await running.dispatcher.waited.wait()
        async with asyncio.timeout(SOON):
            await running.dispatcher.abandoned.wait()
            await running.dispatcher.ended.wait()
        assert running.dispatcher.outcomes == []
        assert running.dispatcher.without_engine == [("m", "cancelled")]


async def test_while_waiting_for_the_engines_first_byte() -> None:
    async with stack(silent) as running:
        async with raw_request(running), asyncio.timeout(2):
            await running.engine.arrived.wait()
        async with asyncio.timeout(SOON):
            await running.engine.freed.wait()
            await running.dispatcher.ended.wait()
        assert running.dispatcher.outcomes == [("r1", "cancelled")]
        assert len(running.engine.requests) == 1


async def test_in_mid_stream() -> None:
    async with stack(endless) as running:
        async with raw_request(running) as (reader, _), asyncio.timeout(2):
            await reader.readuntil(b"data: ")
        async with asyncio.timeout(SOON):
            await running.engine.freed.wait()
            await running.dispatcher.ended.wait()
        assert running.dispatcher.outcomes == [("r1", "cancelled")]


async def test_while_a_large_body_goes_to_a_slow_engine() -> None:
    async with stack(silent) as running:
        body = CHAT[:-1] + b', "pad": "' + b"x" * 1_800_000 + b'"}'
        async with raw_request(running, body), asyncio.timeout(5):
            await running.engine.arrived.wait()
        async with asyncio.timeout(SOON):
            await running.engine.freed.wait()


async def test_a_slow_reader_gets_everything_and_holds_the_engine_back() -> None:
    chunk = b"data: " + b"x" * 65530

    async def much(exchange: Exchange) -> None:
        await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
        for _ in range(200):
            await exchange.chunk(chunk)
        await exchange.send(b"0\r\n\r\n")

    async with stack(much) as running, raw_request(running) as (reader, _), asyncio.timeout(20):
        await running.engine.arrived.wait()
        # 13 MB do not fit into the buffers between: the engine must still be at it.
        await asyncio.sleep(0.3)
        assert running.engine.busy == 1
        received = 0
        while not (part := await reader.read(2**20)).endswith(b"0\r\n\r\n"):
            received += len(part)
        assert received + len(part) > 200 * len(chunk)


async def test_a_client_that_stops_reading_is_given_up() -> None:
    async with stack(endless_and_large, limits=replace(LIMITS, client_stall_s=0.3)) as running:
        async with raw_request(running), asyncio.timeout(10):
            await running.engine.freed.wait()
            await running.dispatcher.ended.wait()
        assert running.dispatcher.outcomes == [("r1", "cancelled")]


async def endless_and_large(exchange: Exchange) -> None:
    await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
    while True:
        await exchange.chunk(b"x" * 65536)


async def test_a_hundred_that_leave_free_a_hundred_slots() -> None:
    async with stack() as running:
        running.engine.otherwise = endless

        async def come_and_go() -> None:
            async with raw_request(running) as (reader, _):
                await reader.readuntil(b"data: ")

        async with asyncio.timeout(10):
            await asyncio.gather(*(come_and_go() for _ in range(100)))
        async with asyncio.timeout(3 * SOON):
            while running.engine.busy or running.dispatcher.open:
                running.engine.freed.clear()
                if running.engine.busy:
                    await running.engine.freed.wait()
                await asyncio.sleep(0)
        assert running.dispatcher.outcomes == [("r1", "cancelled")] * 100


async def test_a_pipelined_request_is_answered_after_its_forerunner() -> None:
    async with stack() as running, raw_request(running, CHAT) as (reader, writer), asyncio.timeout(5):
        head = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        writer.write(head)
        everything = await reader.read(-1)
        assert everything.index(b"[DONE]") < everything.index(b'{"status":"ok"}')
