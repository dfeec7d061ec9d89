"""One request on its way through: an engine is chosen, and its answer passes, byte for byte.

As long as the client has seen nothing, a failing engine is replaced by another. From the first byte on
the answer is that engine's: if it breaks off, the client is told so.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from xgen_ray.api.answers import content_type, error_answer, passed_headers, stream_error
from xgen_ray.api.client import Reply
from xgen_ray.api.connection import Break, Connection, UpstreamBroke
from xgen_ray.api.contracts import Dispatcher
from xgen_ray.api.event_stream import EventStream
from xgen_ray.api.tracing import Trace
from xgen_ray.api.upstream import KEEPALIVE_S, Call, Upstream
from xgen_ray.errors import EngineUnreachable, NotReady
from xgen_ray.schema import Endpoint, Outcome, RequestHints

# How much of an engine's error is read; what is longer is cut.
ERROR_BYTES: Final = 256 * 1024
EVENTS: Final = b"text/event-stream"
# An answer is measured in what it takes no reading to count: its events, or its bytes.
EVENT_START: Final = b"data: "
BYTES_A_UNIT: Final = 4
TOO_MANY: Final = 429
_FIRST_PAUSE_S: Final = 0.25
_LAST_PAUSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """``ready_wait_s`` is how long a request waits for a model that is not ready; one for a stream gets a
    comment every ``sign_of_life_s``.

    ``replicas`` is how many may fail one request before it is given up; ``crashes`` how many of those
    may die while at work on it: such a request may be the cause.
    """

    ready_wait_s: float = 300.0
    sign_of_life_s: float = 2.0
    replicas: int = 4
    crashes: int = 2


class Lease:
    """A chosen engine, and the duty to report exactly once how it went. ``units``: so much is answered."""

    __slots__ = ("_dispatcher", "_open", "endpoint", "units")

    def __init__(self, dispatcher: Dispatcher, endpoint: Endpoint) -> None:
        self._dispatcher = dispatcher
        self._open = True
        self.endpoint = endpoint
        self.units = 0

    def answering(self) -> None:
        """The first byte is there."""
        self._dispatcher.answering(self.endpoint)

    def finish(self, outcome: Outcome) -> None:
        """The first call counts."""
        if self._open:
            self._open = False
            self._dispatcher.finished(self.endpoint, outcome, units=self.units)


class Relay:
    """Carries one ``call`` to an engine and its answer to ``reply``."""

    __slots__ = (
        "_avoid",
        "_breaks",
        "_call",
        "_dispatcher",
        "_hints",
        "_limits",
        "_loop",
        "_pause_s",
        "_refused",
        "_reply",
        "_signed_at",
        "_trace",
        "_typed",
        "_until",
        "_upstream",
        "answered",
        "endpoint",
    )

    def __init__(
        self,
        call: Call,
        reply: Reply,
        dispatcher: Dispatcher,
        upstream: Upstream,
        limits: RetryLimits,
        hints: RequestHints,
        *,
        typed: bool,
        trace: Trace | None = None,
    ) -> None:
        self._call = call
        self._reply = reply
        self._dispatcher = dispatcher
        self._upstream = upstream
        self._limits = limits
        self._hints = hints
        self._typed = typed
        self._trace = trace
        self._loop = asyncio.get_running_loop()
        self._signed_at = self._loop.time()
        self._until = self._signed_at + limits.ready_wait_s
        self._avoid: frozenset[str] = frozenset()
        self._pause_s = _FIRST_PAUSE_S
        self._breaks: list[Break] = []
        self._refused: set[str] = set()
        self.endpoint: Endpoint | None = None
        # To the last event, or byte: what the client does now is its own affair.
        self.answered = False

    async def run(self) -> bool:
        """Get an answer to the client, whole or with an error at its end.

        False: the answer broke off in a way that only closing the connection can tell. Raises what
        ``choose`` raises, and EngineUnreachable when too many engines failed.
        """
        while True:
            lease = Lease(self._dispatcher, await self._choose())
            self.endpoint = lease.endpoint
            if self._trace is not None:
                self._trace.mark("choose an engine", _told(lease.endpoint))
            try:
                whole = await self._attempt(lease)
            except UpstreamBroke as broke:
                lease.finish(Outcome.FAILED)
                self._count(broke.how, lease.endpoint.replica_id)
            else:
                if whole is not None:
                    return whole
            finally:
                # Left by the client, or by a fault of our own: the engine did nothing wrong.
                lease.finish(Outcome.CANCELLED)
            self._avoid |= {lease.endpoint.replica_id}

    async def _choose(self) -> Endpoint:
        """An engine that has not failed this request, or after a pause one that has."""
        left = self._until - self._loop.time()
        if self._avoid:
            pause = min(self._pause_s, left)
            self._pause_s = min(self._pause_s * 2, _LAST_PAUSE_S)
            try:
                return await self._ask(pause)
            except NotReady:
                left = self._until - self._loop.time()
                if left <= 0:
                    if self._breaks:
                        raise EngineUnreachable(_given_up(self._call.model, self._breaks)) from None
                    raise
                self._avoid = frozenset()
        return await self._ask(left)

    async def _ask(self, seconds: float) -> Endpoint:
        """An engine within ``seconds``. Who waits for a stream hears meanwhile that it is being worked on."""
        until = self._loop.time() + max(seconds, 0.0)
        while True:
            began = self._loop.time()
            sign_at = self._signed_at + self._limits.sign_of_life_s if self._hints.streamed else math.inf
            part = max(0.0, min(until, sign_at) - began)
            try:
                return await self._dispatcher.choose(
                    self._call.model, deadline_s=part, avoid=self._avoid, hints=self._hints
                )
            except NotReady as error:
                now = self._loop.time()
                # One that came early is no matter of time.
                if now < began + part / 2:
                    raise
                if now >= self._until:
                    raise _not_in_time(error, self._limits.ready_wait_s) from None
                if now >= sign_at:
                    await self._reply.sign_of_life(f"waiting for {self._call.model}")
                    self._signed_at = now
                if now >= until:
                    raise

    def _count(self, how: Break, replica_id: str) -> None:
        """Give up, or not, after one more engine broke. One that refuses again is no further one: it is dead,
        and the dispatcher has not heard of it yet.
        """
        if how is Break.REFUSED:
            if replica_id in self._refused:
                return
            self._refused.add(replica_id)
        self._breaks.append(how)
        crashes = sum(how is not Break.REFUSED for how in self._breaks)
        if (
            how is Break.SILENT
            or crashes >= self._limits.crashes
            or len(self._breaks) >= self._limits.replicas
        ):
            raise EngineUnreachable(_given_up(self._call.model, self._breaks)) from None

    async def _attempt(self, lease: Lease) -> bool | None:
        """Ask one engine. None: it is not ready, ask again. Raises UpstreamBroke before the first byte."""
        answer = await self._upstream.open(lease.endpoint, self._call)
        try:
            if answer.status == 503:
                lease.finish(Outcome.NOT_READY)
                return None
            if answer.status >= 400:
                await self._pass_error(answer, lease)
                return True
            first = await answer.read()
            events = EventStream() if content_type(answer.headers) == EVENTS else None
            if events is not None and events.feed(first):
                # The client has seen nothing yet: as good as no answer.
                raise UpstreamBroke(Break.DROPPED)
            return await self._pass(answer, first, lease, events)
        finally:
            # Ends the connection, and with it the engine's work, unless the answer is complete.
            answer.close(keep_s=KEEPALIVE_S)

    async def _pass(self, answer: Connection, first: bytes, lease: Lease, events: EventStream | None) -> bool:
        """Without ``events`` it is no stream of them."""
        lease.answering()
        if self._trace is not None:
            self._trace.mark("first byte")
        reply, chunk = self._reply, first
        await reply.start(answer.status, passed_headers(answer.headers, lease.endpoint))
        while True:
            done = answer.at_end
            lease.units += len(chunk) // BYTES_A_UNIT if events is None else chunk.count(EVENT_START)
            if done or (events is not None and events.ended):
                lease.finish(Outcome.OK)
                self.answered = True
            await reply.body(chunk, more=not done)
            if done:
                return True
            last = chunk
            try:
                chunk = await answer.read()
            except UpstreamBroke as broke:
                if self.answered:
                    # Only the end of the body was missing.
                    await reply.body(b"", more=False)
                    return True
                lease.finish(Outcome.FAILED)
                return events is not None and await self._broke_off(last, broke.how)
            if events is not None and events.feed(chunk):
                lease.finish(Outcome.FAILED)

    async def _broke_off(self, last: bytes, how: Break) -> bool:
        """The end of a stream of events that has none of its own."""
        # A torn event is closed first, so that the error is read as an event of its own.
        torn = b"" if last.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
        await self._reply.body(torn + stream_error(self._call.model, how, typed=self._typed), more=False)
        return True

    async def _pass_error(self, answer: Connection, lease: Lease) -> None:
        body = bytearray()
        while chunk := await answer.read():
            body += chunk
            if len(body) > ERROR_BYTES:
                break
        error = error_answer(answer.status, bytes(body), self._call, typed=self._typed)
        lease.finish(_outcome_of(answer.status, at_fault=error.engine_at_fault))
        headers = passed_headers(answer.headers, lease.endpoint, body=False)
        if error.content is not None:
            await self._reply.json(error.reply.status, error.content, headers, typed=self._typed)
        else:
            await self._reply.error(replace(error.reply, headers=()), headers, typed=self._typed)


def _told(endpoint: Endpoint) -> Mapping[str, str]:
    """What a trace tells of an engine."""
    return {
        "replica": endpoint.replica_id,
        "backend": endpoint.backend,
        "pool": endpoint.pool,
        "chosen": endpoint.why,
    }


def _outcome_of(status: int, *, at_fault: bool) -> Outcome:
    """How a request ended that was answered with an error."""
    if status == TOO_MANY:
        return Outcome.FULL
    return Outcome.FAILED if at_fault else Outcome.CLIENT_ERROR


def _not_in_time(error: NotReady, waited_s: float) -> NotReady:
    return NotReady(f"{error.message}; gave up after {waited_s:g} s. Try again.", error.retry_after_s)


def _given_up(model: str, breaks: list[Break]) -> str:
    if breaks[-1] is Break.SILENT:
        return (
            f"The engine of {model!r} sent nothing for too long and was given up. Ask for less, or try again."
        )
    refused = breaks.count(Break.REFUSED)
    died = len(breaks) - refused
    parts = [f"{died} broke off"] if died else []
    parts += [f"{refused} refused the connection"] if refused else []
    hint = " This request may be what stops them." if died > 1 else ""
    return (
        f"No engine of {model!r} answered: {' and '.join(parts)} before the first byte.{hint} "
        "Try again, or look at the model's log."
    )
