"""What is refused before an engine is bothered, how it says so, and that the connection stays usable."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.stack import LIMITS, Stack, stack
from tests.api.support import answer, served
from xgen_ray.api.keys import ApiKeys

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "m", "messages": MESSAGES}
JSON = {"content-type": "application/json"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


def error_of(reply: Any) -> dict[str, Any]:
    """The error, whose shape is checked here for every test."""
    body = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert set(body) <= {"error", "type"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in reply.text
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": MESSAGES}, "model", "Served: m."),
        ({"model": None, "messages": MESSAGES}, "model", "is missing"),
        ({"model": 5, "messages": MESSAGES}, "model", "non-empty string"),
        ({"model": "", "messages": MESSAGES}, "model", "non-empty string"),
        ({"model": "m"}, "messages", "is missing"),
        ({"model": "m", "messages": []}, "messages", "non-empty array"),
        ({"model": "m", "messages": "hi"}, "messages", "has a string"),
        ({"model": "m", "messages": ["hi"]}, "messages", "'role'"),
        ({"model": "m", "messages": [{"content": "hi"}]}, "messages", "'role'"),
        ({**CHAT, "max_tokens": -1}, "max_tokens", "at least 0; the request has -1"),
        ({**CHAT, "max_tokens": 1.5}, "max_tokens", "integer"),
        ({**CHAT, "max_tokens": "5"}, "max_tokens", "has a string"),
        ({**CHAT, "max_tokens": True}, "max_tokens", "integer"),
        ({**CHAT, "max_completion_tokens": -7}, "max_completion_tokens", "-7"),
        ({**CHAT, "n": 0}, "n", "at least 1"),
        ({**CHAT, "stream": "yes"}, "stream", "true or false"),
        ({**CHAT, "stream": 1}, "stream", "true or false"),
        ({**CHAT, "stream_options": []}, "stream_options", "object"),
        ({**CHAT, "temperature": -0.1}, "temperature", "at least 0"),
        ({**CHAT, "temperature": "hot"}, "temperature", "number"),
        ({**CHAT, "top_p": 1.1}, "top_p", "at least 0 and at most 1"),
        ({**CHAT, "tools": {}}, "tools", "array of objects"),
    ],
)
async def test_a_chat_with_an_obvious_mistake(
    plain: Stack, fields: dict[str, object], param: str, says: str
) -> None:
    reply = await plain.client.post("/v1/chat/completions", json=fields)
    error = error_of(reply)
    assert reply.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]
    assert plain.engine.requests == []


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": 5}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/responses", {}, "input"),
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": ["a"], "documents": ["b"]}, "query"),
        ("/v1/score", {"text_2": "b"}, "text_1"),
        ("/tokenize", {}, "content"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/v1/messages", {"messages": []}, "messages"),
    ],
)
async def test_other_bodies_with_an_obvious_mistake(
    plain: Stack, path: str, fields: dict[str, object], param: str
) -> None:
    reply = await plain.client.post(path, json={"model": "m", **fields})
    assert reply.status_code == 400
    assert error_of(reply)["param"] == param


async def test_null_means_not_set(plain: Stack) -> None:
    body = {**CHAT, "max_tokens": None, "stream": None, "temperature": None, "tools": None}
    assert (await plain.client.post("/v1/chat/completions", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"model": "m",\n "messages": [}', "line 2 column 15"),
        (b"", "line 1 column 0 (of 0 bytes)"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "JSON object, not an array"),
        (b'"text"', "JSON object, not a string"),
        (b"null", "JSON object, not null"),
        (b"17", "JSON object, not a number"),
        (b"[" * 100_000, "not valid JSON: recursion limit"),
        (b'{"model": NaN}', "not valid JSON"),
        ('{"model": "m"}'.encode("utf-16"), "not valid JSON"),
    ],
)
async def test_a_body_that_is_no_json_object(plain: Stack, body: bytes, says: str) -> None:
    reply = await plain.client.post("/v1/chat/completions", content=body, headers=JSON)
    assert reply.status_code == 400
    assert says in error_of(reply)["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_declared_as_plain_json(plain: Stack, headers: dict[str, str]) -> None:
    reply = await plain.client.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
    assert reply.status_code == 415
    assert error_of(reply)["code"] == "unsupported_media_type"


async def test_fifty_megabytes_are_refused_by_their_declared_size_and_the_connection_lives_on(
    plain: Stack,
) -> None:
    reply = await plain.client.post("/v1/chat/completions", content=b" " * 50 * 1024 * 1024, headers=JSON)
    assert reply.status_code == 413
    message = error_of(reply)["message"]
    assert "52,428,800" in message
    assert "2,097,152" in message
    assert (await plain.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_a_chunked_body_is_counted(plain: Stack) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(48):
            yield b" " * 65536

    reply = await plain.client.post("/v1/chat/completions", content=pieces(), headers=JSON)
    assert reply.status_code == 413
    assert "2,097,152" in error_of(reply)["message"]


async def test_a_chunked_body_within_the_limit_is_put_together(plain: Stack) -> None:
    text = json.dumps(CHAT).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(text), 7):
            yield text[at : at + 7]
            await asyncio.sleep(0)

    reply = await plain.client.post("/v1/chat/completions", content=pieces(), headers=JSON)
    assert reply.status_code == 200
    assert plain.engine.requests[0].body == text


async def test_a_body_that_never_ends_is_given_up() -> None:
    async with stack(limits=replace(LIMITS, body_timeout_s=0.2)) as running:
        where = urlsplit(running.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: 100\r\n\r\n{{".encode())
        async with asyncio.timeout(5):
            status = await reader.readline()
        assert b" 408 " in status
        writer.close()


async def test_one_connection_survives_every_kind_of_refusal(plain: Stack) -> None:
    where = urlsplit(plain.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    good = json.dumps(CHAT).encode()
    cases = [
        (b"POST /v1/chat/completions", b"text/plain", b"x" * 300_000, 415),
        (b"POST /nowhere", b"application/json", b"y" * 300_000, 404),
        (b"PUT /v1/models", b"application/json", b"z" * 10, 405),
        (b"POST /v1/chat/completions", b"application/json", b" " * 2_500_000, 413),
        (b"POST /v1/chat/completions", b"application/json", b"{", 400),
        (b"POST /v1/chat/completions", b"application/json", good, 200),
    ]
    async with asyncio.timeout(10):
        for line, kind, body, status in cases:
            writer.write(line + b" HTTP/1.1\r\nhost: x\r\ncontent-type: " + kind)
            writer.write(b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert int(head.split(b" ")[1]) == status
            (length,) = (
                int(field.split(b":")[1])
                for field in head.split(b"\r\n")
                if field.startswith(b"content-length")
            )
            await reader.readexactly(length)
    writer.close()


async def test_an_unknown_model_is_answered_with_the_names_that_exist(plain: Stack) -> None:
    plain.dispatcher.models = [served("m"), served("org/other")]
    for reply in (
        await plain.client.post("/v1/chat/completions", json={**CHAT, "model": "nope"}),
        await plain.client.get("/v1/models/nope"),
    ):
        error = error_of(reply)
        assert reply.status_code == 404
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'nope'" in error["message"]
        assert "m, org/other" in error["message"]


async def test_many_names_are_cut_short_and_none_is_said_so(plain: Stack) -> None:
    plain.dispatcher.models = [served(f"model-{number}") for number in range(25)]
    message = error_of(await plain.client.get("/v1/models/nope"))["message"]
    assert "model-19 and 5 more." in message
    plain.dispatcher.models = []
    assert "No model is loaded yet" in error_of(await plain.client.get("/v1/models/nope"))["message"]


@pytest.mark.parametrize(
    ("task", "path", "fields"),
    [
        ("generate", "/v1/embeddings", {"input": "a"}),
        ("generate", "/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("generate", "/v1/score", {"text_1": "a", "text_2": "b"}),
        ("embed", "/v1/chat/completions", {"messages": MESSAGES}),
        ("rerank", "/v1/completions", {"prompt": "a"}),
    ],
)
async def test_a_model_is_not_asked_for_what_it_cannot_do(
    plain: Stack, task: str, path: str, fields: dict[str, object]
) -> None:
    plain.dispatcher.models = [served("m", task)]
    reply = await plain.client.post(path, json={"model": "m", **fields})
    error = error_of(reply)
    assert (reply.status_code, error["param"]) == (400, "model")
    assert f"loaded for {task}" in error["message"]
    assert plain.engine.requests == []


async def test_the_bare_address_leads_to_the_page(plain: Stack) -> None:
    for method in ("GET", "HEAD"):
        reply = await plain.client.request(method, "/")
        assert (reply.status_code, reply.headers["location"]) == (307, "api/")
    assert (await plain.client.post("/", json={})).status_code == 404


@pytest.mark.parametrize("path", ["/v1", "/v1/images", "/v1/modelsx", "/v1/chat/completions/x", "/%00"])
async def test_unknown_paths(plain: Stack, path: str) -> None:
    reply = await plain.client.get(path)
    assert reply.status_code == 404
    assert error_of(reply)["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("HEAD", "/v1/chat/completions", "POST, OPTIONS"),
        ("DELETE", "/v1/models/m", "GET, HEAD, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ],
)
async def test_wrong_methods(plain: Stack, method: str, path: str, allow: str) -> None:
    reply = await plain.client.request(method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allow)
    if method != "HEAD":
        assert error_of(reply)["code"] == "method_not_allowed"


async def test_options_says_what_a_path_takes(plain: Stack) -> None:
    reply = await plain.client.options("/v1/embeddings")
    assert (reply.status_code, reply.headers["allow"]) == (204, "POST, OPTIONS")
    assert "access-control-allow-origin" not in reply.headers


async def test_keys_are_needed_for_everything_but_health() -> None:
    async with stack(keys=ApiKeys([("team", "sk-1")])) as running:
        client = running.client
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/nowhere")):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "sk-1x"}):
                reply = await client.request(method, path, headers=headers)
                error = error_of(reply)
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert (await client.get("/health")).status_code == 200
        for headers in ({"authorization": "Bearer sk-1"}, {"x-api-key": "sk-1"}):
            reply = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert reply.status_code == 200
        assert "sk-1" not in str([seen.headers for seen in running.engine.requests])


async def test_messages_errors_also_suit_anthropics_clients(plain: Stack) -> None:
    reply = await plain.client.post("/v1/messages", json={"model": "m", "messages": []})
    assert reply.json()["type"] == "error"
    assert error_of(reply)["type"] == "invalid_request_error"


FIELDS = st.sampled_from(["model", "messages", "prompt", "input", "content", "stream", "n", "tokens", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.just("m"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.binary() | st.dictionaries(FIELDS, VALUES).map(lambda fields: json.dumps(fields).encode())
PATHS = st.sampled_from(["/v1/chat/completions", "/v1/embeddings", "/tokenize", "/v1/messages"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, body=BODIES)
async def test_arbitrary_bodies_are_the_clients_fault(plain: Stack, path: str, body: bytes) -> None:
    """Whatever the body, the answer is a 4xx, or 200 if the engine (which takes everything) got it."""
    plain.engine.otherwise = answer(200, b"{}")
    reply = await plain.client.post(path, content=body, headers=JSON)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500
    if reply.status_code != 200:
        error_of(reply)
