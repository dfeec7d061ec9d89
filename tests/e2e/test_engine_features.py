"""What depends on the engine, by the official client: tools, ranking, and engines that fail.

A model small enough for tests calls no tools and no real engine fails on request: for these the stand-in
engine runs in llama-server's place. Everything else of the stack is real.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.tiny_reranker import write_reranker
from tests.stack import SAMPLE_MODEL, Stack, stand_in_arguments, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(600)]

ACTOR = "actor"
RECOVERY_S = 60.0
QUESTION: list[Any] = [{"role": "user", "content": "How warm is it in Busan?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "unit": {"type": "string"}},
                "required": ["place"],
            },
        },
    }
]
ARGUMENTS = {"place": "some place", "unit": "some unit"}
DOCUMENTS = ["the sea is warm", "a bus", "zoo", "quick brown fox"]


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose llama-server is the stand-in engine."""
    home = tmp_path_factory.mktemp("theatre")
    with Stack(home, "--models", str(SAMPLE_MODEL.parent), *stand_in_arguments()) as running:
        answer = running.load(SAMPLE_MODEL, name=ACTOR)
        assert answer.status_code == 200, answer.text
        yield running


@pytest.fixture
def engine(theatre: Stack) -> Iterator[httpx.Client]:
    """The stand-in itself, for directions and for questions about what it was asked. Told to behave again
    at the end.
    """
    status = theatre.status(ACTOR)
    assert status is not None
    with httpx.Client(base_url=status["replicas"][0]["url"], trust_env=False) as direct:
        yield direct
        if theatre.status(ACTOR) == status:
            direct.post("/_set", json={"fail_chat": None, "fail_first": None, "break_after": None})


@pytest.fixture
def audience(theatre: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{theatre.url}/v1", api_key="unused", max_retries=0, timeout=RECOVERY_S
    ) as made:
        yield made


def ask(client: openai.OpenAI, **more: Any) -> str | None:
    answer = client.chat.completions.create(model=ACTOR, messages=QUESTION, **more)
    content: str | None = answer.choices[0].message.content
    return content


# ---- tools --------------------------------------------------------------------------------------


def test_a_tool_is_called_and_its_answer_used(audience: openai.OpenAI, engine: httpx.Client) -> None:
    first = audience.chat.completions.create(model=ACTOR, messages=QUESTION, tools=TOOLS)
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == ARGUMENTS
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    conversation = [*QUESTION, message.model_dump(exclude_none=True), result]
    second = audience.chat.completions.create(model=ACTOR, messages=conversation, tools=TOOLS)
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content
    seen = engine.get("/_debug").json()["requests"][-1]["body"]
    assert seen["tools"] == TOOLS, "the engine got the tools as they were"
    assert seen["messages"] == conversation, "and every message, the call and its answer included"


def test_a_tool_call_is_streamed(audience: openai.OpenAI) -> None:
    stream = audience.chat.completions.create(model=ACTOR, messages=QUESTION, tools=TOOLS, stream=True)
    name, arguments, parts, reasons = "", "", 0, []
    for chunk in stream:
        (choice,) = chunk.choices
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
            parts += bool(call.function.arguments)
    assert name == "weather"
    assert json.loads(arguments) == ARGUMENTS
    assert parts == 2, "piece by piece, as the engine sent it"
    assert reasons[-1] == "tool_calls"


def test_malformed_tools_are_refused_before_the_engine(audience: openai.OpenAI, engine: httpx.Client) -> None:
    before = engine.get("/_debug").json()["total"]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(audience, extra_body={"tools": "weather"})
    assert caught.value.param == "tools"
    with pytest.raises(openai.BadRequestError):
        ask(audience, extra_body={"tools": ["weather"]})
    requests = engine.get("/_debug").json()["requests"]
    assert not [seen for seen in requests[before:] if seen["path"] == "/v1/chat/completions"]


# ---- engines that fail --------------------------------------------------------------------------


def test_an_error_of_the_engine_is_passed_on_and_is_no_end(
    audience: openai.OpenAI, engine: httpx.Client
) -> None:
    engine.post("/_set", json={"fail_chat": 500})
    with pytest.raises(openai.InternalServerError, match="told to fail") as caught:
        ask(audience)
    assert caught.value.type == "server_error"
    assert caught.value.response.headers["x-xgen-replica"]
    engine.post("/_set", json={"fail_chat": None})
    assert ask(audience)


def test_an_engine_that_is_not_ready_for_a_moment_is_asked_again(
    audience: openai.OpenAI, engine: httpx.Client
) -> None:
    engine.post("/_set", json={"fail_chat": 503, "fail_first": 2})
    assert ask(audience)
    assert engine.get("/_debug").json()["failed"] >= 2


