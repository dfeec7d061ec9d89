"""One HTTP/1.1 connection to an engine: a request goes out, and its answer is read as it comes.

Every request and every piece of an answer passes here, so it does only what a relay needs: no redirects,
cookies, compression, proxies or TLS. The parser is httptools', as on the side of our clients.
"""

import asyncio
from enum import StrEnum
from typing import Final, cast

import httptools

# Larger bodies go out in pieces of this size, so that other requests get their turn.
PIECE_BYTES: Final = 256 * 1024
# So much of an answer waits here for a slow client before the engine is made to wait.
_UNREAD_BYTES: Final = 256 * 1024
_HEAD_BYTES: Final = 64 * 1024
_NO_STATUS: Final = 0


class Break(StrEnum):
    """How far a request came before the connection failed."""

    REFUSED = "refused"  # nothing was sent
    DROPPED = "dropped"  # sent, perhaps worked on, then the connection broke
    SILENT = "silent"  # sent, and no byte came for too long


class UpstreamBroke(Exception):  # never leaves this package: becomes EngineUnreachable
    """The connection to an engine failed. Carries no address: its text may reach a client."""

    def __init__(self, how: Break) -> None:
        super().__init__(how)
        self.how = how


class Connection(asyncio.Protocol):
    """Carries one request at a time: ``ask``, then ``read`` until it returns nothing, then ``close``.

    ``kept`` are the connections to the same engine that are free: this one adds itself when an answer is
    read to its end, and takes itself out when it is lost. Waiting for a byte takes at most ``silence_s``.
    Header names of an answer are in lower case.
    """

    __slots__ = (
        "_broke",
        "_head_left",
        "_heard",
        "_kept",
        "_lasting",
        "_loop",
        "_open_ended",
        "_parser",
        "_pieces",
        "_reading",
        "_silence_s",
        "_timer",
        "_transport",
        "_unread",
        "_unsent",
        "_waiter",
        "_whole",
        "_writable",
        "headers",
        "status",
    )

    _transport: asyncio.Transport

    def __init__(self, kept: list["Connection"], silence_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._kept = kept
        self._silence_s = silence_s
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._broke: Break | None = None
        self._reading = self._writable = True
        # Free: there is no answer to wait for.
        self._whole = True
        self._begin()

    def _begin(self) -> None:
        self.status = _NO_STATUS
        self.headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._unread = 0
        self._head_left = _HEAD_BYTES
        self._open_ended = self._lasting = self._unsent = False

    @property
    def at_end(self) -> bool:
        """All of the answer has been read."""
        return self._whole and not self._pieces

    async def ask(self, head: bytes, content: bytes) -> None:
        """Send a request and return once ``status`` and ``headers`` of its answer are there.

        Raises UpstreamBroke. Whatever happens, ``close`` is to follow.
        """
        if self._transport.is_closing():
            raise UpstreamBroke(Break.DROPPED)
        self._begin()
        self._whole = False
        self._heard = self._loop.time()
        self._set_timer(self._silence_s)
        if len(content) <= PIECE_BYTES:
            self._transport.write(head + content)
        else:
            await self._send_pieces(head, content)
        while self.status == _NO_STATUS:
            await self._change()

    async def _send_pieces(self, head: bytes, content: bytes) -> None:
        self._transport.write(head)
        view = memoryview(content)
        for start in range(0, len(content), PIECE_BYTES):
            self._transport.write(bytes(view[start : start + PIECE_BYTES]))
            while not self._writable:
                await self._change()
            if self.status != _NO_STATUS or self._broke is not None:
                # It has answered without hearing all (too large, perhaps), or is gone.
                self._unsent = True
                return

    async def read(self) -> bytes:
        """What has come of the answer, waiting for it; nothing at its end. Raises UpstreamBroke."""
        while not self._pieces:
            if self._whole:
                return b""
            await self._change()
        pieces, self._pieces, self._unread = self._pieces, [], 0
        if not self._reading:
            self._reading = True
            self._heard = self._loop.time()
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self, *, keep_s: float = 0.0) -> None:
        """Be done with the request: kept for ``keep_s`` if the answer is whole, else the connection ends, and
        with it the engine's work.
        """
        sound = self._whole and self._lasting and self._reading and not self._unsent
        if sound and keep_s > 0 and not self._transport.is_closing():
            self._kept.append(self)
            self._set_timer(keep_s)
        else:
            self.abort()

    def abort(self) -> None:
        self._set_timer(None)
        self._transport.abort()
        self._take_out()

    def _take_out(self) -> None:
        if self in self._kept:
            self._kept.remove(self)

    async def _change(self) -> None:
        """Something has come, or may be sent."""
        if self._broke is not None:
            raise UpstreamBroke(self._broke)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _break(self, how: Break) -> None:
        if self._broke is None:
            self._broke = how
        self.abort()
        self._wake()

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._time_over)

    def _time_over(self) -> None:
        if self._whole:
            self.abort()
            return
        # An engine that is made to wait is not silent.
        left = self._heard + self._silence_s - self._loop.time() if self._reading else self._silence_s
        if left > 0:
            self._set_timer(left)
        else:
            self._break(Break.SILENT)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break(Break.DROPPED)
            return
        if self._unread > _UNREAD_BYTES and self._reading:
            self._reading = False
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._set_timer(None)
        self._take_out()
        if error is None and self._open_ended:
            self._whole = True
        if self._broke is None:
            self._broke = Break.DROPPED
        self._writable = True
        self._wake()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._whole:
            raise ValueError("an answer that nobody has asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_left -= len(name) + len(value)
        if self._head_left < 0:
            raise ValueError("too many headers")
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            headers = self.headers
            self._open_ended = b"content-length" not in headers and b"transfer-encoding" not in headers

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._unread += len(piece)

    def on_message_complete(self) -> None:
        if self.status == _NO_STATUS:
            # Only a 100: the answer follows.
            self.headers.clear()
        else:
            self._whole = True
            # Only here does the parser know.
            self._lasting = self._parser.should_keep_alive()
