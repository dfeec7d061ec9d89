"""Shared by the API's tests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import pytest_asyncio
import uvloop

from tests.api.stack import Stack, stack
from tests.api.support import chat, served

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    """What touches transports runs on both loops: Ray's replicas have uvloop's."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.nodeid.startswith("tests/api/test_connection.py"):
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_stack() -> AsyncIterator[Stack]:
    """One gateway and one engine for a whole module: starting servers is what takes time here."""
    async with stack() as running:
        yield running


@pytest.fixture
def plain(module_stack: Stack) -> Stack:
    """The module's stack as if it were new: model m, one replica r1, an engine that chats."""
    engine, dispatcher = module_stack.engine, module_stack.dispatcher
    engine.plays.clear()
    engine.otherwise = chat
    engine.requests.clear()
    dispatcher.models = [served("m")]
    dispatcher.outcomes.clear()
    assert dispatcher.open == []
    return module_stack
