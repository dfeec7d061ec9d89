"""Help that a person can read: complete, with examples, in 80 columns."""

import re

import pytest

from tests.cli.conftest import Call
from tests.cli.fleet import KEY
from xgen_ray.cli.exits import ExitCode

COMMANDS = [
    *("up", "node", "nodes", "drain", "detect", "doctor", "plan"),
    *("load", "unload", "ps", "logs", "lift", "chat", "bench"),
]
FORMATTED = {"COLUMNS": "80"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_has_examples_and_fits(call: Call, command: str) -> None:
    result = call(command, "--help", env=FORMATTED)
    assert result.exit_code == ExitCode.OK
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80
    assert f"xgen-ray {command}" in result.stdout
    assert "Example" in result.stdout
    assert "…" not in result.stdout
    assert KEY not in result.stdout


def test_the_programs_help_has_every_command_and_exit_code(call: Call) -> None:
    result = call("--help", env=FORMATTED)
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80
    for name in COMMANDS:
        assert re.search(rf"^. {name} ", result.stdout, re.MULTILINE)
    for code in ExitCode:
        assert re.search(rf"^ +{code.value} ", result.stdout, re.MULTILINE)


def test_no_command_at_all_shows_the_help(call: Call) -> None:
    result = call()
    assert result.exit_code == ExitCode.USAGE
    assert "Exit codes" in result.output


def test_a_slip_of_the_finger_gets_a_suggestion(call: Call) -> None:
    result = call("unlode")
    assert result.exit_code == ExitCode.USAGE
    assert "Did you mean 'unload'" in result.stderr
