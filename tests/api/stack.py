"""One gateway before one engine, each on a real socket, in the test's own event loop."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from tests.api.support import NO_TLS, InMemoryDispatcher, Play, StandInEngine, chat, serving
from xgen_ray.api.gateway import Gateway, GatewayLimits
from xgen_ray.api.keys import ApiKeys
from xgen_ray.api.relay import RetryLimits
from xgen_ray.api.tracing import Tracing

LIMITS = GatewayLimits(
    body_bytes=2 * 1024 * 1024,
    retry=RetryLimits(ready_wait_s=5.0),
)


@dataclass
class Stack:
    """``engine`` is known to ``dispatcher`` as replica r1 of model m."""

    engine: StandInEngine
    dispatcher: InMemoryDispatcher
    client: httpx.AsyncClient
    url: str


@contextlib.asynccontextmanager
async def stack(
    *plays: Play,
    otherwise: Play = chat,
    limits: GatewayLimits = LIMITS,
    keys: ApiKeys | None = None,
    cors_origins: tuple[str, ...] = (),
    tracing: Tracing | None = None,
) -> AsyncIterator[Stack]:
    dispatcher = InMemoryDispatcher()
    gateway = Gateway(
        dispatcher, keys or ApiKeys(), limits=limits, cors_origins=cors_origins, tracing=tracing
    )
    async with (
        StandInEngine(*plays, otherwise=otherwise).running() as engine,
        serving(gateway) as url,
        httpx.AsyncClient(base_url=url, verify=NO_TLS, timeout=20) as client,
    ):
        await dispatcher.add(engine.url, "r1")
        yield Stack(engine, dispatcher, client, url)
    # Whatever the test did, and once every request has ended, each choice was reported once.
    assert dispatcher.open == []
