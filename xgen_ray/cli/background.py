"""Going on in the background once a command has done what its caller waits for."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from xgen_ray.cli.exits import ExitCode

_READY = b"ready"
_HANDED_ON: Final = (signal.SIGINT, signal.SIGTERM)


def detach(log: Path) -> Callable[[], None]:
    """Split off a process that goes on; returns in that one, with what it calls when it is ready.

    The process that called stays until then, and ends with 0; if the other ends first, with that one's
    exit code. Until it is ready the new process speaks to the terminal, afterwards to ``log``. It has a
    session of its own, so a Ctrl-C or the terminal's end does not reach it; while the one that called
    waits, it hands signals on. Call it before any thread is started.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    told, tell = os.pipe()
    # Until it is clear which of the two a signal finds, and with what handler, it waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)
    child = os.fork()
    if child:
        os.close(tell)
        os._exit(_wait_for(child, told))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)
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


def _wait_for(child: int, told: int) -> int:
    """The exit code of the process that waits for ``child`` to say by ``told`` that it is ready."""
    for number in _HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)
    with os.fdopen(told, "rb") as pipe:
        started = pipe.read() == _READY
    sys.stdout.flush()
    sys.stderr.flush()
    if started:
        return ExitCode.OK
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Ending well without having been ready is what it was told to by a signal.
    return code & 0xFF or ExitCode.INTERRUPTED
