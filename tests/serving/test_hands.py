"""Control's hands at the one thing that needs no Serve: the files of an app that is being prepared."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.fakes.hub import Repo, StandInHub
from tests.models.build import write_gguf
from tests.serving.lease_builders import cpu_plan
from xgen_ray.models import ModelFacts
from xgen_ray.placement.types import Plan
from xgen_ray.schema import LoadRequest
from xgen_ray.serving.effects import PrepareApp
from xgen_ray.serving.events import AppPrepared, Event
from xgen_ray.serving.fetches import Fetches, FetchState
from xgen_ray.serving.hands import AppSettings, Hands
from xgen_ray.serving.nodes import Nodes
from xgen_ray.serving.sources import SourceFinder

SOURCE = "hf:o/n"


class OneNode:
    """A node that leases what it is asked for, and fetches what it is told to."""

    def __init__(self, sources: SourceFinder) -> None:
        self._fetches = Fetches(sources)

    async def reserve(self, node_id: str, app: str, model: str, plans: Sequence[Plan], ttl_s: float) -> None:
        """There is room."""

    async def relocate(self, node_id: str, app: str, facts: ModelFacts) -> None:
        """The lease takes them."""

    async def fetch(self, node_id: str, model: str, ticket: str, commit: str | None) -> FetchState:
        return self._fetches.start(ticket, model, commit)

    async def fetch_progress(self, node_id: str, ticket: str) -> FetchState | None:
        return self._fetches.look(ticket)

    async def drop_fetch(self, node_id: str, ticket: str) -> None:
        self._fetches.drop(ticket)

    def close(self) -> None:
        self._fetches.close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    content = write_gguf(tmp_path / "m.gguf", elements=32_000).read_bytes()
    with StandInHub().running() as hub:
        hub.repos["o/n"] = Repo({"m.gguf": content})
        yield hub


@pytest.fixture
def sources(hub: StandInHub, tmp_path: Path) -> SourceFinder:
    return SourceFinder((), tmp_path / "hub", hub.endpoint, None)


@pytest.fixture
async def node(sources: SourceFinder) -> AsyncIterator[OneNode]:
    node = OneNode(sources)
    yield node
    node.close()


async def prepared(node: OneNode, facts: ModelFacts, tmp_path: Path) -> Event:
    posted: list[Event] = []
    unused: Any = None
    settings = AppSettings("control", "Control", tmp_path, 1.0)
    hands = Hands(settings, unused, unused, cast("Nodes", node), unused, unused, posted.append)
    plan = replace(cpu_plan(2**20), facts=facts)
    await hands.prepare(PrepareApp("app-1", "n", "node-1", LoadRequest(model=SOURCE), plan))
    return posted[-1]


async def test_the_files_are_those_that_were_planned_with(
    hub: StandInHub, sources: SourceFinder, node: OneNode, tmp_path: Path
) -> None:
    planned = sources.remote_facts(SOURCE)
    again = write_gguf(tmp_path / "again.gguf", elements=64_000).read_bytes()
    hub.repos["o/n"] = Repo({"m.gguf": again}, earlier=hub.repos["o/n"])
    event = await prepared(node, planned, tmp_path)
    assert isinstance(event, AppPrepared), event
    assert event.plan.facts == planned
    # From now on it is what the repository is on this node.
    assert sources.present(SOURCE)
    assert sources.facts_if_present(SOURCE) == planned
