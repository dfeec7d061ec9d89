"""A runnable OpenAI-compatible endpoint with known timing, which misbehaves on request.

    python -m tests.bench.endpoint --port 9000 --first 0.05 --gap 0.01

A model named ``nobody`` is not found; ``Behaviour`` says the rest.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Behaviour:
    """How to answer. ``fail_every`` n: each n-th request gets a 503. ``cut_after``: drop the connection."""

    first_s: float = 0.0
    gap_s: float = 0.0
    usage: bool = True
    fail_every: int | None = None
    cut_after: int | None = None
    error_event_after: int | None = None
    refuses: tuple[str, ...] = ()
    tokens_per_event: int = 1
    key: str | None = None


@dataclass
class Seen:
    """What the endpoint has observed, for tests to judge by."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    most_at_once: int = 0


class Endpoint:
    """One server of ``/v1/chat/completions``; ``behaviour`` may be exchanged between requests."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.seen = Seen()
        self.url = ""

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator["Endpoint"]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        behaviour, seen = self.behaviour, self.seen
        body = await request.json()
        seen.bodies.append(body)
        if behaviour.key and request.headers.get("Authorization") != f"Bearer {behaviour.key}":
            return _error(401, "no such key", "invalid_api_key")
        for name in behaviour.refuses:
            if name in body:
                return _error(400, f"unknown field {name}", "invalid_request")
        if body["model"] == "nobody":
            return _error(404, "no model of that name", "model_not_found")
        if behaviour.fail_every and len(seen.bodies) % behaviour.fail_every == 0:
            return _error(503, "all slots are taken", "not_ready")
        seen.under_way += 1
        seen.most_at_once = max(seen.most_at_once, seen.under_way)
        try:
            return await self._stream(request, body)
        finally:
            seen.under_way -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        behaviour = self.behaviour
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(_event({"role": "assistant", "content": None}))
        events = -(-body["max_tokens"] // behaviour.tokens_per_event)
        for number in range(events):
            await asyncio.sleep(behaviour.gap_s if number else behaviour.first_s)
            if number == behaviour.cut_after and request.transport is not None:
                request.transport.abort()
                return response
            if number == behaviour.error_event_after:
                await response.write(b'data: {"error": {"message": "the engine died", "code": "engine"}}\n\n')
                return response
            await response.write(_event({"content": f"w{number} "}))
        await response.write(_event({}, finish_reason="length"))
        if behaviour.usage and body.get("stream_options", {}).get("include_usage"):
            usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}}
            await response.write(b"data: " + json.dumps(usage).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _error(status: int, message: str, code: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "x", "code": code}}, status=status)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--first", type=float, default=0.0)
    parser.add_argument("--gap", type=float, default=0.0)
    args = parser.parse_args()
    async with Endpoint(Behaviour(first_s=args.first, gap_s=args.gap)).serving(args.port) as endpoint:
        print(endpoint.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
