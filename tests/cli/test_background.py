"""Going on in the background: what the process that waits says, and what it hands on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stack import wait_until
from xgen_ray.cli.exits import ExitCode

PROGRAM = """
import os, pathlib, signal, sys, time
from xgen_ray.cli.background import detach
ready = detach(pathlib.Path(sys.argv[1], "log"))
def end(number, _):
    pathlib.Path(sys.argv[1], "told").touch()
    raise SystemExit
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
pathlib.Path(sys.argv[1], "new").write_text(str(os.getpid()))
pathlib.Path(sys.argv[1], "new").rename(pathlib.Path(sys.argv[1], "pid"))
"""
SLEEP = "\ntime.sleep(60)"


@contextmanager
def program(folder: Path, rest: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that detaches itself and does ``rest`` then."""
    command = [sys.executable, "-c", PROGRAM + rest, str(folder)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def detached(folder: Path) -> int:
    """The number of the process that goes on, once it has its handlers."""
    wait_until((folder / "pid").exists, 30, "the new process")
    return int((folder / "pid").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_one_that_waits_ends_both(tmp_path: Path, number: signal.Signals) -> None:
    with program(tmp_path, SLEEP) as process:
        detached(tmp_path)
        process.send_signal(number)
        assert process.wait(20) == ExitCode.INTERRUPTED
    assert (tmp_path / "told").exists(), "it waited for the other's end"


def test_an_end_before_it_is_ready_is_told_by_its_code(tmp_path: Path) -> None:
    with program(tmp_path, "raise SystemExit(4)") as process:
        assert process.wait(20) == ExitCode.UNAUTHORISED


def test_once_it_is_ready_it_goes_on_by_itself(tmp_path: Path) -> None:
    with program(tmp_path, "ready()" + SLEEP) as process:
        assert process.wait(20) == ExitCode.OK
    os.kill(detached(tmp_path), signal.SIGTERM)
    wait_until((tmp_path / "told").exists, 20, "its end")
