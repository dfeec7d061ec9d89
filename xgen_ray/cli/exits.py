"""Exit codes, and the one place where an error becomes one.

0    all is well
1    it failed: a load that ended badly, an engine that died, a server's own fault
2    the request is at fault: usage, an unknown model or option, a bad file (HTTP 4xx)
3    no server can be reached
4    not authorised: no API key, a wrong one, or one that may not do this
5    refused by placement: nothing here can run the model
6    timed out; what was asked for may still go on
130  interrupted
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from xgen_ray import errors


class ExitCode(IntEnum):
    """How a command ended, for scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    UNAUTHORISED = 4
    REFUSED = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends a command with ``exit_code``. ``message`` goes to stderr, ``hint`` under it."""

    def __init__(self, exit_code: ExitCode, message: str, hint: str | None = None) -> None:
        super().__init__(exit_code, message, hint)
        self.exit_code = exit_code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


# A class not listed takes its base's row.
_BY_CLASS: Mapping[type[errors.XgenRayError], ExitCode] = MappingProxyType(
    {
        errors.XgenRayError: ExitCode.FAILED,
        errors.InvalidRequest: ExitCode.USAGE,
        errors.RequestTimeout: ExitCode.TIMED_OUT,
        errors.Unauthorized: ExitCode.UNAUTHORISED,
        errors.Forbidden: ExitCode.UNAUTHORISED,
        errors.ModelNotFound: ExitCode.USAGE,
        errors.NameConflict: ExitCode.USAGE,
        errors.WrongState: ExitCode.USAGE,
        errors.BadModelFile: ExitCode.USAGE,
        errors.HeadUnreachable: ExitCode.UNREACHABLE,
        errors.ConfigError: ExitCode.USAGE,
        errors.PlacementRefused: ExitCode.REFUSED,
        errors.NotInTime: ExitCode.TIMED_OUT,
    }
)


def code_of_error(error: errors.XgenRayError) -> ExitCode:
    """Return the exit code of an error raised on this machine."""
    return next(_BY_CLASS[base] for base in type(error).__mro__ if base in _BY_CLASS)


def code_of_answer(status: int, code: str | None) -> ExitCode:
    """Return the exit code of an HTTP error: by its ``code`` where that is one of ours, else its status."""
    for kind in _all_errors():
        if kind.code == code and kind is not errors.XgenRayError:
            return next(_BY_CLASS[base] for base in kind.__mro__ if base in _BY_CLASS)
    if status in (401, 403):
        return ExitCode.UNAUTHORISED
    if status in (408, 504):
        return ExitCode.TIMED_OUT
    return ExitCode.USAGE if 400 <= status < 500 else ExitCode.FAILED


def _all_errors(root: type[errors.XgenRayError] = errors.XgenRayError) -> list[type[errors.XgenRayError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _all_errors(child))]
