"""What was asked for survives, whole, or is said to be unreadable."""

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serving.builders import facts, inventory, request
from xgen_ray.console import EventKind, EventReport
from xgen_ray.errors import ConfigError
from xgen_ray.placement import Exclusion, Observation, plan
from xgen_ray.placement.types import Backend, Plan
from xgen_ray.serving.chronicle import KEPT
from xgen_ray.serving.registry import Registry
from xgen_ray.serving.state import AppRecord, Record


def record(name: str = "small") -> Record:
    world = inventory()
    decided = plan(facts(name), request(name).options, world.snapshot, world.statuses, usage=world.usage)
    assert isinstance(decided, Plan)
    apps = tuple(AppRecord(app, "n1", "box", "x86_64", decided) for app in ("p", "q"))
    return Record(name, request(name, replicas=2), 12.5, declared=request(name), proven=True, apps=apps)


def test_a_record_comes_back_equal_from_another_life(tmp_path: Path) -> None:
    first = Registry(tmp_path / "state" / "models.db")
    first.remember(record("b"))
    first.remember(record("a"))
    first.remember(replace(record("b"), proven=False))
    first.close()
    second = Registry(tmp_path / "state" / "models.db")
    assert second.records() == ((record("a"), replace(record("b"), proven=False)), ())
    second.forget("a")
    second.forget("never there")
    assert [found.name for found in second.records()[0]] == ["b"]
    second.close()


def test_lessons_come_back_and_are_replaced_as_a_whole(tmp_path: Path) -> None:
    exclusion = Exclusion(Backend.LLAMA_SERVER_ROCM, "gfx1151", "on apu: page fault", "small (9 bytes)")
    observation = Observation("small (9 bytes)", Backend.LLAMA_SERVER_CPU, "ram", 10, 12)
    first = Registry(tmp_path / "models.db")
    assert first.lessons() == ((), ())
    first.remember_lessons([exclusion], [observation])
    first.close()
    second = Registry(tmp_path / "models.db")
    assert second.lessons() == ((exclusion,), (observation,))
    second.remember_lessons([], [observation])
    assert second.lessons() == ((), (observation,))
    second.close()


def test_a_record_that_cannot_be_read_is_told_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    registry = Registry(path)
    registry.remember(record("good"))
    registry.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO models VALUES ('bad', '{\"name\": 1}')")
    registry = Registry(path)
    found, unreadable = registry.records()
    assert [one.name for one in found] == ["good"]
    assert len(unreadable) == 1
    assert "bad" in unreadable[0]
    registry.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM models").fetchone() == (2,)


def test_a_file_that_is_no_registry_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="move it away"):
        Registry(path)
    assert path.read_bytes() == b"not a database" * 100


def test_a_registry_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match="schema 99"):
        Registry(path)


def test_events_come_back_newest_first_and_the_oldest_make_room(tmp_path: Path) -> None:
    def happening(number: int) -> EventReport:
        kind = EventKind.READY
        return EventReport(id=f"e.{number}", at=float(number), kind=kind, level="info", message="ready")

    first = Registry(tmp_path / "models.db")
    assert first.events() == ()
    first.add_events([happening(2), happening(1)])
    first.close()
    second = Registry(tmp_path / "models.db")
    assert second.events() == (happening(2), happening(1))
    second.add_events([happening(number) for number in range(KEPT + 2, 2, -1)])
    assert len(second.events()) == KEPT
    assert (second.events()[0], second.events()[-1]) == (happening(KEPT + 2), happening(3))
    second.close()
