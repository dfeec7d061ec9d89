"""CORS for the pages that the operator names, and for nobody else."""

from collections.abc import Iterable, Mapping
from typing import Final

from xgen_ray.errors import ConfigError

_EXPOSED: Final = (
    b"access-control-expose-headers",
    b"x-request-id, x-xgen-backend, x-xgen-pool, x-xgen-replica, retry-after",
)
_ASKED_HEADERS: Final = b"authorization, content-type, x-api-key, x-request-id, x-session-id, x-xgen-pool"


class Cors:
    """Answers for a set of origins (``https://chat.example.com``). Credentials are never allowed:
    a page sends its key in a header."""

    __slots__ = ("_origins",)

    def __init__(self, origins: Iterable[str]) -> None:
        cleaned = [origin.rstrip("/") for origin in origins]
        for origin in cleaned:
            if not origin.startswith(("http://", "https://")):
                raise ConfigError(
                    f"{origin!r} is not an origin that can be allowed. Name each page in full, "
                    "like https://chat.example.com; '*' is not taken."
                )
        self._origins = frozenset(origin.lower().encode() for origin in cleaned)

    def headers_for(self, headers: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
        """What to add to the answer of a request with these headers."""
        if not self._origins:
            return ()
        origin = headers.get(b"origin", b"")
        if origin.lower() not in self._origins:
            return ((b"vary", b"Origin"),)
        return ((b"vary", b"Origin"), (b"access-control-allow-origin", origin), _EXPOSED)

    def preflight_for(self, headers: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
        """What to add to the answer of a browser's OPTIONS."""
        if headers.get(b"origin", b"").lower() not in self._origins:
            return ()
        asked = headers.get(b"access-control-request-headers", _ASKED_HEADERS)
        return (
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", asked),
            (b"access-control-max-age", b"600"),
        )
