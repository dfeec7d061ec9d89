"""ASGI layers that stand in front of an app: who may call at all.

A browser on the operator's machine reaches a loopback server on behalf of any web page. Two layers of
that are closed here for servers without keys: a foreign name that resolves to loopback (DNS
rebinding: the Host header gives it away) and a foreign page that posts (Origin, Sec-Fetch-Site).
"""

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from xgen_ray.api.asgi import (
    App,
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    read_body,
    require_json,
    send_error,
)
from xgen_ray.api.errors import ErrorReply, reply_for
from xgen_ray.api.keys import ApiKeys
from xgen_ray.errors import XgenRayError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class LocalGuard:
    """Refuses what a foreign web page could make a browser send. For servers without keys.

    ``allowed_hosts`` are further names (without port) under which the server may be addressed;
    ``allowed_origins`` are pages (``https://chat.example.com``) that may post from elsewhere.
    """

    __slots__ = ("_app", "_hosts", "_origins")

    def __init__(
        self, app: App, *, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower().rstrip(".") for host in allowed_hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            refusal = self._refusal(dict(scope["headers"]), scope.get("method", "GET"))
            if refusal is not None:
                if scope["type"] == "http":
                    await send_error(send, ErrorReply(403, "permission_error", refusal, "forbidden"))
                else:
                    await send({"type": "websocket.close", "code": 1008})
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Mapping[bytes, bytes], method: str) -> str | None:
        authority = headers.get(b"host", b"").decode("latin-1").lower()
        host = _host_of(authority)
        if host is None or not (host in self._hosts or _is_loopback(host)):
            return (
                f"This server has no API keys and answers only to loopback names, not to {authority!r}. "
                "Call it as localhost, allow the host name, or set an API key."
            )
        if method in SAFE_METHODS:
            return None
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin:
            if origin in self._origins or _authority_of(origin) == authority:
                return None
        elif headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin"):
            return None
        return (
            f"This server has no API keys and takes no {method} from the web page {origin or '(unnamed)'!r}. "
            "Allow that origin, or set an API key."
        )


# Where in an ASGI scope the app finds who is calling.
CALLER = "xgen_ray.caller"


class KeyGuard:
    """Lets a request through to the app when it carries one of the keys, and tells the app whose it is."""

    __slots__ = ("_app", "_keys")

    def __init__(self, app: App, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope[CALLER] = self._keys.identify(dict(scope["headers"]))
            except XgenRayError as error:
                await send_error(send, reply_for(error))
                return
        await self._app(scope, receive, send)


class JsonBodyGuard:
    """Reads bodies for the app, within limits, and refuses those that are not JSON."""

    __slots__ = ("_app", "_limit_bytes", "_timeout_s")

    def __init__(self, app: App, *, limit_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            require_json(headers)
            body = await read_body(headers, receive, limit_bytes=self._limit_bytes, timeout_s=self._timeout_s)
        except XgenRayError as error:
            await send_error(send, reply_for(error))
            return
        except ClientGone:
            return
        unread = [body]

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        await self._app(scope, replay, send)


# A server is called by few names, with every request.
@lru_cache(maxsize=64)
def _host_of(authority: str) -> str | None:
    """The name in ``name:port`` or ``[v6]:port``; None if it is neither."""
    try:
        host = urlsplit(f"//{authority}").hostname
    except ValueError:
        return None
    return host.rstrip(".") if host else None


def _authority_of(origin: str) -> str | None:
    """``host:port`` of an Origin header; None for ``null`` and anything that is no origin."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc if parts.scheme in ("http", "https") else None


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
