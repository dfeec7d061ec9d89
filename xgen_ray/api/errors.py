"""How an error looks over HTTP: OpenAI's shape, and the one table of statuses.

{"error": {"message": "...", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}}
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from xgen_ray import errors

INVALID = "invalid_request_error"
SERVER = "server_error"

# The one place where an error class meets an HTTP status. A class not listed takes its base's row.
STATUS: Mapping[type[errors.XgenRayError], tuple[int, str]] = MappingProxyType(
    {
        errors.XgenRayError: (500, SERVER),
        errors.InvalidRequest: (400, INVALID),
        errors.RequestTimeout: (408, INVALID),
        errors.PayloadTooLarge: (413, INVALID),
        errors.UnsupportedMediaType: (415, INVALID),
        errors.UnknownOption: (400, INVALID),
        errors.PathNotAllowed: (403, "permission_error"),
        errors.Unauthorized: (401, "authentication_error"),
        errors.Forbidden: (403, "permission_error"),
        errors.ModelNotFound: (404, INVALID),
        errors.NameConflict: (409, "conflict_error"),
        errors.WrongState: (409, "conflict_error"),
        errors.BadModelFile: (422, INVALID),
        errors.DownloadFailed: (502, "download_error"),
        errors.DiskFull: (507, "capacity_error"),
        # The fleet's state is at fault, not the request: the same load may fit tomorrow.
        errors.PlacementRefused: (409, "capacity_error"),
        errors.EngineFailed: (502, "engine_error"),
        errors.EngineUnreachable: (502, "engine_error"),
        errors.NotReady: (503, "not_ready_error"),
        errors.HeadUnreachable: (502, SERVER),
        errors.NodeNotStarted: (500, SERVER),
        errors.ConfigError: (500, SERVER),
        errors.NotInTime: (504, SERVER),
    }
)


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error, ready to be sent. ``details`` are for operators: the management API shows them."""

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    details: Mapping[str, Any] | None = None

    def content(self, *, with_details: bool = False, typed: bool = False) -> dict[str, Any]:
        """The body. ``typed`` adds the outer ``type`` that Anthropic's clients look for."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if with_details and self.details:
            error["details"] = dict(self.details)
        return {"type": "error", "error": error} if typed else {"error": error}

    def encode(self, *, with_details: bool = False, typed: bool = False) -> bytes:
        # ensure_ascii: what a client sent (a lone surrogate, say) is quoted back without failing.
        return json.dumps(self.content(with_details=with_details, typed=typed), default=str).encode()


def reply_for(error: errors.XgenRayError) -> ErrorReply:
    """The table, applied. The message goes to the client as it is: the tree writes it for people."""
    status, kind = next(STATUS[base] for base in type(error).__mro__ if base in STATUS)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    param: str | None = None
    details: Mapping[str, Any] | None = None
    match error:
        case errors.InvalidRequest():
            param = error.param
        case errors.ModelNotFound():
            param = "model"
        case errors.Unauthorized():
            headers = ((b"www-authenticate", b"Bearer"),)
        case errors.NotReady():
            headers = (retry_after(error.retry_after_s),)
        case errors.BadModelFile():
            details = {"path": error.path}
        case errors.PlacementRefused():
            details = {"candidates": [dict(candidate) for candidate in error.candidates]}
        case errors.EngineFailed():
            details = {"failure": error.failure, "log_tail": list(error.log_tail)}
    return ErrorReply(status, kind, error.message, error.code, param, headers, details)


def internal_error(request_id: str) -> ErrorReply:
    """For what nobody foresaw: the cause is in the log under the request's id, not in the reply."""
    message = f"The server failed to handle this request. Its log says why, under request id {request_id}."
    return ErrorReply(500, SERVER, message, "internal_error")


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    return (b"retry-after", str(max(1, math.ceil(seconds))).encode())