def test_a_stream_that_is_cut_off_is_an_error(audience: openai.OpenAI, engine: httpx.Client) -> None:
    engine.post("/_set", json={"break_after": 5})
    heard: list[str] = []
    with pytest.raises(openai.APIError, match="incomplete"):
        listen(audience, heard)
    assert "".join(heard) == "tok0 tok1 tok2 tok3 tok4 ", "what was said is not lost"
    engine.post("/_set", json={"break_after": None})
    assert ask(audience)


def listen(client: openai.OpenAI, heard: list[str]) -> None:
    for chunk in client.chat.completions.create(model=ACTOR, messages=QUESTION, stream=True):
        heard += [choice.delta.content for choice in chunk.choices if choice.delta.content]


def test_an_engine_that_dies_in_mid_stream_is_an_error_and_is_replaced(
    theatre: Stack, audience: openai.OpenAI, engine: httpx.Client
) -> None:
    pid = engine.get("/_debug").json()["pid"]
    engine.post("/_set", json={"exit_after_chunks": 3, "die_code": 7})
    heard: list[str] = []
    with pytest.raises(openai.APIError, match="incomplete"):
        listen(audience, heard)
    assert "".join(heard) == "tok0 tok1 tok2 "
    assert ask(audience), "the next request waits for the new engine"
    status = wait_until(lambda: recovered(theatre), RECOVERY_S, "the model ready again")
    assert status["replicas"][0]["pid"] != pid
    assert status["failures"][0]["exit_code"] == 7
    assert status["failures"][0]["message"]


def recovered(theatre: Stack) -> dict[str, Any] | None:
    status = theatre.status(ACTOR)
    return status if status and status["phase"] == "ready" and status["failures"] else None


# ---- models for another task, on the real engine ------------------------------------------------


def test_documents_are_ranked(stack: Stack) -> None:
    file = write_reranker(stack.home / "models" / "reranker.gguf")
    loaded = stack.load(file, name="reranker", options={"context": 64, "slots": 1, "threads": 1})
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["task"] == "rerank"

    def rank(path: str, **more: Any) -> httpx.Response:
        body = {"model": "reranker", "query": "warm sea", "documents": DOCUMENTS, **more}
        return httpx.post(stack.url + path, json=body, timeout=60, trust_env=False)

    first = rank("/v1/rerank")
    assert first.status_code == 200, first.text
    results = first.json()["results"]
    scores = [result["relevance_score"] for result in results]
    assert sorted(result["index"] for result in results) == list(range(len(DOCUMENTS)))
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(DOCUMENTS)
    best = rank("/rerank", top_n=1).json()["results"]
    assert [result["index"] for result in best] == [results[0]["index"]]
    assert rank("/v1/rerank", documents=[]).status_code == 400
    chat = stack.chat("reranker")
    assert chat.status_code == 400, "a model that ranks does not chat"
    assert stack.unload("reranker").status_code == 200


def test_a_model_is_asked_only_what_it_was_loaded_for(stack: Stack, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="loaded for generate") as caught:
        client.embeddings.create(model=CHAT, input="one")
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="loaded for embed"):
        client.chat.completions.create(model=EMBED, messages=QUESTION)
    body = {"model": CHAT, "query": "one", "documents": ["two"]}
    ranked = httpx.post(f"{stack.url}/v1/rerank", json=body, timeout=60, trust_env=False)
    assert ranked.status_code == 400
    assert "loaded for generate" in ranked.json()["error"]["message"]


# ---- an engine inside its replica ---------------------------------------------------------------


def test_llama_cpp_python_serves_from_within_its_replica(stack: Stack, client: openai.OpenAI) -> None:
    name = "inside"
    options = {"backend": "llama-cpp-python", "context": 512, "slots": 1, "threads": 1}
    loaded = stack.load(SAMPLE_MODEL, name=name, options=options)
    assert loaded.status_code == 200, loaded.text
    status = loaded.json()
    assert (status["phase"], status["backend"]) == ("ready", "llama-cpp-python")
    (replica,) = status["replicas"]
    actor = psutil.Process(replica["pid"])
    assert actor.name().startswith("ray::"), "no program of its own: Ray's process is the engine"

    with client.chat.completions.with_streaming_response.create(
        model=name, messages=QUESTION, max_tokens=8, stream=True
    ) as answer:
        assert answer.headers["x-xgen-backend"] == "llama-cpp-python"
        assert answer.headers["x-xgen-replica"] == replica["replica_id"]
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks)
    assert len(chunks) > 3, "token by token"
    assert chunks[-1]["finish_reason"] in ("stop", "length")

    # The engine is closed to whoever has no key.
    direct = httpx.get(f"{replica['url']}/v1/models", timeout=10, trust_env=False)
    assert direct.status_code == 401
    assert stack.unload(name).status_code == 200
    wait_until(lambda: not actor.is_running(), RECOVERY_S, "the end of the replica")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name, messages=QUESTION, max_tokens=1)
