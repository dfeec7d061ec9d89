"""The official client, unchanged, over everything the API promises, against the real model."""

import asyncio
import contextlib
import json
import time
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import CHAT, CONTEXT, EMBED, SLOTS
from tests.stack import Stack, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(600)]

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_models_are_listed_and_described(client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert listed == {CHAT, EMBED}
    assert client.models.retrieve(CHAT).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_a_chat_is_answered_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8


def test_a_chat_streams_chunk_by_chunk_with_usage_at_the_end(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert len(chunks) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 8


def test_the_headers_say_who_answered(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=HELLO, max_tokens=1)
    assert raw.headers["x-xgen-backend"] == "llama-server-cpu"
    assert raw.headers["x-xgen-replica"]
    assert len(raw.headers.get_list("x-request-id")) == 1


def test_a_request_leaves_a_line_in_the_log_of_its_router(stack: Stack, client: openai.OpenAI) -> None:
    """As JSON, which this stack was started for; and not on its terminal."""
    raw = client.chat.completions.with_raw_response.create(
        model=CHAT, messages=HELLO, max_tokens=1, extra_headers={"x-request-id": "r-7"}
    )
    assert raw.headers.get_list("x-request-id") == ["r-7"]
    (told,) = wait_until(lambda: lines_with("r-7", stack), 10, "the request's line")
    line = json.loads(told)
    assert (line["event"], line["request_id"], line["model"]) == ("request", "r-7", CHAT)
    assert (line["replica"], line["outcome"]) == (raw.headers["x-xgen-replica"], "answered")
    assert "r-7" not in "".join(stack.output)


def lines_with(request_id: str, stack: Stack) -> list[str]:
    return [line for line in stack.logs("ServeReplica:xgen-router") if request_id in line]


def test_a_stop_word_ends_the_answer(client: openai.OpenAI) -> None:
    counting: list[Any] = [{"role": "user", "content": "Repeat exactly: one two three four five"}]
    free = client.chat.completions.create(model=CHAT, messages=counting, max_tokens=24, temperature=0)
    text = free.choices[0].message.content or ""
    word = text.split()[1]
    stopped = client.chat.completions.create(
        model=CHAT, messages=counting, max_tokens=24, temperature=0, stop=[word]
    )
    assert word not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].finish_reason == "stop"


def test_a_seed_makes_an_answer_repeatable(client: openai.OpenAI) -> None:
    def ask() -> str | None:
        answer = client.chat.completions.create(
            model=CHAT, messages=HELLO, max_tokens=12, temperature=1.0, seed=7
        )
        return answer.choices[0].message.content

    assert ask() == ask()


def test_log_probabilities_come_with_each_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs.content)


def test_a_json_schema_is_kept_to(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "Invent a person."}],
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
    )
    person = json.loads(answer.choices[0].message.content or "")
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


def test_a_plain_completion_is_answered(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=CHAT, prompt="Once upon a time", max_tokens=6)
    assert answer.choices[0].text


def test_responses_are_answered_and_streamed(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=CHAT, input="Say hello.", max_output_tokens=8)
    assert answer.output_text
    events = list(client.responses.create(model=CHAT, input="Say hello.", max_output_tokens=8, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_embeddings_have_one_vector_an_input(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=EMBED, input=["one", "two words"])
    sizes = {len(item.embedding) for item in answer.data}
    assert len(answer.data) == 2
    assert len(sizes) == 1
    assert answer.data[0].embedding != answer.data[1].embedding


def test_tokens_can_be_counted_and_turned_back(stack: Stack) -> None:
    asked = {"model": CHAT, "content": "Hello there"}
    tokens = httpx.post(f"{stack.url}/tokenize", json=asked, trust_env=False).json()["tokens"]
    assert tokens
    back = httpx.post(f"{stack.url}/detokenize", json={"model": CHAT, "tokens": tokens}, trust_env=False)
    assert "Hello there" in back.text


def test_an_unknown_model_is_told_the_names_that_exist(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=CHAT) as caught:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert caught.value.code == "model_not_found"


def test_a_conversation_that_is_too_long_is_the_callers_mistake(client: openai.OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "word " * (CONTEXT * 2)}]
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model=CHAT, messages=long)


@pytest.mark.parametrize(
    "change",
    [{"messages": []}, {"max_tokens": -5}, {"messages": "hello"}, {"stream": "yes"}, {"temperature": "hot"}],
)
def test_a_malformed_request_is_refused(stack: Stack, change: dict[str, Any]) -> None:
    body = {"model": CHAT, "messages": HELLO, "max_tokens": 1, **change}
    answer = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


def test_a_body_of_fifty_megabytes_is_refused_and_the_next_request_is_served(
    stack: Stack, client: openai.OpenAI
) -> None:
    huge: list[Any] = [{"role": "user", "content": "x" * 50_000_000}]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=CHAT, messages=huge)
    assert caught.value.status_code == 413
    assert client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=1).choices


def test_clients_that_go_away_free_their_slots_within_a_second(stack: Stack) -> None:
    """All slots are taken by answers that would run for minutes; then their clients leave."""
    body = {"model": CHAT, "messages": HELLO, "max_tokens": CONTEXT - 100, "stream": True, "ignore_eos": True}
    address = f"{stack.url}/v1/chat/completions"
    with contextlib.ExitStack() as clients:
        streams = []
        for _ in range(SLOTS):
            request = httpx.stream("POST", address, json=body, timeout=60, trust_env=False)
            # Kept: an iterator that is dropped closes its connection.
            streams.append(clients.enter_context(request).iter_bytes())
            next(streams[-1])
    left = time.monotonic()
    short = {"model": CHAT, "messages": HELLO, "max_tokens": 1}
    assert httpx.post(address, json=short, timeout=60, trust_env=False).status_code == 200
    # The answers would have run for tens of seconds more; a token and its prompt take a fraction of one.
    assert time.monotonic() - left < 10


def test_more_requests_than_slots_are_all_answered(stack: Stack) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=120
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=4)
                    for _ in range(SLOTS * 4)
                )
            )
        return [answer.choices[0].message.content or "" for answer in answers]

    assert len(asyncio.run(ask_all())) == SLOTS * 4
