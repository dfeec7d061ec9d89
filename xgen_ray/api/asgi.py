"""The little of ASGI that both apps share: its types, a bounded body, a JSON answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from xgen_ray.api.errors import ErrorReply
from xgen_ray.errors import PayloadTooLarge, RequestTimeout, UnsupportedMediaType

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


class ClientGone(Exception):  # the one outcome that nobody is told of
    """The client closed its connection before it had the whole answer."""


def path_of(scope: Scope) -> str:
    """The path below the place where the app is mounted, without a trailing slash."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        path = path[len(root) :]
    return path.rstrip("/") or "/"


def require_json(headers: Mapping[bytes, bytes]) -> None:
    """Raise UnsupportedMediaType unless the body is declared as plain JSON."""
    declared = headers.get(b"content-type", b"")
    kind = declared.partition(b";")[0].strip().lower()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        shown = f"{declared.decode('latin-1')!r}" if declared else "missing"
        raise UnsupportedMediaType(
            f"The body must be JSON, but its content-type is {shown}. Send 'content-type: application/json'."
        )
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity":
        raise UnsupportedMediaType(
            f"The body is encoded as {encoding.decode('latin-1')!r}; this server reads plain JSON only. "
            "Send it uncompressed."
        )


async def read_body(
    headers: Mapping[bytes, bytes], receive: Receive, *, limit_bytes: int, timeout_s: float
) -> bytes:
    """The whole body. Raises PayloadTooLarge before reading more than the limit, RequestTimeout when it
    does not arrive in time, ClientGone when the client leaves."""
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(f"{int(declared):,}", limit_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, limit_bytes)
    except TimeoutError:
        raise RequestTimeout(
            f"The body did not arrive within {timeout_s:g} s. Send it faster or in smaller parts."
        ) from None


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        if len(whole) > limit_bytes:
            raise _too_large(f"{len(whole):,}", limit_bytes)
        return whole
    parts = bytearray()
    while message["type"] == "http.request":
        parts += message.get("body", b"")
        if len(parts) > limit_bytes:
            raise _too_large(f"more than {limit_bytes:,}", limit_bytes)
        if not message.get("more_body"):
            return bytes(parts)
        message = await receive()
    raise ClientGone


def _too_large(size: str, limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body has {size} bytes; this server takes at most {limit_bytes:,}. "
        "Send less, or have the operator raise the limit."
    )


async def send_json(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """A whole JSON answer in one go."""
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, reply: ErrorReply, headers: Headers = (), *, details: bool = False) -> None:
    await send_json(send, reply.status, reply.encode(with_details=details), (*reply.headers, *headers))
