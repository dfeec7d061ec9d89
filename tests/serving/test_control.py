"""Control's loop and its hands, with a cluster that is told what to do."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from ray.serve import Application

from tests.serving.builders import failure, replica, request
from tests.serving.machine_builders import Control as Judgement
from tests.serving.test_declaring import APP, record
from xgen_ray.errors import ModelNotFound
from xgen_ray.process.logs import excerpt
from xgen_ray.schema import Phase
from xgen_ray.serving import hands
from xgen_ray.serving.apps import Apps, AppsSeen
from xgen_ray.serving.autoscaler import Autoscaler
from xgen_ray.serving.control import PROMPT_ANSWER_S, Control
from xgen_ray.serving.effects import Look
from xgen_ray.serving.events import Event, WakeAsked
from xgen_ray.serving.hands import AppSettings, Hands
from xgen_ray.serving.log_pages import Answer, where_to_start
from xgen_ray.serving.looks import FleetReader
from xgen_ray.serving.loop import ControlLoop, LoopSettings
from xgen_ray.serving.nodes import Nodes
from xgen_ray.serving.registry import Registry
from xgen_ray.serving.replica import AppSpec
from xgen_ray.serving.state import ServeState


class Running(Apps):
    """Serve, with these applications."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names

    async def look(self) -> AppsSeen:
        return AppsSeen(dict.fromkeys(self._names, ServeState.RUNNING), {}, {})


