"""A server without keys is not at the service of every web page in the operator's browser."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.api.support import NO_TLS, InMemoryDispatcher, serving
from xgen_ray.api.cors import Cors
from xgen_ray.api.gateway import Gateway
from xgen_ray.api.guard import LocalGuard
from xgen_ray.api.keys import ApiKeys
from xgen_ray.errors import ConfigError

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = "https://chat.example.com"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded() -> AsyncIterator[httpx.AsyncClient]:
    gateway = Gateway(InMemoryDispatcher(models=[]), ApiKeys(), cors_origins=(PAGE,))
    app = LocalGuard(gateway, allowed_hosts=("Head.Cluster.local",), allowed_origins=(PAGE,))
    async with serving(app) as url, httpx.AsyncClient(base_url=url, verify=NO_TLS) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("LOCALHOST.:8000", True),
        ("app.localhost", True),
        ("127.0.0.1:1", True),
        ("127.8.9.1", True),
        ("[::1]:8000", True),
        ("head.cluster.local:8000", True),
        ("evil.example.com", False),
        ("localhost.evil.com", False),
        ("127.0.0.1.evil.com", False),
        ("10.0.0.1", False),
        ("[::1", False),
        ("user@evil.com", False),
        ("localhost@evil.com", False),
    ],
)
async def test_only_loopback_and_allowed_names_are_answered(
    guarded: httpx.AsyncClient, host: str, allowed: bool
) -> None:
    reply = await guarded.get("/v1/models", headers={"host": host})
    assert reply.status_code == (200 if allowed else 403)
    if not allowed:
        assert reply.json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"origin": "http://localhost:8000"}, True),
        ({"origin": PAGE, "sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}, False),
        ({"origin": "https://evil.example.com"}, False),
        ({"origin": "null"}, False),
        ({"origin": "file://"}, False),
        ({"origin": "http://[oops"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
    ],
)
async def test_a_foreign_page_cannot_post(
    guarded: httpx.AsyncClient, headers: dict[str, str], allowed: bool
) -> None:
    body = json.dumps({"model": "none", "messages": [{"role": "user", "content": "x"}]})
    sent = {"host": "localhost:8000", "content-type": "application/json", **headers}
    reply = await guarded.post("/v1/chat/completions", content=body, headers=sent)
    assert reply.status_code == (404 if allowed else 403)
    # Reading is left to the browser's own rule: without CORS a page sees nothing.
    assert (await guarded.get("/v1/models", headers={**headers, "host": "localhost"})).status_code == 200


async def test_a_named_page_may_read_and_any_other_may_not(guarded: httpx.AsyncClient) -> None:
    named = await guarded.get("/v1/models", headers={"origin": PAGE})
    assert named.headers["access-control-allow-origin"] == PAGE
    assert named.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in named.headers
    other = await guarded.get("/v1/models", headers={"origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in other.headers
    assert other.headers["vary"] == "Origin"


async def test_a_preflight_is_answered_for_a_named_page_only(guarded: httpx.AsyncClient) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    named = await guarded.options("/v1/chat/completions", headers={"origin": PAGE, **asked})
    assert named.status_code == 204
    assert named.headers["access-control-allow-origin"] == PAGE
    assert named.headers["access-control-allow-headers"] == "content-type"
    other = await guarded.options("/v1/chat/completions", headers={"origin": "https://evil.com", **asked})
    assert not any(name.startswith("access-control-") for name in other.headers)


async def test_errors_can_be_read_by_a_named_page(guarded: httpx.AsyncClient) -> None:
    reply = await guarded.get("/nowhere", headers={"origin": PAGE})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (404, PAGE)


@pytest.mark.parametrize("origin", ["*", "", "chat.example.com", "null"])
async def test_only_whole_origins_can_be_allowed(origin: str) -> None:
    with pytest.raises(ConfigError, match="origin"):
        Cors((origin,))
