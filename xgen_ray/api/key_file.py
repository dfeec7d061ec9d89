"""A file of API keys that is edited while its keys are in use."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from xgen_ray.api.keys import ApiKeys
from xgen_ray.console import KeyEntry
from xgen_ray.errors import ConfigError

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0


class KeyFile:
    """Has ``keys`` be what the file says. ``read`` raises ConfigError for a file that is at fault: the keys
    before it stay then, it is told once, and read again every time until it is good.
    """

    def __init__(self, path: Path, keys: ApiKeys, read: Callable[[Path], Iterable[KeyEntry]]) -> None:
        self._path = path
        self._keys = keys
        self._read = read
        self._seen: tuple[int, ...] | None = None
        self._fault: str | None = None

    async def follow(self) -> None:
        """Look at it every second, until cancelled. No request waits for that."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Read the file if it is another than was last read, and at the first."""
        now = self._stamp()
        if now == self._seen:
            return
        try:
            self._keys.replace(self._read(self._path))
        except ConfigError as error:
            if error.message != self._fault:
                self._fault = error.message
                logger.error("the keys stay as they were: reason=%s", error.message)  # its words say all
            return
        self._seen, self._fault = now, None
        logger.info("keys are those of the file: file=%s", self._path)

    def _stamp(self) -> tuple[int, ...]:
        """What changes with the file; empty where there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return ()
        # ctime changes with the mode too, and cannot be set back.
        return status.st_ino, status.st_ctime_ns, status.st_size
