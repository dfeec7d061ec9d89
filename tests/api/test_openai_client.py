"""The official client, unchanged, over the gateway."""

import json
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.api.stack import Stack
from tests.api.support import answer, served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def client(plain: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{plain.url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_models(plain: Stack, client: AsyncOpenAI) -> None:
    plain.dispatcher.models = [served("m"), served("org/name")]
    assert [model.id async for model in client.models.list()] == ["m", "org/name"]
    assert (await client.models.retrieve("org/name")).owned_by == "xgen-ray"


async def test_a_chat(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert reply.choices[0].message.content == "hello"


async def test_a_streamed_chat(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert [part.choices[0].delta.content async for part in stream] == ["one ", "two ", "three"]


async def test_embeddings(plain: Stack, client: AsyncOpenAI) -> None:
    plain.dispatcher.models = [served("m", "embed")]
    body = {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
    plain.engine.plays.append(answer(200, json.dumps(body).encode()))
    reply = await client.embeddings.create(model="m", input="hi", encoding_format="float")
    assert reply.data[0].embedding == [0.5, 1]


async def test_its_exceptions_are_the_right_ones(plain: Stack, client: AsyncOpenAI) -> None:
    chats = client.chat.completions
    with pytest.raises(openai.NotFoundError) as missing:
        await chats.create(model="nope", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="non-empty array"):
        await chats.create(model="m", messages=[])
    too_long = b'{"error":{"code":400,"message":"9 tokens, 8 fit","type":"exceed_context_size_error"}}'
    plain.engine.plays.append(answer(400, too_long))
    with pytest.raises(openai.BadRequestError) as overflow:
        await chats.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert overflow.value.code == "context_length_exceeded"
