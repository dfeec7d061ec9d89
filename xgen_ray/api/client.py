"""The client's side of a request: what is sent to it, and noticing that it has left."""

import asyncio
from types import TracebackType
from typing import Self

from xgen_ray.api.asgi import ClientGone, Headers, Message, Receive, Send, send_json
from xgen_ray.api.errors import ErrorReply


class Reply:
    """The answer on its way to the client. ``started``: its status can no longer change. ``early``: it went
    out with a sign of life, before there was an answer, and whatever comes now comes as events.

    ``headers`` go on every answer.
    """

    __slots__ = ("_headers", "_loop", "_send", "bytes_sent", "early", "sending_since", "started", "status")

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self.started = False
        self.early = False
        self.status: int | None = None
        self.sending_since: float | None = None
        self.bytes_sent = 0

    async def sign_of_life(self, words: str) -> None:
        """A comment, which clients of event streams skip: nobody on the way gives the connection up."""
        if not self.started:
            await self.start(200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")])
            self.early = True
        await self.body(f": {words}\n\n".encode(), more=True)

    async def start(self, status: int, headers: Headers) -> None:
        if self.early:
            return
        self.started = True
        self.status = status
        await self._out(
            {"type": "http.response.start", "status": status, "headers": [*headers, *self._headers]}
        )

    async def body(self, chunk: bytes, *, more: bool) -> None:
        self.bytes_sent += len(chunk)
        await self._out({"type": "http.response.body", "body": chunk, "more_body": more})

    async def json(self, status: int, body: bytes, headers: Headers = (), *, typed: bool = False) -> None:
        """A whole answer. After a sign of life it can only be an error, and is the last event: ``typed`` says
        so in the event's type.
        """
        if self.early:
            event = b"event: error\n" if typed else b""
            await self.body(event + b"data: " + body.replace(b"\n", b" ") + b"\n\n", more=False)
            return
        self.started = True
        self.status = status
        self.bytes_sent += len(body)
        await send_json(self._out, status, body, [*headers, *self._headers])

    async def error(self, reply: ErrorReply, headers: Headers = (), *, typed: bool = False) -> None:
        await self.json(reply.status, reply.encode(typed=typed), [*reply.headers, *headers], typed=typed)

    async def _out(self, message: Message) -> None:
        self.sending_since = self._loop.time()
        await self._send(message)
        self.sending_since = None


class ClientWatch:
    """Inside it, a client that leaves or stops reading ends the block with ClientGone, at once.

    To be entered once the request's body has been read: from then on the server's only message is
    that the client has gone. Whatever the block is waiting for is cancelled.
    """

    __slots__ = ("_cancelling", "_gone", "_receive", "_reply", "_stall_s", "_task", "_timer", "_watcher")

    def __init__(self, receive: Receive, reply: Reply, *, stall_s: float) -> None:
        self._receive = receive
        self._reply = reply
        self._stall_s = stall_s
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - ASGI apps run in a task; this narrows the type
        self._task = task
        self._cancelling = task.cancelling()
        loop = asyncio.get_running_loop()
        self._watcher = loop.create_task(self._watch())
        self._timer = loop.call_later(self._stall_s, self._check_stall, loop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        self._timer.cancel()
        if not self._gone:
            return
        # Somebody else may have cancelled the task as well; then it stays cancelled.
        if self._task.uncancel() <= self._cancelling and kind in (None, asyncio.CancelledError):
            raise ClientGone from None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _check_stall(self, loop: asyncio.AbstractEventLoop) -> None:
        since = self._reply.sending_since
        left = self._stall_s if since is None else since + self._stall_s - loop.time()
        if left <= 0:
            self._leave()
        else:
            self._timer = loop.call_later(left, self._check_stall, loop)

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self._task.cancel()
