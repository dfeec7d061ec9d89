"""The gateway before an engine that is a process of its own, which can be killed like one."""

import asyncio
import itertools
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.api.support import ENGINE_KEY, NO_TLS, InMemoryDispatcher, serving
from xgen_ray.api.gateway import Gateway
from xgen_ray.api.keys import ApiKeys
from xgen_ray.process import free_port

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


class Running:
    def __init__(self, process: asyncio.subprocess.Process, engine: str, client: httpx.AsyncClient) -> None:
        self.process = process
        self.engine = engine
        self.client = client

    async def debug(self) -> dict[str, Any]:
        async with httpx.AsyncClient(verify=NO_TLS) as client:
            seen: dict[str, Any] = (await client.get(f"{self.engine}/_debug")).json()
        return seen


@asynccontextmanager
async def before(*arguments: str) -> AsyncIterator[Running]:
    port = free_port()
    command = (sys.executable, str(FAKE), "--port", str(port), "--api-key", ENGINE_KEY, *arguments)
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    dispatcher = InMemoryDispatcher()
    engine = f"http://127.0.0.1:{port}"
    try:
        async with (
            serving(Gateway(dispatcher, ApiKeys())) as url,
            httpx.AsyncClient(base_url=url, verify=NO_TLS, timeout=20) as client,
        ):
            async with asyncio.timeout(20):
                while True:
                    try:
                        if (await client.get(f"{engine}/health")).status_code == 200:
                            break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.05)
            await dispatcher.add(engine, "r1")
            yield Running(process, engine, client)
        assert dispatcher.open == []
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_client_that_leaves_frees_the_only_slot() -> None:
    async with before("--slots", "1", "--chunks", "2000", "--chunk-delay", "0.01") as running:
        for _ in range(3):
            async with (
                asyncio.timeout(3),
                running.client.stream("POST", "/v1/chat/completions", json=CHAT) as reply,
            ):
                await anext(reply.aiter_raw())
        async with asyncio.timeout(1):
            # The process tells only when asked.
            for pause_s in itertools.repeat(0.01):
                if not (seen := await running.debug())["in_flight"]:
                    break
                await asyncio.sleep(pause_s)
        assert (seen["cancelled"], seen["completed"]) == (3, 0)


async def test_an_engine_killed_in_mid_stream_ends_it_with_an_error() -> None:
    async with before("--chunks", "2000", "--chunk-delay", "0.01") as running:
        async with (
            asyncio.timeout(5),
            running.client.stream("POST", "/v1/chat/completions", json=CHAT) as reply,
        ):
            parts = reply.aiter_raw()
            text = await anext(parts)
            running.process.send_signal(signal.SIGKILL)
            async for part in parts:
                text += part
        assert b'"code": "engine_failed"' in text.split(b"\n\n")[-2]
        assert b"[DONE]" not in text
