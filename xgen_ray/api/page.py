"""The page's files, in front of the management API: public, unlike what they show.

Read once and kept, plain and packed. Their entity tags are digests of the content, since a wheel's files all
carry one date; a browser asks each time whether its copy is still the one (``no-cache``), so that an upgrade
shows at once.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from xgen_ray.api.asgi import App, Receive, Scope, Send, path_of
from xgen_ray.page import FOLDER

TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)
INDEX: Final = "/index.html"
# Everything comes from this server: nothing that a model or a log says can be run or fetched.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
    (b"vary", b"accept-encoding"),
)


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is sent, whole and packed."""

    type: bytes
    content: bytes
    packed: bytes
    digest: str


class PageFiles:
    """Answers GET and HEAD of the page's own paths; everything else is ``app``'s."""

    __slots__ = ("_app", "_files")

    def __init__(self, app: App, folder: Path = FOLDER) -> None:
        self._app = app
        self._files = _read(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        path = path_of(scope)
        if path == "/" and not scope["path"].endswith("/"):
            # The page's addresses are relative: without the slash they would be those of the folder above.
            await _send(send, 307, [(b"location", scope["path"].rpartition("/")[2].encode() + b"/")])
            return
        file = self._files.get(INDEX if path == "/" else path)
        if file is None:
            await self._app(scope, receive, send)
            return
        await _answer(file, dict(scope["headers"]), send, head=scope["method"] == "HEAD")


async def _answer(file: _File, headers: Mapping[bytes, bytes], send: Send, *, head: bool) -> None:
    packed = b"gzip" in headers.get(b"accept-encoding", b"")
    # A packed body is another representation, so it has another tag.
    tag = f'"{file.digest}{"-gz" if packed else ""}"'.encode()
    own = [(b"etag", tag), *_HEADERS]
    if tag in headers.get(b"if-none-match", b""):
        await _send(send, 304, own)
        return
    body = file.packed if packed else file.content
    own += [(b"content-type", file.type), (b"content-length", str(len(body)).encode())]
    if packed:
        own.append((b"content-encoding", b"gzip"))
    await _send(send, 200, own, b"" if head else body)


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _read(folder: Path) -> Mapping[str, _File]:
    """Every file of a type that a page has, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in TYPES and path.is_file():
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:24]
            packed = gzip.compress(content, mtime=0)
            found[f"/{path.relative_to(folder)}"] = _File(
                TYPES[path.suffix].encode(), content, packed, digest
            )
    return found
