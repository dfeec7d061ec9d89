"""The stream: a snapshot, then what changes, to everybody who follows, from one reading."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.support import NO_TLS, NODE, SILENT, InMemoryControl, serving
from tests.process.watching import eventually
from xgen_ray.api.keys import ApiKeys
from xgen_ray.api.management import create_management_app
from xgen_ray.api.stream import MOST_PENDING, Stream
from xgen_ray.console import EventKind, EventReport
from xgen_ray.errors import NotReady
from xgen_ray.schema import LoadRequest

DEADLINE_S = 10.0


class Reading:
    """A stream as a browser reads it: event by event, comments left out."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._text = b""

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                while b"\n\n" not in self._text:
                    self._text += await anext(self._chunks)
                block, _, self._text = self._text.partition(b"\n\n")
                fields = dict(line.partition(": ")[::2] for line in block.decode().split("\n"))
                if "data" in fields:
                    return fields["event"], json.loads(fields["data"])

    async def until(self, kind: str) -> Any:
        while (told := await self.next())[0] != kind:
            pass
        return told[1]


def stream_of(control: InMemoryControl, **pace: float) -> Stream:
    return Stream(control, **{"nodes_every_s": 0.02, "settle_s": 0.0, "beat_s": 5.0, **pace})


@asynccontextmanager
async def following(stream: Stream) -> AsyncIterator[Reading]:
    chunks = stream.follow()
    try:
        yield Reading(chunks)
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]  # an async generator


def happening(number: int) -> EventReport:
    return EventReport(id=f"one.{number}", at=float(number), kind=EventKind.READY, level="info", message="m")


async def load(control: InMemoryControl, name: str) -> None:
    await control.load(LoadRequest(model=name), wait=False)
    control.change()


async def test_it_begins_with_everything() -> None:
    control = InMemoryControl()
    await load(control, "tiny")
    control.happened.append(happening(1))
    async with following(stream_of(control)) as reading:
        kind, told = await reading.next()
        assert kind == "snapshot"
        assert told["life"] == "one"
        assert [model["name"] for model in told["models"]] == ["tiny"]
        assert [event["id"] for event in told["events"]] == ["one.1"]
        if told["nodes"] is None:
            assert (await reading.until("node"))["node"] in (NODE.node, SILENT.node)


async def test_what_changes_is_told_and_nothing_else() -> None:
    control = InMemoryControl()
    await load(control, "still")
    async with following(stream_of(control)) as reading:
        await reading.until("snapshot")
        await load(control, "tiny")
        assert (await reading.until("model"))["name"] == "tiny"
        control.models.clear()
        control.change()
        gone = {(await reading.until("gone"))["model"] for _ in range(2)}
        assert gone == {"tiny", "still"}


async def test_events_are_told_in_their_order_and_once() -> None:
    control = InMemoryControl()
    control.happened = [happening(1)]
    async with following(stream_of(control)) as reading:
        await reading.until("snapshot")
        control.happened = [happening(3), happening(2), happening(1)]
        control.change()
        assert [(await reading.until("event"))["id"] for _ in range(2)] == ["one.2", "one.3"]


async def test_figures_are_told_as_their_steps_end() -> None:
    control = InMemoryControl()
    async with following(stream_of(control, figures_every_s=0.01)) as reading:
        await reading.until("snapshot")
        control.steps = (10.0, 1e10, 1e10 + 5)
        told = await reading.until("figures")
        assert [point["at"] for point in told["fleet"]] == [1e10, 1e10 + 5]
        control.steps = (*control.steps, 1e10 + 10)
        assert [point["at"] for point in (await reading.until("figures"))["fleet"]] == [1e10 + 10]


async def test_a_node_that_leaves_is_told() -> None:
    control = InMemoryControl()
    async with following(stream_of(control)) as reading:
        await reading.until("snapshot")
        control.found = (NODE,)
        assert await reading.until("gone") == {"node": SILENT.node}


async def test_nodes_that_cannot_be_asked_now_are_asked_again() -> None:
    control = InMemoryControl(unreachable=NotReady("Ray does not list its nodes"))
    async with following(stream_of(control)) as reading:
        assert (await reading.until("snapshot"))["nodes"] is None
        control.unreachable = None
        assert (await reading.until("node"))["node"] == NODE.node


async def test_all_followers_share_one_reading() -> None:
    control = InMemoryControl()
    stream = stream_of(control, nodes_every_s=60.0)
    async with following(stream) as first, following(stream) as second:
        await first.until("snapshot")
        await second.until("snapshot")
        await load(control, "tiny")
        assert (await first.until("model"))["name"] == (await second.until("model"))["name"] == "tiny"
        assert control.looks == 1


async def test_nobody_is_asked_when_nobody_follows() -> None:
    control = InMemoryControl()
    stream = stream_of(control)
    async with following(stream) as reading:
        await reading.until("snapshot")
    await asyncio.sleep(0)
    looks = control.looks
    await asyncio.sleep(0.1)
    assert control.looks == looks
    await load(control, "later")
    async with following(stream) as reading:
        assert [model["name"] for model in (await reading.until("snapshot"))["models"]] == ["later"]


async def test_a_quiet_stream_beats() -> None:
    stream = stream_of(InMemoryControl(), nodes_every_s=60.0, beat_s=0.01)
    chunks = stream.follow()
    async with asyncio.timeout(DEADLINE_S):
        while b"still here" not in await anext(chunks):
            pass
    await chunks.aclose()  # type: ignore[attr-defined]


async def test_a_fault_in_the_reading_ends_the_streams_and_the_next_begins_anew() -> None:
    control = InMemoryControl()
    stream = stream_of(control)
    async with following(stream) as reading:
        await reading.until("snapshot")
        control.broken = RuntimeError("a fault that nobody foresaw")
        control.change()
        with pytest.raises(StopAsyncIteration):
            await reading.until("event")
    control.broken = None
    async with following(stream) as reading:
        assert (await reading.until("snapshot"))["life"] == "one"


async def test_a_follower_that_does_not_read_is_let_go() -> None:
    control = InMemoryControl()
    stream = stream_of(control)
    async with following(stream) as lazy, following(stream) as reading:
        await lazy.until("snapshot")
        await reading.until("snapshot")
        for number in range(MOST_PENDING + 10):
            control.models[f"m{number}"] = await control.load(LoadRequest(model=f"m{number}"), wait=False)
        control.change()
        with pytest.raises(StopAsyncIteration):
            await lazy.until("never told")


async def test_over_http_it_is_an_event_stream_that_ends_with_its_client() -> None:
    control = InMemoryControl()
    stream = stream_of(control)
    app = Starlette(routes=[Mount("/api", create_management_app(control, ApiKeys(), stream=stream))])
    async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS) as client:
        async with client.stream("GET", f"{url}/api/management/stream") as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            assert reply.headers["cache-control"] == "no-store"
            assert (await Reading(reply.aiter_bytes()).until("snapshot"))["life"] == "one"
        await eventually(lambda: not stream._followers)
