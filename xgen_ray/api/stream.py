"""One stream of what changes, for any number of followers: server-sent events.

    event: snapshot   everything at once (``console.Snapshot``), first and once
    event: model      a model's status, new or changed        event: gone    {"model": name} or {"node": id}
    event: node       a node's report, new or changed         event: event   something that happened
    event: figures    the steps of ``GET figures`` that are over since the last ones

A follower that comes back, also after a restart of control, gets a snapshot again: there is nothing to
resume from, and nothing to miss. Figures of before are not in it: who shows them asks for them.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from typing import Final, TypeVar

from pydantic import BaseModel

from xgen_ray.api.contracts import ControlPlane
from xgen_ray.console import EventReport, Snapshot
from xgen_ray.errors import XgenRayError
from xgen_ray.schema import ModelStatus, NodeReport

logger = logging.getLogger(__name__)

# A load tells its progress many times a second; an eye needs it a few times.
SETTLE_S: Final = 0.25
# Live figures of a node cost it a fraction of a second of its CPU.
NODES_EVERY_S: Final = 4.0
FIGURES_EVERY_S: Final = 2.5
# A comment, so that both sides notice when the other has gone.
BEAT_S: Final = 10.0
# A follower that has left so much unread is let go; it comes back for a snapshot.
MOST_PENDING: Final = 2000

T = TypeVar("T", bound=BaseModel)


class Stream:
    """Reads control once for all followers, and only while there are any. Belongs to one event loop."""

    def __init__(
        self,
        control: ControlPlane,
        *,
        nodes_every_s: float = NODES_EVERY_S,
        figures_every_s: float = FIGURES_EVERY_S,
        settle_s: float = SETTLE_S,
        beat_s: float = BEAT_S,
    ) -> None:
        self._control = control
        self._nodes_every_s = nodes_every_s
        self._figures_every_s = figures_every_s
        self._settle_s = settle_s
        self._beat_s = beat_s
        self._followers: set[_Follower] = set()
        self._reader: asyncio.Task[None] | None = None
        self._forget()

    async def follow(self) -> AsyncIterator[bytes]:
        """Events until the caller stops asking, or falls too far behind."""
        follower = _Follower()
        self._followers.add(follower)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
            self._reader.add_done_callback(self._ended)
        try:
            yield b": welcome\n\n"
            await self._known.wait()
            follower.take()
            if not follower.ended:
                yield _encode("snapshot", self._snapshot())
            while not follower.ended:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._beat_s):
                        await follower.wake.wait()
                yield b"".join(follower.take()) or b": still here\n\n"
        finally:
            self._followers.discard(follower)
            if not self._followers and self._reader is not None:
                self._reader.cancel()
                self._reader = None
                self._forget()

    def _forget(self) -> None:
        """Nobody has looked for a while: what was known may be wrong by now."""
        self._known = asyncio.Event()
        self._life = ""
        self._models: Mapping[str, ModelStatus] = {}
        self._nodes: Mapping[str, NodeReport] | None = None
        self._events: tuple[EventReport, ...] = ()

    def _snapshot(self) -> Snapshot:
        nodes = None if self._nodes is None else tuple(self._nodes.values())
        return Snapshot(
            life=self._life, models=tuple(self._models.values()), nodes=nodes, events=self._events
        )

    async def _read(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_models())
            group.create_task(self._read_nodes())
            group.create_task(self._read_figures())

    def _ended(self, reader: asyncio.Task[None]) -> None:
        """Followers of a reader that failed come back, and start another."""
        if reader.cancelled() or (error := reader.exception()) is None:
            return
        logger.error("reading for the stream failed", exc_info=error)
        self._reader = None
        known = self._known
        self._forget()
        for follower in self._followers:
            follower.end()
        known.set()

    async def _read_models(self) -> None:
        stamp: str | None = None
        while True:
            stamp = await self._control.changed(stamp)
            status, happened = await self._control.status(), await self._control.events()
            self._tell_changes("model", self._models, models := {one.name: one for one in status.models})
            known = {event.id for event in self._events}
            for event in reversed(happened.events):
                if event.id not in known and self._known.is_set():
                    self._tell(("event", event.id), "event", event)
            self._models, self._events, self._life = models, happened.events, happened.life
            self._known.set()
            await asyncio.sleep(self._settle_s)

    async def _read_nodes(self) -> None:
        while True:
            if (report := await _if_answered(self._control.nodes)) is not None:
                nodes = {one.node_id or one.node: one for one in report.nodes}
                self._tell_changes("node", self._nodes or {}, nodes)
                self._nodes = nodes
            await asyncio.sleep(self._nodes_every_s)

    async def _read_figures(self) -> None:
        since = (await self._control.figures(time.time())).now
        while True:
            await asyncio.sleep(self._figures_every_s)
            figures = await self._control.figures(since)
            if figures.fleet:
                since = max(point.at for point in figures.fleet)
                self._tell(("figures", since), "figures", figures)

    def _tell_changes(self, kind: str, before: Mapping[str, T], after: Mapping[str, T]) -> None:
        for name, report in after.items():
            if before.get(name) != report:
                self._tell((kind, name), kind, report)
        for name in before.keys() - after.keys():
            self._tell((kind, name), "gone", {kind: name})

    def _tell(self, key: Hashable, kind: str, what: BaseModel | Mapping[str, str]) -> None:
        message = _encode(kind, what)
        for follower in self._followers:
            follower.put(key, message)


class _Follower:
    """What one follower has not been sent yet: of the same thing only the newest."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.ended = False
        self._pending: dict[Hashable, bytes] = {}

    def put(self, key: Hashable, message: bytes) -> None:
        self._pending.pop(key, None)
        self._pending[key] = message
        if len(self._pending) > MOST_PENDING:
            self.ended = True
        self.wake.set()

    def take(self) -> list[bytes]:
        taken = list(self._pending.values())
        self._pending.clear()
        self.wake.clear()
        return taken

    def end(self) -> None:
        self.ended = True
        self.wake.set()


def _encode(kind: str, what: BaseModel | Mapping[str, str]) -> bytes:
    text = what.model_dump_json() if isinstance(what, BaseModel) else json.dumps(what)
    return f"event: {kind}\ndata: {text}\n\n".encode()


async def _if_answered(ask: Callable[[], Awaitable[T]]) -> T | None:
    """None when there is no answer now: the next round asks again."""
    try:
        return await ask()
    except XgenRayError as error:
        logger.warning("no answer for the stream: %s", error)
        return None
