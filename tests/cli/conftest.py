"""The served fleet, and ways to call the command line on it."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.cli.fleet import KEY, Fleet, serving
from xgen_ray.api import ApiKeys
from xgen_ray.cli import app

Call = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def _built_once() -> Iterator[None]:
    """The runner would put all commands and options together again for each call, most of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session")
def _served() -> Iterator[tuple[Fleet, str]]:
    fleet = Fleet()
    with serving(fleet, ApiKeys([("tests", KEY)])) as url:
        yield fleet, url


@pytest.fixture
def fleet(_served: tuple[Fleet, str]) -> Fleet:
    _served[0].reset()
    return _served[0]


@pytest.fixture
def url(_served: tuple[Fleet, str]) -> str:
    return _served[1]


@pytest.fixture
def environment(url: str) -> dict[str, str | None]:
    """What the command line reads of its environment; None takes a variable away."""
    return {
        "XGEN_RAY_URL": url,
        "XGEN_RAY_API_KEY": KEY,
        "COLUMNS": None,
        "FORCE_COLOR": None,
        "NO_COLOR": None,
    }


@pytest.fixture
def call(fleet: Fleet, environment: dict[str, str | None]) -> Call:
    """Run a command in this process, its streams captured."""

    def run(*arguments: str, typed: str | None = None, env: Mapping[str, str | None] | None = None) -> Result:
        settings = {**environment, **(env or {})}
        return CliRunner().invoke(app, list(arguments), input=typed, env=settings)

    return run


@pytest.fixture
def child_environment(environment: dict[str, str | None]) -> dict[str, str]:
    merged: dict[str, str | None] = {**os.environ, "COLUMNS": "80", **environment}
    return {name: value for name, value in merged.items() if value is not None}


def program_command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from xgen_ray.cli import main; main()", *arguments]
