"""The gate before vLLM's server, imported as vLLM imports it."""

import importlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from xgen_ray.backends import inside_vllm

KEY = "k3y"


async def behind(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """A server that answers everything, in the words of each protocol."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"computed"})
    else:
        await send({"type": f"{scope['type']}.passed"})


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(inside_vllm.__file__).parent)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    return importlib.import_module("xgen_ray_gate").Gate(behind)


@pytest.mark.parametrize(
    ("method", "path", "given", "status"),
    [
        ("GET", "/health", None, 200),
        ("GET", "/metrics", None, 401),
        ("POST", "/invocations", None, 401),
        ("POST", "/invocations", f"Bearer {KEY}", 200),
        ("POST", "/v1/chat/completions", f"Bearer {KEY}", 200),
        ("POST", "/v1/chat/completions", f"Bearer {KEY}x", 401),
        ("POST", "/v1/chat/completions", KEY, 401),
        ("POST", "/v1/chat/completions", "Bearer ÿ", 401),
        ("GET", "/health/", None, 401),
        ("GET", "//health", None, 401),
        # A browser asks so before it sends what another origin's page wants sent.
        ("OPTIONS", "/v1/chat/completions", None, 401),
    ],
)
async def test_who_has_no_key_gets_health_alone(
    gate: Any, method: str, path: str, given: str | None, status: int
) -> None:
    headers = [] if given is None else [(b"Authorization", given.encode("latin-1"))]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://vllm") as client:
        url = httpx.URL("http://vllm").copy_with(raw_path=path.encode())
        answer = await client.request(method, url, headers=headers)
    assert answer.status_code == status
    assert (answer.text == "computed") is (status == 200)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"type": "lifespan"}, {"type": "lifespan.passed"}),
        ({"type": "websocket", "path": "/v1/realtime"}, {"type": "websocket.close", "code": 1008}),
        ({"type": "websocket", "path": "/health"}, {"type": "websocket.close", "code": 1008}),
    ],
)
async def test_what_is_no_request(gate: Any, scope: dict[str, Any], expected: dict[str, Any]) -> None:
    sent = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await gate({"headers": [], **scope}, None, send)
    assert sent == [expected]


def test_without_a_key_there_is_no_gate(gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(KeyError, match="VLLM_API_KEY"):
        type(gate)(behind)


def test_vllms_path_has_the_gate_and_nothing_else() -> None:
    files = {file.name for file in Path(inside_vllm.__file__).parent.glob("*.py")}
    assert files == {"__init__.py", "xgen_ray_gate.py"}
