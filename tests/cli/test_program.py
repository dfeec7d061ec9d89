"""The program as a process: streams, signals, terminals, exit codes.

Starting it takes about a second, so each test looks at more than one thing.
"""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.conftest import program_command
from tests.cli.fleet import Fleet, ready
from tests.cli.terminal import terminal
from xgen_ray.cli.exits import ExitCode
from xgen_ray.schema import Phase

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@contextmanager
def running(arguments: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command under way, its streams in pipes; it is gone afterwards."""
    process = subprocess.Popen(
        program_command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_an_error_goes_to_stderr_without_colours_and_the_shell_sees_its_code(
    fleet: Fleet, child_environment: dict[str, str]
) -> None:
    with running(["unload", "nobody"], child_environment) as process:
        results, errors = process.communicate(timeout=30)
    assert process.returncode == ExitCode.USAGE
    assert results == ""
    assert errors == "error: no model is named 'nobody'\n"


def test_a_terminal_gets_a_coloured_table_that_fits_and_stays(
    fleet: Fleet, child_environment: dict[str, str]
) -> None:
    with terminal(program_command("ps", "-w", "--interval", "0.1"), child_environment) as shown:
        shown.wait_for("No models.")
        fleet.models["small"] = ready("small")
        table = shown.wait_for("answering")
        shown.interrupt()
        assert shown.leave() == ExitCode.INTERRUPTED
    assert "\x1b[32mready" in table
    assert max(len(line) for line in ANSI.sub("", table).splitlines()) <= 80
    assert "Traceback" not in shown.shown


def test_a_pipe_gets_a_line_for_each_change(fleet: Fleet, child_environment: dict[str, str]) -> None:
    with running(["ps", "--watch", "--json", "--interval", "0.1"], child_environment) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["models"] == []
        fleet.models["small"] = ready("small")
        assert json.loads(process.stdout.readline())["models"][0]["name"] == "small"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert errors.strip() == ""


def test_an_interrupt_ends_the_waiting_and_not_the_load(
    fleet: Fleet, child_environment: dict[str, str]
) -> None:
    with terminal(program_command("load", "/models/stuck.gguf"), child_environment) as shown:
        shown.wait_for("reading tensors")
        shown.wait_for("75%")
        shown.interrupt()
        shown.wait_for("goes on loading in the server")
        assert shown.leave() == ExitCode.INTERRUPTED
    assert "Traceback" not in shown.shown
    assert fleet.models["stuck"].phase is Phase.LOADING


def test_logs_follow_until_the_reader_has_seen_enough(
    fleet: Fleet, child_environment: dict[str, str]
) -> None:
    fleet.models["small"] = ready("small")
    with running(["logs", "small", "-f", "-n", "1"], child_environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 4\n"
        fleet.log_lines.append("a new one")
        assert process.stdout.readline() == "a new one\n"
        process.stdout.close()
        fleet.log_lines.append("for nobody")
        assert process.stderr.read() == ""
        assert process.wait(20) == ExitCode.FAILED


@pytest.mark.parametrize("count", [3, 8], ids=["fewer lines than before", "more lines than before"])
def test_logs_follow_an_engine_that_was_started_again_from_its_first_line(
    fleet: Fleet, child_environment: dict[str, str], count: int
) -> None:
    fleet.models["small"] = ready("small")
    with running(["logs", "small", "-f", "--json"], child_environment) as process:
        seen = [_next_line(process) for _ in range(5)]
        fleet.engine = ("r2", [f"again {number}" for number in range(count)])
        seen += [_next_line(process) for _ in range(count)]
        fleet.log_lines.append("the last")
        seen.append(_next_line(process))
    first = [("r1", f"line {number}") for number in range(5)]
    then = [("r2", f"again {number}") for number in range(count)]
    assert seen == [*first, *then, ("r2", "the last")]


def _next_line(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    return told["replica_id"], told["line"]
