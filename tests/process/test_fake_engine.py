"""The stand-in engine does what other tests rely on."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.process.conftest import EngineMaker
from tests.process.watching import eventually
from tests.stack import NO_TLS
from xgen_ray.process import ChildProcess, FailureClass

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


class Talk:
    """A running engine and a client for it."""

    def __init__(self, child: ChildProcess, client: httpx.AsyncClient) -> None:
        self.child = child
        self.client = client

    async def debug(self) -> dict[str, Any]:
        content: dict[str, Any] = (await self.client.get("/_debug")).json()
        return content

    async def until(self, name: str, value: int) -> dict[str, Any]:
        """Wait for a figure of ``/_debug``."""
        async with asyncio.timeout(5):
            while True:
                debug = await self.debug()
                if debug[name] == value:
                    return debug
                await asyncio.sleep(0.01)


@asynccontextmanager
async def talking(child: ChildProcess) -> AsyncIterator[Talk]:
    assert child.spec.readiness is not None
    url = child.spec.readiness.url.removesuffix("/health")
    async with child, httpx.AsyncClient(base_url=url, timeout=10, verify=NO_TLS) as client:
        await child.wait_ready()
        yield Talk(child, client)


async def test_the_official_client_is_served(engine: EngineMaker) -> None:
    async with talking(engine("--chunks", "3", "--api-key", "k", "--jinja", "-ngl", "99")) as talk:
        base_url = str(talk.client.base_url.join("/v1"))
        async with openai.AsyncOpenAI(base_url=base_url, api_key="k", max_retries=0) as client:
            models = await client.models.list()
            assert [model.id for model in models.data] == ["fake"]
            whole = await client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "hi"}]
            )
            assert whole.choices[0].message.content == "tok0 tok1 tok2 "
            assert whole.choices[0].finish_reason == "stop"
            stream = await client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                max_tokens=2,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "tok0 tok1 "
            assert chunks[-2].choices[0].finish_reason == "length"
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens == 2
            text = await client.completions.create(model="fake", prompt="hi")
            assert text.choices[0].text == "tok0 tok1 tok2 "
            vectors = await client.embeddings.create(model="fake", input=["a", "b", "a"])
            first, second, third = (row.embedding for row in vectors.data)
            assert first == third != second
            assert sum(value * value for value in first) == pytest.approx(1)
        assert (await talk.client.get("/v1/models")).status_code == 401
        debug = await talk.debug()
        assert debug["ignored"] == ["--jinja", "-ngl", "99"]
        assert debug["completed"] == 3
        chat = next(request for request in debug["requests"] if request["path"] == "/v1/chat/completions")
        assert chat["body"]["messages"] == CHAT["messages"]
        assert chat["headers"]["authorization"] == "Bearer k"


async def test_what_it_says_of_itself(engine: EngineMaker) -> None:
    async with talking(engine("--slots", "1", "--chunk-delay", "0.2", "--chunks", "10")) as talk:
        post = talk.client.post
        requests = [asyncio.create_task(post("/v1/chat/completions", json=CHAT)) for _ in range(3)]
        await talk.until("in_flight", 3)
        metrics = (await talk.client.get("/metrics")).text
        assert "\nllamacpp:requests_processing 1\n" in metrics
        assert "\nllamacpp:requests_deferred 2\n" in metrics
        slots = (await talk.client.get("/slots")).json()
        assert [slot["is_processing"] for slot in slots] == [True]
        await post("/_set", json={"chunk_delay": 0})  # for those that wait
        assert {answer.status_code for answer in await asyncio.gather(*requests)} == {200}
        slots = (await talk.client.get("/slots")).json()
        assert [slot["is_processing"] for slot in slots] == [False]
        tokens = (await post("/tokenize", json={"content": "a bc def"})).json()
        assert (tokens["tokens"], tokens["count"]) == ([1, 2, 3], 3)
        ranked = (await post("/v1/rerank", json={"query": "a b", "documents": ["c", "a", "b a"]})).json()
        assert [row["index"] for row in ranked["results"]] == [2, 1, 0]
        assert (await talk.client.get("/no/such/page")).status_code == 404
        assert (await post("/v1/chat/completions", content="{")).status_code == 400


async def test_a_client_that_leaves_is_counted(engine: EngineMaker) -> None:
    async with talking(engine("--chunk-delay", "0.05", "--chunks", "1000")) as talk:
        request = CHAT | {"stream": True}
        async with talk.client.stream("POST", "/v1/chat/completions", json=request) as answer:
            await anext(answer.aiter_bytes())
            assert (await talk.debug())["in_flight"] == 1
        debug = await talk.until("cancelled", 1)
        assert (debug["in_flight"], debug["completed"]) == (0, 0)


async def test_requests_fail_as_told(engine: EngineMaker) -> None:
    async with talking(engine("--fail-chat", "500", "--fail-first", "1")) as talk:
        post = talk.client.post
        failed = await post("/v1/chat/completions", json=CHAT)
        assert failed.status_code == 500
        assert failed.json()["error"]["message"] == "told to fail"
        assert (await post("/v1/chat/completions", json=CHAT)).status_code == 200

        assert (await post("/_set", json={"no_such": 1})).status_code == 400
        await post("/_set", json={"fail_chat": None, "break_after": 3})
        received = b""

        async def read() -> None:
            nonlocal received
            streaming = CHAT | {"stream": True}
            async with talk.client.stream("POST", "/v1/chat/completions", json=streaming) as answer:
                async for piece in answer.aiter_bytes():
                    received += piece

        with pytest.raises(httpx.RemoteProtocolError):
            await read()
        assert received.count(b"data: ") == 4, "the role and three tokens"

        await post("/_set", json={"break_after": None, "hang": True})
        with pytest.raises(httpx.ReadTimeout):
            await post("/v1/chat/completions", json=CHAT, timeout=0.2)

        await post("/_set", json={"hang": False, "exit_after_chunks": 2, "die_code": 7})
        with pytest.raises(httpx.RemoteProtocolError):
            await post("/v1/chat/completions", json=CHAT | {"stream": True})
        failure = await talk.child.wait()
        assert (failure.failure, failure.exit_code) == (FailureClass.CRASHED, 7)


async def test_it_starts_and_answers_fast(engine: EngineMaker) -> None:
    """It stands in for engines in benchmarks: its own cost must not be what is measured."""
    before = time.monotonic()
    async with talking(engine()) as talk:
        started_s = time.monotonic() - before
        events = 0
        before = time.monotonic()
        for _ in range(50):
            answer = await talk.client.post("/v1/chat/completions", json=CHAT | {"stream": True})
            lines = [line for line in answer.text.split("\n\n") if line]
            assert lines[-1] == "data: [DONE]"
            events += len(lines)
            json.loads(lines[0].removeprefix("data: "))
        per_request_s = (time.monotonic() - before) / 50
    # 32 tokens, the first with a role event before it, the end with its reason, and DONE.
    assert events == 50 * (32 + 1 + 1 + 1)
    assert started_s < 3, "0.2 s on an idle machine"
    assert per_request_s < 0.1, "1 ms on an idle machine"


async def test_it_ends_on_term_with_a_stream_open(engine: EngineMaker) -> None:
    async with talking(engine("--chunk-delay", "0.05", "--chunks", "1000")) as talk:
        stream = talk.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True})
        async with stream as answer:
            await anext(answer.aiter_bytes())
            await asyncio.wait_for(talk.child.stop(), 10)
            await eventually(lambda: talk.child.exit_code == 0)
