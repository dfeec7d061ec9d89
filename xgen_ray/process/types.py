"""One child process, as data: how to start it, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Readiness:
    """When the child counts as ready: ``GET url`` answers 200 before ``deadline_s`` has passed.

    ``headers`` go with each probe. A refused connection or a 503 means "not yet".
    """

    url: str
    deadline_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    interval_s: float = 0.1


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """A command that has been decided on. ``env`` is laid over the parent's environment; a value of
    None removes the variable. Every string in ``secrets`` is blanked in logs and reports.

    ``stop_grace_s`` is from TERM to KILL. TERM goes to the whole group, or with ``term_group`` off to the
    program alone: one that lets its workers finish loses what they compute if they are told, too. KILL
    always is for everything.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)
    cwd: str | None = None
    readiness: Readiness | None = None
    secrets: tuple[str, ...] = ()
    stop_grace_s: float = 10.0
    term_group: bool = True


class FailureClass(StrEnum):
    """Why an engine died, in classes that a decision can be based on.

    CANARY_FAILED has never computed; WEDGED has, and then lived on without answering or computing.
    """

    BAD_MODEL_FILE = "bad_model_file"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    OUT_OF_MEMORY = "out_of_memory"
    GPU_PAGE_FAULT = "gpu_page_fault"
    DEVICE_MISSING = "device_missing"
    DEVICE_PERMISSION = "device_permission"
    PORT_IN_USE = "port_in_use"
    UNKNOWN_FLAG = "unknown_flag"
    MISSING_LIBRARY = "missing_library"
    MISSING_BINARY = "missing_binary"
    ILLEGAL_INSTRUCTION = "illegal_instruction"
    NOT_READY_IN_TIME = "not_ready_in_time"
    CANARY_FAILED = "canary_failed"
    WEDGED = "wedged"
    STOPPED = "stopped"
    KILLED = "killed"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Failure:
    """A diagnosis in plain words. ``exit_code`` is negative for a signal, None if it never exited.

    ``evidence`` is the log line the class was read from; ``advice`` says what to do.
    """

    failure: FailureClass
    message: str
    advice: str | None = None
    exit_code: int | None = None
    evidence: str | None = None
    log_tail: tuple[str, ...] = ()
