"""The gate before vLLM's server: who has no key gets ``/health`` and nothing else.

vLLM itself asks for its key under ``/v1`` and a few more prefixes, and computes under others.

Imported by vLLM in its own Python, so it uses nothing of this project and nothing that Python 3.9 lacks.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_REFUSAL = json.dumps({"error": {"message": "Invalid API key", "code": 401}}).encode()


class Gate:
    """Lets through what carries the key of the environment. Without one there, the server does not start."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_health(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Refused before it is accepted: the server makes that a 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _has_key(self, scope: MutableMapping[str, Any]) -> bool:
        given = next((bytes(value) for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)


def _is_health(scope: MutableMapping[str, Any]) -> bool:
    return (scope["type"], scope.get("path")) == ("http", "/health")
