"""What operators asked for and what was learned, kept over restarts: an SQLite file on the head node."""

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from xgen_ray.console import EventReport
from xgen_ray.errors import ConfigError
from xgen_ray.placement import Exclusion, Observation
from xgen_ray.serving.chronicle import KEPT
from xgen_ray.serving.state import Record

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS models (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS lessons (kind TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
"""
_SCHEMA_VERSION = 2
_RECORD = TypeAdapter(Record)
_EXCLUSIONS = TypeAdapter(tuple[Exclusion, ...])
_OBSERVATIONS = TypeAdapter(tuple[Observation, ...])
_DRAINED = TypeAdapter(dict[str, float])


class Registry:
    """One writer. Every call is one durable transaction: when it returns, a power cut loses nothing."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One owner, but its calls come from a thread pool.
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        try:
            self._prepare(path)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigError(
                f"{path} cannot be used as the registry of models: {error}; "
                "restore it, or move it away to start empty"
            ) from error
        except ConfigError:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        self._db.execute("PRAGMA synchronous=FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise ConfigError(
                f"{path} was written by a newer version (schema {version}, this one knows "
                f"{_SCHEMA_VERSION}); upgrade, or move the file away to start empty"
            )
        self._db.executescript(_SCHEMA)
        self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def records(self) -> tuple[tuple[Record, ...], tuple[str, ...]]:
        """All records that can be read, and a sentence for each that cannot (it stays in the file)."""
        found: list[Record] = []
        unreadable: list[str] = []
        for name, text in self._db.execute("SELECT name, record FROM models ORDER BY name"):
            try:
                found.append(_RECORD.validate_json(text))
            except ValidationError as error:
                unreadable.append(f"the registry's record of {name} cannot be read: {error}")
        return tuple(found), tuple(unreadable)

    def lessons(self) -> tuple[tuple[Exclusion, ...], tuple[Observation, ...]]:
        """The exclusions and the observations; those that cannot be read count as none."""
        return self._lesson("exclusions", _EXCLUSIONS, ()), self._lesson("observations", _OBSERVATIONS, ())

    def drained(self) -> Mapping[str, float]:
        """The nodes that are drained, by name, since when; what cannot be read counts as none."""
        return self._lesson("drained", _DRAINED, {})

    def events(self) -> tuple[EventReport, ...]:
        """What has happened, newest first; what cannot be read is left out."""
        found = []
        rows = self._db.execute("SELECT record FROM events ORDER BY number DESC LIMIT ?", (KEPT,))
        for (text,) in rows:
            with contextlib.suppress(ValidationError):
                found.append(EventReport.model_validate_json(text))
        return tuple(found)

    def add_events(self, events: Iterable[EventReport]) -> None:
        """``events`` are newest first. The oldest make room for them."""
        rows = [(event.model_dump_json(),) for event in reversed(tuple(events))]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO events (record) VALUES (?)", rows)
        self._db.execute("DELETE FROM events WHERE number <= (SELECT max(number) FROM events) - ?", (KEPT,))
        self._db.execute("COMMIT")

    def remember(self, record: Record) -> None:
        text = _RECORD.dump_json(record).decode()
        self._db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (record.name, text))

    def forget(self, name: str) -> None:
        self._db.execute("DELETE FROM models WHERE name = ?", (name,))

    def remember_lessons(self, exclusions: Iterable[Exclusion], observations: Iterable[Observation]) -> None:
        rows = [
            ("exclusions", _EXCLUSIONS.dump_json(tuple(exclusions)).decode()),
            ("observations", _OBSERVATIONS.dump_json(tuple(observations)).decode()),
        ]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO lessons VALUES (?, ?)", rows)
        self._db.execute("COMMIT")

    def remember_drained(self, drained: Mapping[str, float]) -> None:
        text = _DRAINED.dump_json(dict(drained)).decode()
        self._db.execute("INSERT OR REPLACE INTO lessons VALUES (?, ?)", ("drained", text))

    def close(self) -> None:
        self._db.close()

    def _lesson(self, kind: str, reader: TypeAdapter[T], none: T) -> T:
        row = self._db.execute("SELECT record FROM lessons WHERE kind = ?", (kind,)).fetchone()
        if row is None:
            return none
        try:
            return reader.validate_json(row[0])
        except ValidationError:
            return none
