"""Going on in the background once a command has done what its caller waits for."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

_READY = b"ready"


def detach(log: Path) -> Callable[[], None]:
    """Split off a process that goes on; returns in that one, with what it calls when it is ready.

    The process that called stays until then, and ends with 0; if the other ends first, with that one's
    exit code. Until it is ready the new process speaks to the terminal, afterwards to ``log``. It has a
    session of its own, so a Ctrl-C or the terminal's end does not reach it. Call it before any thread is
    started.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    told, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        with os.fdopen(told, "rb") as pipe:
            started = pipe.read() == _READY
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if started else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    os.close(told)
    os.setsid()

    def ready() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        with open(os.devnull) as nothing, log.open("a") as file:  # noqa: PTH123  # a device, not a path
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.write(tell, _READY)
        os.close(tell)

    return ready
