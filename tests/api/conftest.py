"""Shared by the API's tests."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.api.stack import Stack, stack
from tests.api.support import chat, served


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
