"""What passes of an engine's answer: headers that concern the client, errors in OpenAI's shape."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pydantic_core import from_json

from xgen_ray.api.connection import Break
from xgen_ray.api.errors import INVALID, SERVER, ErrorReply
from xgen_ray.api.upstream import Call
from xgen_ray.schema import Endpoint

# Everything else is the engine's own business (Server, Set-Cookie, CORS) or belongs to one hop.
PASSED_HEADERS: Final = (
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"cache-control",
    b"retry-after",
)
_BODY_HEADERS: Final = frozenset({b"content-type", b"content-length", b"content-encoding"})

# Engine messages that blame the server for what the request did: (status, part of the message).
MISREPORTED: Final = ((500, "too large to process"), (500, "Failed to parse "))
# Codes that OpenAI's clients act on, by the engine's own error type.
KNOWN_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {"exceed_context_size_error": "context_length_exceeded"}
)
_NO_SUCH_ROUTE: Final = frozenset({"Not Found", "File Not Found"})
_MESSAGE_CHARS: Final = 2000


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An engine's error. ``content`` is it in its own words if they will do, else ``reply`` is sent."""

    reply: ErrorReply
    content: bytes | None
    engine_at_fault: bool


def passed_headers(
    headers: Mapping[bytes, bytes], endpoint: Endpoint, *, body: bool = True
) -> list[tuple[bytes, bytes]]:
    """The engine's headers for the client, and who answered. Without ``body``, none that describe it."""
    passed = [
        (name, value)
        for name in PASSED_HEADERS
        if (body or name not in _BODY_HEADERS) and (value := headers.get(name)) is not None
    ]
    passed.append((b"x-xgen-backend", endpoint.backend.encode("latin-1", "replace")))
    passed.append((b"x-xgen-replica", endpoint.replica_id.encode("latin-1", "replace")))
    if endpoint.pool:
        passed.append((b"x-xgen-pool", endpoint.pool.encode("latin-1", "replace")))
    return passed


def content_type(headers: Mapping[bytes, bytes]) -> bytes:
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def error_answer(status: int, body: bytes, call: Call, *, typed: bool) -> ErrorAnswer:
    """Judge an engine's error (status 400 and up, not 503). ``typed`` as in ``ErrorReply.content``."""
    if status in (401, 403):
        # Our key, not the client's: the client must not be told to check its own.
        refused = f"The engine of {call.model!r} did not accept this server. Load the model anew."
        return ErrorAnswer(ErrorReply(502, "engine_error", refused, "engine_failed"), None, True)
    error = _error_object(body)
    message = _message(error, body)
    if status == 501 or (status in (404, 405) and (error is None or message in _NO_SUCH_ROUTE)):
        message = f"The engine of {call.model!r} has no {call.path}. {message or ''}".rstrip()
        return ErrorAnswer(ErrorReply(501, INVALID, message, "not_supported", "model"), None, False)
    if any(status == wrong and text in (message or "") for wrong, text in MISREPORTED):
        return ErrorAnswer(ErrorReply(400, INVALID, message or "", "invalid_request"), None, False)
    at_fault = status >= 500
    kind = SERVER if at_fault else INVALID
    if error is not None and message is not None and isinstance(error.get("message"), str):
        return ErrorAnswer(
            ErrorReply(status, kind, error["message"]), _filled(body, error, kind, typed=typed), at_fault
        )
    if message is None:
        message = f"The engine of {call.model!r} answered {status} without a reason."
    return ErrorAnswer(
        ErrorReply(status, kind, message, "engine_error" if at_fault else "invalid_request"), None, at_fault
    )


def stream_error(model: str, how: Break, *, typed: bool) -> bytes:
    """An event that ends a stream which broke off: the official clients raise on it."""
    why = "fell silent" if how is Break.SILENT else "stopped"
    reply = ErrorReply(
        502,
        "engine_error",
        f"The engine of {model!r} {why} in the middle of the answer, which is incomplete. Ask again.",
        "engine_failed",
    )
    event = b"event: error\n" if typed else b""
    return event + b"data: " + reply.encode(typed=typed) + b"\n\n"


def _filled(body: bytes, error: Mapping[str, Any], kind: str, *, typed: bool) -> bytes:
    """The error with what its shape lacks; just ``body`` if that is nothing."""
    complete = {"message", "type", "code", "param"} <= error.keys()
    if from_json(body).get("type") == "error" or (complete and not typed):
        return body
    if not complete:
        # llama-server has no param, and its code repeats the status as a number, where OpenAI's is a word.
        code = error.get("code")
        word = KNOWN_CODES.get(str(error.get("type")), code if isinstance(code, str) else None)
        error = {"param": None, "type": kind, **error, "code": word}
    return json.dumps({"type": "error", "error": error} if typed else {"error": error}).encode()


def _error_object(body: bytes) -> dict[str, Any] | None:
    try:
        whole = from_json(body)
    except ValueError:
        return None
    error = whole.get("error") if isinstance(whole, dict) else None
    if isinstance(error, dict):
        return error
    if not isinstance(whole, dict):
        return None
    # FastAPI's {"detail": ...}, plain {"message": ...}, llama-cpp-python's {"error": "text"}.
    for text in (error, whole.get("message"), whole.get("detail")):
        if isinstance(text, str):
            return {"text": text}
    detail = whole.get("detail")
    return {"text": json.dumps(detail)} if detail else None


def _message(error: Mapping[str, Any] | None, body: bytes) -> str | None:
    """What the engine gave as its reason; a stack trace or a page of HTML is none."""
    if error is None:
        text = body.decode("utf-8", "replace").strip()
        if not text or text.startswith("<") or "\n" in text:
            return None
    else:
        text = str(error.get("message") or error.get("text") or "")
    if not text or "Traceback (most recent call last)" in text:
        return None
    return text[:_MESSAGE_CHARS]
