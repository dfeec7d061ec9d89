"""Every error this project raises on purpose.

    XgenRayError
    ├── InvalidRequest            the caller can mend it: a field, a value, a name
    │   ├── RequestTimeout        the request's body did not arrive in time
    │   ├── PayloadTooLarge
    │   ├── UnsupportedMediaType
    │   ├── UnknownOption         an engine flag that this build of the engine does not know
    │   └── PathNotAllowed        a path outside the model directories
    ├── Unauthorized
    ├── Forbidden                 a valid key that is not good for this
    ├── ModelNotFound             no such model is loaded, or no such file or repository exists
    ├── NameConflict              the name belongs to another model
    ├── WrongState                right request, wrong moment: load while unloading
    ├── BadModelFile              unreadable, truncated, lying or unsupported model files
    ├── DownloadFailed
    ├── DiskFull
    ├── PlacementRefused          nothing fits; carries every candidate's reason
    ├── EngineFailed              the engine died or never became ready; carries the diagnosis
    ├── EngineUnreachable         no answer from a replica that should be there
    ├── NotReady                  loading, waking or draining: try again later
    ├── HeadUnreachable           the head of the cluster that a node would join gives no answer
    ├── NodeNotStarted            Ray did not start on this machine
    ├── ConfigError               settings or configuration files
    └── NotInTime                 it was not done by its deadline, and may still be under way

Errors cross process boundaries inside Ray, which pickles them: every argument reaches
``super().__init__`` so that an unpickled error equals the one that was raised. HTTP statuses
live in one table, in ``xgen_ray.api``.
"""

from collections.abc import Mapping
from typing import Any


class XgenRayError(Exception):
    """Base of all of them. ``message`` says what happened, with the numbers, and what to do about it."""

    code: str = "internal_error"

    def __init__(self, message: str, *args: Any) -> None:
        super().__init__(message, *args)
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidRequest(XgenRayError):
    """The request cannot be served as it stands. ``param`` names the offending field, if one does."""

    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param


class RequestTimeout(InvalidRequest):
    code = "request_timeout"


class PayloadTooLarge(InvalidRequest):
    code = "payload_too_large"


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported_media_type"


class UnknownOption(InvalidRequest):
    code = "unknown_option"


class PathNotAllowed(InvalidRequest):
    code = "path_not_allowed"


class Unauthorized(XgenRayError):
    code = "invalid_api_key"


class Forbidden(XgenRayError):
    code = "forbidden"


class ModelNotFound(XgenRayError):
    code = "model_not_found"


class NameConflict(XgenRayError):
    code = "name_conflict"


class WrongState(XgenRayError):
    code = "wrong_state"


class BadModelFile(XgenRayError):
    """``path`` is the file or folder at fault."""

    code = "bad_model_file"

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message, path)
        self.path = path


class DownloadFailed(XgenRayError):
    code = "download_failed"


class DiskFull(XgenRayError):
    code = "disk_full"


class PlacementRefused(XgenRayError):
    """``candidates`` has one mapping per backend considered: ``backend``, ``reasons`` (list of str)."""

    code = "placement_refused"

    def __init__(self, message: str, candidates: tuple[Mapping[str, Any], ...] = ()) -> None:
        super().__init__(message, candidates)
        self.candidates = candidates


class EngineFailed(XgenRayError):
    """``failure`` is the failure class's value (``out_of_memory``), ``log_tail`` its last lines."""

    code = "engine_failed"

    def __init__(self, message: str, failure: str | None = None, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message, failure, log_tail)
        self.failure = failure
        self.log_tail = log_tail


class EngineUnreachable(XgenRayError):
    code = "engine_unreachable"


class NotReady(XgenRayError):
    """``retry_after_s`` is a fair guess of when to come back, in seconds."""

    code = "not_ready"

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class HeadUnreachable(XgenRayError):
    code = "head_unreachable"


class NodeNotStarted(XgenRayError):
    """``log_tail`` has the last lines that Ray printed."""

    code = "node_not_started"

    def __init__(self, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message, log_tail)
        self.log_tail = log_tail


class ConfigError(XgenRayError):
    code = "config_error"


class NotInTime(XgenRayError):
    code = "not_in_time"
