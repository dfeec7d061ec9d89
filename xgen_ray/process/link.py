"""The owner's end of a guard: starts it, talks to it, and notices its end."""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from xgen_ray.process import guard

# Larger than Linux's default of 64 KiB: a child that floods is read with fewer wake-ups.
_PIPE_BYTES = 1024 * 1024


class GuardLink:
    """A running guard (see ``guard.py`` for what it does and says).

    ``output`` is the reading end of everything printed below the guard; the caller owns it. The stream
    of messages ends when nothing is left of the guard and of what it guarded.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        output: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.output = output
        self._process = process
        self._reader = reader
        self._writer = writer
        self._let_go = False

    @classmethod
    async def open(cls, env: Mapping[str, str]) -> Self:
        """Start a guard with ``env`` as its own environment. Raises ``OSError``."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        try:
            process, output = _spawn(theirs.fileno(), env)
        except BaseException:
            writer.close()
            raise
        finally:
            theirs.close()
        return cls(process, output, reader, writer)

    def send(self, message: dict[str, Any]) -> None:
        """Say something, unless the guard is let go or gone: then it acts on its own."""
        if not self._let_go and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        # A guard that is killed with a message unread resets the stream instead of ending it.
        with contextlib.suppress(ConnectionError):
            async for line in self._reader:
                yield json.loads(line)

    def let_go(self) -> None:
        """Be no owner any more: the guard ends everything by itself. Its messages are still read."""
        self._let_go = True
        if not self._writer.is_closing():
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()

    def bury_later(self) -> None:
        """Reap the guard whenever it ends: for a loop that closes before that."""
        threading.Thread(target=self._process.wait, name="guard's burial", daemon=True).start()

    def reap(self) -> None:
        """Bury the guard after its last message: its descriptors are closed, so it is all but gone."""
        self._process.wait()


def _spawn(socket_fd: int, env: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    output, printed = os.pipe()
    try:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # the user may have used up the memory for pipes
                fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(socket_fd), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            env=env,
            pass_fds=(socket_fd,),
            start_new_session=True,
        )
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(printed)
    return process, output
