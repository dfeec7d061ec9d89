"""Sees processes die, and waits for what gives no event of its own."""

import asyncio
import os
import select
import time
from collections.abc import Callable

from xgen_ray.process.guard import parent_of


class Deaths:
    """Watches processes by descriptors taken while they live, so that no id can be mistaken later."""

    def __init__(self) -> None:
        self._watched: dict[int, int] = {}

    def watch(self, *pids: int) -> None:
        for pid in pids:
            self._watched[pid] = os.pidfd_open(pid)

    def survivors(self, within_s: float) -> set[int]:
        """Wait for all to end; what is still alive after ``within_s``."""
        poll = select.poll()
        for fd in self._watched.values():
            poll.register(fd, select.POLLIN)
        left = {fd: pid for pid, fd in self._watched.items()}
        deadline = time.monotonic() + within_s
        # Looks once at least, however late it is: the dead are no survivors.
        while left and (ended := poll.poll(max(0.0, deadline - time.monotonic()) * 1000)):
            for fd, _ in ended:
                poll.unregister(fd)
                del left[fd]
        return set(left.values())

    def alive(self) -> set[int]:
        return self.survivors(0.001)

    def close(self) -> None:
        for fd in self._watched.values():
            os.close(fd)


async def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for what gives no event of its own."""
    async with asyncio.timeout(within_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def guards_of(pid: int) -> tuple[int, int]:
    """The guard of a child and the guard's keeper."""
    guard = parent_of(pid)
    return guard, parent_of(guard)
