"""Takes what a child prints, however much it is, and turns it into log lines."""

import asyncio
import os
import re

from xgen_ray.process.logs import LogRing

_LINE_ENDS = re.compile(rb"\r\n|\n|\r")
_READ_BYTES = 256 * 1024
# What is read at once when a child has ended: everything that the pipe can hold, and then some.
_LAST_READS = 16


class Output:
    """The reading end of a child's stdout and stderr, read by the running loop.

    One piece per turn of the loop, so that a flood starves nobody; always read, so that a child never
    blocks on its log. Owns the descriptor.
    """

    def __init__(self, descriptor: int, ring: LogRing) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor: int | None = descriptor
        self._feed = LineFeed(ring)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)

    def drain(self) -> None:
        """Take what has been printed so far, with an unfinished last line."""
        for _ in range(_LAST_READS):
            if not self._read():
                break
        self._feed.close()

    def close(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> bool:
        if self._descriptor is None:
            return False
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._feed.feed(data, self._loop.time())
        else:
            self.close()
        return bool(data)


class LineFeed:
    """Turns raw output into lines of a ``LogRing``, at bounded cost whatever comes.

    Bytes without a newline pile up to what a line may show and no further. Beyond ``lines_per_s``
    (with bursts of ``burst``) only the last lines of each piece are kept and the rest are counted:
    the last words before a death are never among the dropped. ``now`` is any steady clock, in seconds.
    """

    KEPT_OF_A_FLOOD = 2

    def __init__(self, ring: LogRing, *, lines_per_s: float = 2000.0, burst: int = 8000) -> None:
        self._ring = ring
        self._rate = lines_per_s
        self._burst = burst
        self._allowance = float(burst)
        self._last: float | None = None
        self._skipped = 0
        self._partial = b""
        self._partial_cut = 0
        # In UTF-8 a character takes up to four bytes.
        self._max_partial = ring.max_line_chars * 16

    def feed(self, data: bytes, now: float) -> None:
        if self._last is not None:
            self._allowance = min(self._burst, self._allowance + (now - self._last) * self._rate)
        self._last = now
        # A count is much cheaper than a split: do not split what will not be kept.
        budget = max(int(self._allowance), self.KEPT_OF_A_FLOOD)
        ends = data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
        if ends > budget:
            data = self._skip(data, ends)
        *complete, rest = _LINE_ENDS.split(data)
        for piece in complete:
            self._extend(piece)
            self._end_line()
        self._extend(rest)
        self._allowance = max(self._allowance - len(complete), 0.0)

    def close(self) -> None:
        """The output has ended, or pauses for good: what there is of a last line counts."""
        self._end_line()

    def _skip(self, data: bytes, ends: int) -> bytes:
        at = len(data)
        for _ in range(self.KEPT_OF_A_FLOOD + 1):
            at = max(data.rfind(b"\n", 0, at), data.rfind(b"\r", 0, at))
            if at < 0:
                return data
        self._skipped += ends - self.KEPT_OF_A_FLOOD
        self._partial, self._partial_cut = b"", 0
        return data[at + 1 :]

    def _extend(self, piece: bytes) -> None:
        room = self._max_partial - len(self._partial)
        self._partial += piece[:room]
        self._partial_cut += max(len(piece) - room, 0)

    def _end_line(self) -> None:
        if not self._partial:
            return
        if self._skipped:
            self._ring.append(f"... {self._skipped} lines skipped: they came too fast to keep")
            self._skipped = 0
        self._ring.append(self._partial.decode("utf-8", "replace"), more_chars=self._partial_cut)
        self._partial, self._partial_cut = b"", 0
