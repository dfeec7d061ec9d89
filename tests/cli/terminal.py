"""A program on a terminal of its own: type into it, wait for what it shows."""

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil

_WAITS_IN_S = 5.0


class Terminal:
    """The far end of a pseudo terminal. Every wait has a deadline and fails with what was shown."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, *, deadline_s: float = 20.0) -> str:
        """Return what came up to the end of ``text``, and forget it."""
        deadline = time.monotonic() + deadline_s
        while text not in self.shown:
            if not self._read(deadline):
                message = f"{text!r} did not appear; shown: {self.shown!r}"
                raise AssertionError(message)
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def interrupt(self) -> None:
        """Do what Ctrl-C does, once the program waits for something.

        Between what it shows and its next wait, Python's line editing hears of a signal at the next key only.
        """
        program, deadline = psutil.Process(self.process.pid), time.monotonic() + _WAITS_IN_S
        while program.status() != psutil.STATUS_SLEEPING and time.monotonic() < deadline:
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)

    def leave(self, *, deadline_s: float = 20.0) -> int:
        """Wait for the program's end and return its exit code."""
        deadline = time.monotonic() + deadline_s
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._master], [], [], left)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:
            # Linux' way of saying that the other end is closed.
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(
    command: Sequence[str], env: Mapping[str, str], *, columns: int = 80, lines: int = 24
) -> Iterator[Terminal]:
    """Run ``command`` on a terminal of that size; it is gone afterwards."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**env, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)},
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait(10)
        os.close(master)
