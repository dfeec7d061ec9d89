"""HTTP to the engines: one pool of connections, foreign errors translated in one place."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import aiohttp
from yarl import URL

from xgen_ray.schema import Endpoint

# Engines close idle connections after 5 s (uvicorn's and cpp-httplib's default): let go before they do.
KEEPALIVE_S = 4.0
# Larger bodies go out in pieces of this size, so that other requests get their turn.
PIECE_BYTES = 256 * 1024
_URLS_KEPT = 1024


class Break(StrEnum):
    """How far a request came before the connection failed."""

    REFUSED = "refused"  # nothing was sent
    DROPPED = "dropped"  # sent, perhaps worked on, then the connection broke
    SILENT = "silent"  # sent, and no byte came for too long


class UpstreamBroke(Exception):  # never leaves this package: becomes EngineUnreachable
    """The connection to an engine failed. Carries no address: its text may reach a client."""

    def __init__(self, how: Break) -> None:
        super().__init__(how)
        self.how = how


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask of an engine. ``headers`` are without authorization."""

    model: str
    path: str
    headers: Mapping[str, str]
    content: bytes


@contextmanager
def engine_errors() -> Iterator[None]:
    """Translate what aiohttp raises into UpstreamBroke."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL):
        raise UpstreamBroke(Break.REFUSED) from None
    except aiohttp.SocketTimeoutError:
        raise UpstreamBroke(Break.SILENT) from None
    except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError):
        raise UpstreamBroke(Break.DROPPED) from None


class Upstream:
    """Opens requests on engines. Belongs to one event loop, from its first use to ``aclose``."""

    __slots__ = ("_connect_s", "_fresh", "_pooled", "_silence_s", "_urls")

    def __init__(self, *, connect_s: float, silence_s: float) -> None:
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._pooled: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        self._urls: dict[tuple[str, str], URL] = {}

    async def open(self, endpoint: Endpoint, call: Call) -> aiohttp.ClientResponse:
        """Send ``call`` and return once the status and headers are there. Raises UpstreamBroke.

        A kept connection may be closed by the engine in the very moment of its reuse, which looks
        like a crash. So a break on a pooled connection is tried once more on a fresh one.
        """
        if self._pooled is None:
            self._pooled = self._session(keep=True)
        try:
            return await self._post(self._pooled, endpoint, call)
        except UpstreamBroke as broke:
            if broke.how is not Break.DROPPED:
                raise
        if self._fresh is None:
            self._fresh = self._session(keep=False)
        return await self._post(self._fresh, endpoint, call)

    async def aclose(self) -> None:
        for session in (self._pooled, self._fresh):
            if session is not None:
                await session.close()
        self._pooled = self._fresh = None

    async def _post(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, call: Call
    ) -> aiohttp.ClientResponse:
        headers = {**call.headers, "authorization": f"Bearer {endpoint.key}"}
        data: bytes | AsyncIterator[bytes] = call.content
        if len(call.content) > PIECE_BYTES:
            headers["content-length"] = str(len(call.content))
            data = _pieces(call.content)
        with engine_errors():
            return await session.post(
                self._url(endpoint.url, call.path), data=data, headers=headers, allow_redirects=False
            )

    def _url(self, base: str, path: str) -> URL:
        url = self._urls.get((base, path))
        if url is None:
            if len(self._urls) >= _URLS_KEPT:
                self._urls.clear()
            url = self._urls[base, path] = URL(base.rstrip("/") + path)
        return url

    def _session(self, *, keep: bool) -> aiohttp.ClientSession:
        connector = (
            aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
            if keep
            else aiohttp.TCPConnector(limit=0, force_close=True)
        )
        return aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._connect_s, sock_read=self._silence_s
            ),
        )


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    view = memoryview(content)
    for start in range(0, len(content), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])
