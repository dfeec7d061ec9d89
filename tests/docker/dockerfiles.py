"""A Dockerfile as its stages, read by a parser: continuation lines, comments and quotes are its business."""

import io
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docker"
NAMES = ("Dockerfile.node", "Dockerfile.cpu", "Dockerfile.nvidia", "Dockerfile.amd")
IMAGES = NAMES[1:]

_FROM = re.compile(r"(?P<base>\S+)(?:\s+AS\s+(?P<name>\S+))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """One instruction; its ``value`` is one line, whatever the file breaks it into."""

    name: str
    value: str


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """The values of every instruction of this kind, in order."""
        return [one.value for one in self.instructions if one.name == name]

    def index(self, name: str, pattern: str) -> int:
        """Where the first such instruction stands; fails the test that asks when there is none."""
        for place, one in enumerate(self.instructions):
            if one.name == name and re.search(pattern, one.value):
                return place
        raise AssertionError(f"{self.name} has no {name} with {pattern!r}")


@dataclass(frozen=True)
class Dockerfile:
    """``arguments`` are those before the first FROM, with their defaults; None for one without."""

    arguments: dict[str, str | None]
    stages: dict[str, Stage]

    @property
    def last(self) -> Stage:
        return list(self.stages.values())[-1]

    def lineage(self, stage: Stage) -> list[Stage]:
        """The stage and those of this file that it stands on, the lowest first."""
        below = self.stages.get(stage.base)
        return [*(self.lineage(below) if below else []), stage]


@cache
def read(name: str) -> Dockerfile:
    parser = DockerfileParser(fileobj=io.BytesIO((FOLDER / name).read_bytes()))
    arguments: dict[str, str | None] = {}
    stages: dict[str, Stage] = {}
    for entry in parser.structure:
        kind, value = entry["instruction"], re.sub(r"\s+", " ", entry["value"]).strip()
        if kind == "COMMENT":
            continue
        if kind == "FROM":
            found = _FROM.match(value)
            assert found is not None
            assert found["name"], f"{name}: the stage from {found['base']} has no name"
            stages[found["name"]] = Stage(found["base"], found["name"])
        elif stages:
            list(stages.values())[-1].instructions.append(Instruction(kind, value))
        else:
            assert kind == "ARG"
            key, equals, default = value.partition("=")
            arguments[key] = default.strip('"') if equals else None
    return Dockerfile(arguments, stages)