class Speaking(Running):
    """One replica each, with these lines; an app that has none is between two."""

    def __init__(self, replicas: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
        super().__init__(*replicas)
        self.replicas = dict(replicas)

    async def logs(
        self, app: str, after: int, limit: int, of: str | None, *, patience_s: float = 0.0
    ) -> list[Answer]:
        if app not in self.replicas:
            return []
        replica_id, lines = self.replicas[app]
        return [(replica_id, *excerpt(lines, len(lines), where_to_start(replica_id, after, of), limit))]


class AnyModel(FleetReader):
    """Takes every name for a model."""

    def __init__(self) -> None:
        pass

    async def check(self, model: str) -> None:
        pass


class Owners(Nodes):
    """Of nodes, some of which never answer."""

    def __init__(self, hanging: Collection[str] = ()) -> None:
        self._hanging = hanging
        self.renewed: list[tuple[str, frozenset[str]]] = []
        self.asked = asyncio.Event()

    async def renew(self, node_id: str, apps: Collection[str], ttl_s: float) -> frozenset[str]:
        if node_id in self._hanging:
            await asyncio.Event().wait()
        self.renewed.append((node_id, frozenset(apps)))
        self.asked.set()
        return frozenset(apps)


class Waiting(Hands):
    """Whatever these look at does not answer."""

    def __init__(self, post: Callable[[Event], None], owners: Owners | None = None) -> None:
        settings = AppSettings("control", "Control", Path("/"), drain_s=1.0)
        super().__init__(settings, _never, AnyModel(), owners or Owners(), Running(), Autoscaler({}), post)

    async def look(self, effect: Look) -> None:
        await asyncio.Event().wait()

    async def observe(self, at_rest: frozenset[str]) -> None:
        await asyncio.Event().wait()


def _never(spec: AppSpec) -> Application:
    raise NotImplementedError("nothing is started")


def made(folder: Path) -> Control:
    return Control(LoopSettings(folder, ()), "http://box", Running(), AnyModel(), Waiting)


async def test_a_load_without_waiting_is_known_when_it_returns(tmp_path: Path) -> None:
    """Also while control is busy with what came before."""
    control = made(tmp_path)
    with closing(sqlite3.connect(tmp_path / "models.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        # Its first step has something to write down, and that must wait.
        await control.start()
        loading = asyncio.create_task(control.load(request("small"), wait=False))
        await asyncio.wait({loading}, timeout=3 * PROMPT_ANSWER_S)
        other.execute("COMMIT")
    assert (await loading).phase is Phase.RESOLVING
    await control.stop()


async def test_an_end_waits_for_what_is_being_written_down(tmp_path: Path) -> None:
    control = made(tmp_path)
    with closing(sqlite3.connect(tmp_path / "models.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await control.start()
        # The write of the first step has begun, and waits.
        await asyncio.wait({ending := asyncio.create_task(control.stop())}, timeout=0.2)
        assert not ending.done()
        other.execute("COMMIT")
        await ending
        assert other.execute("SELECT count(*) FROM events").fetchone() == (1,)


async def test_a_restart_is_answered_once_it_is_under_way(tmp_path: Path) -> None:
    control = made(tmp_path)
    await control.start()
    with pytest.raises(ModelNotFound):
        await control.restart("small")
    await control.load(request("small", pool="a"), wait=False)
    assert (await control.restart("small")).name == "small@a"
    assert (await control.restart("small@a")).phase is Phase.RESOLVING
    await control.stop()


async def test_an_unload_without_waiting_returns_while_it_goes_on(tmp_path: Path) -> None:
    control = made(tmp_path)
    await control.start()
    await control.load(request("small", pool="a"), wait=False)
    assert (await control.unload("small", wait=False)).phase is Phase.UNLOADING
    with pytest.raises(ModelNotFound):
        await control.unload("small", wait=False)
    await control.stop()


async def test_others_get_their_turns_between_two_events(tmp_path: Path) -> None:
    loop = ControlLoop(LoopSettings(tmp_path, ()), Running(), Waiting)
    await loop.start()
    await loop.caught_up()
    for _ in range(100):
        loop.post(WakeAsked(frozenset(), time.time()))
    seen = set()
    caught_up = asyncio.create_task(loop.caught_up())
    while not caught_up.done():
        seen.add(loop.steps)
        await asyncio.sleep(0)
    await loop.stop()
    assert len(seen) > 50


async def test_leases_are_kept_whatever_the_look_at_the_cluster_waits_for(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models.db")
    registry.remember(record(None))
    registry.close()
    owners = Owners()
    loop = ControlLoop(LoopSettings(tmp_path, ()), Running(APP), lambda post: Waiting(post, owners))
    await loop.start()
    await asyncio.wait_for(owners.asked.wait(), 10)
    await loop.stop()
    assert owners.renewed == [("n1", frozenset({APP}))]


async def test_an_owner_that_hangs_takes_nobody_elses_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "RENEW_DEADLINE_S", 0.1)
    judgement = Judgement()
    judgement.ready()
    (app,) = judgement.state.models["small"].live
    owners = Owners(hanging=[app.node_id])
    others = replace(app, name="other", node_id="n2")
    await asyncio.wait_for(Waiting(lambda event: None, owners).renew([app, others]), 10)
    assert owners.renewed == [("n2", frozenset({"other"}))]


async def test_a_log_is_followed_to_the_successor_of_its_replica(tmp_path: Path) -> None:
    """Also while another replica of the model has more to say."""
    registry = Registry(tmp_path / "models.db")
    asked = request(replicas=2)
    known = record(None, request=asked)
    other = replace(known.apps[0], name=f"{APP}-other", node_id="n2")
    registry.remember(replace(known, apps=(*known.apps, other)))
    registry.close()
    apps = Speaking({APP: ("r5", ("one", "two")), other.name: ("r1", ("another's",))})
    control = Control(LoopSettings(tmp_path, ()), "http://box", apps, AnyModel(), Waiting)
    await control.start()

    async def told(
        after: int = 0, of: str | None = None, replica_id: str | None = None
    ) -> tuple[str | None, tuple[str, ...], int]:
        page = await control.logs("small", after=after, limit=9, replica_id=replica_id, of=of)
        return page.replica_id, page.lines, page.next

    for app, (replica_id, _) in apps.replicas.items():
        await control.hear_replica(app, replica(replica_id), None, ())
    # To ask again for what is there changes nothing, and is answered once all before it is heard.
    await control.load(asked, wait=False)
    assert await told() == ("r1", ("another's",), 1)
    assert await told(1, "r5") == ("r5", ("two",), 2)
    assert await told(1, "r1", "r5") == ("r5", ("one", "two"), 2)
    del apps.replicas[APP]
    assert await told(2, "r5") == ("r5", (), 2), "nobody knows yet that it is gone"
    death = failure(at=time.time()).model_copy(update={"log_tail": ("two", "three"), "log_end": 3})
    await control.hear_replica(APP, replica("r5", "failed", since=time.time()), death, ())
    await control.load(asked, wait=False)
    assert await told(2, "r5", "r5") == ("r5", ("three",), 3)
    assert await told(2, "r5") == ("r5", ("three",), 3)
    assert await told(3, "r5") == ("r5", (), 3), "its successor is on its way"
    with pytest.raises(ModelNotFound, match="no running replica 'r5'; running: r1"):
        await told(3, "r5", "r5")
    apps.replicas[APP] = ("r6", ("again",))
    assert await told(3, "r5") == ("r6", ("again",), 1)
    await control.stop()
