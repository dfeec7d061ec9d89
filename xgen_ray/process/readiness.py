"""Finds out when a child is ready to work.

The HTTP client is imported by the first probe: a command that starts no child is there sooner without it.
"""

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from xgen_ray.process.types import Readiness

if TYPE_CHECKING:
    import aiohttp

_GIB = 2**30
# One probe never takes longer than this: a server that accepts and stays silent is asked again.
PROBE_TIMEOUT_S = 5.0
_TAKEN_TIMEOUT_S = 1.0
_SHOWN_CHARS = 200


def loading_deadline(weight_bytes: int, *, base_s: float = 120.0, per_gib_s: float = 20.0) -> float:
    """How long a model of this size may take to load, in seconds."""
    return base_s + per_gib_s * max(weight_bytes, 0) / _GIB


class HealthProbe:
    """Asks a health address until it says 200. ``last_answer`` is the latest other answer, in words."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self.last_answer: str | None = None

    async def until_ready(self) -> None:
        """Return at the first 200. Has no deadline of its own: the caller's ``asyncio.timeout`` is it."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._readiness.headers) as session:
            while True:
                if await self._answers(session):
                    return
                await asyncio.sleep(self._readiness.interval_s)

    async def _answers(self, session: "aiohttp.ClientSession") -> bool:
        import aiohttp

        try:
            async with session.get(self._readiness.url, allow_redirects=False) as response:
                if response.status == 200:
                    return True
                body = (await response.content.read(_SHOWN_CHARS)).decode("utf-8", "replace")
                self.last_answer = f"{response.status} {' '.join(body.split())}".strip()
        except aiohttp.ClientConnectorError:
            self.last_answer = "connection refused"
        except TimeoutError:
            self.last_answer = f"no answer within {PROBE_TIMEOUT_S:g} s"
        except aiohttp.ClientError as error:
            self.last_answer = f"{type(error).__name__}: {error}"
        return False


async def someone_listens(url: str) -> bool:
    """Whether the port of ``url`` is taken already. Asked before a start: an engine notices it late,
    and until then the other's answers would pass for its own."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        return False
    try:
        async with asyncio.timeout(_TAKEN_TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
