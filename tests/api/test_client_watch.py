"""Whose cancellation it was: the client's leaving is told apart from everybody else's."""

import asyncio
import contextlib

import pytest

from xgen_ray.api.asgi import ClientGone, Message
from xgen_ray.api.client import ClientWatch, Reply


class Client:
    """Leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def watch(self) -> ClientWatch:
        return ClientWatch(self.receive, Reply(self.send, []), stall_s=60)


async def test_leaving_ends_the_block_and_leaves_the_task_uncancelled() -> None:
    client = Client()

    async def work() -> None:
        async with client.watch():
            client.left.set()
            await asyncio.Event().wait()

    with pytest.raises(ClientGone):
        await work()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_block_that_ends_undisturbed_returns_its_value() -> None:
    async def work() -> str:
        async with Client().watch():
            return "done"

    assert await work() == "done"


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with Client().watch():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_both_at_once_is_a_cancellation() -> None:
    client, entered = Client(), asyncio.Event()

    async def work() -> None:
        async with client.watch():
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                client.left.set()
                await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_block_that_swallows_the_cancellation_has_still_lost_its_client() -> None:
    client = Client()

    async def work() -> None:
        async with client.watch():
            client.left.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    with pytest.raises(ClientGone):
        await work()
    await asyncio.sleep(0)


async def test_an_error_of_the_blocks_own_is_not_hidden() -> None:
    client = Client()

    async def work() -> None:
        async with client.watch():
            client.left.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ZeroDivisionError from None

    with pytest.raises(ZeroDivisionError):
        await work()
