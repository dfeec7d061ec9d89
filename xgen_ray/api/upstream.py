"""Requests to the engines: one pool of connections, foreign errors translated in one place."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from xgen_ray.api.connection import Break, Connection, UpstreamBroke
from xgen_ray.schema import Endpoint

# Engines close idle connections after 5 s (uvicorn's and cpp-httplib's default): let go before they do.
KEEPALIVE_S: Final = 4.0
_ENGINES_KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask of an engine. ``headers`` are without authorization."""

    model: str
    path: str
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class _Engine:
    """One place to connect to. ``kept`` are the connections that are free, the newest last."""

    host: str
    port: int
    kept: list[Connection] = field(default_factory=list)


class Upstream:
    """Opens requests on engines. Belongs to one event loop, from its first use to ``aclose``."""

    __slots__ = ("_connect_s", "_engines", "_silence_s")

    def __init__(self, *, connect_s: float, silence_s: float) -> None:
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._engines: dict[str, _Engine] = {}

    async def open(self, endpoint: Endpoint, call: Call) -> Connection:
        """Send ``call`` and return once the status and headers are there. Raises UpstreamBroke.

        A kept connection may be closed by the engine in the very moment of its reuse, which looks
        like a crash. So a break on one is tried once more on a fresh one; an engine that refuses that one
        did die, at work on the request.
        """
        engine = self._engine(endpoint.url)
        head = _head(endpoint, call)
        if not engine.kept:
            return await _asked(await self._connect(engine), head, call.content)
        try:
            return await _asked(engine.kept.pop(), head, call.content)
        except UpstreamBroke as broke:
            if broke.how is not Break.DROPPED:
                raise
            dropped = broke
        try:
            fresh = await self._connect(engine)
        except UpstreamBroke:
            raise dropped from None
        return await _asked(fresh, head, call.content)

    async def aclose(self) -> None:
        for engine in self._engines.values():
            for connection in engine.kept.copy():
                connection.abort()
        self._engines.clear()

    def _engine(self, url: str) -> _Engine:
        engine = self._engines.get(url)
        if engine is None:
            if len(self._engines) >= _ENGINES_KEPT:
                self._engines = {known: one for known, one in self._engines.items() if one.kept}
            engine = self._engines[url] = _located(url)
        return engine

    async def _connect(self, engine: _Engine) -> Connection:
        loop = asyncio.get_running_loop()
        factory = partial(Connection, engine.kept, self._silence_s)
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(factory, engine.host, engine.port)
        except (OSError, TimeoutError):
            raise UpstreamBroke(Break.REFUSED) from None
        return connection


async def _asked(connection: Connection, head: bytes, content: bytes) -> Connection:
    try:
        await connection.ask(head, content)
    except BaseException:
        connection.close()
        raise
    return connection


def _located(url: str) -> _Engine:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or parts.scheme != "http":
        raise UpstreamBroke(Break.REFUSED)
    return _Engine(host, port or 80)


def _head(endpoint: Endpoint, call: Call) -> bytes:
    lines = [
        f"POST {call.path} HTTP/1.1",
        f"host: {endpoint.url.removeprefix('http://').rstrip('/')}",
        f"authorization: Bearer {endpoint.key}",
        f"content-length: {len(call.content)}",
        *(f"{name}: {value}" for name, value in call.headers.items()),
    ]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1:
        # Nobody gets a line of his own in here.
        raise UpstreamBroke(Break.REFUSED)
    return head.encode("latin-1") + b"\r\n\r\n"
