"""The images' entry point, run by a shell with a program on PATH that prints what it is started with."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docker.dockerfiles import FOLDER

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    programs = {
        "xgen-ray": 'printf "%s\\n" xgen-ray "$@"',
        # As in a container with an address of each family.
        "hostname": "echo 10.1.2.3 fd00::3",
    }
    for name, line in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(FOLDER / "start-node.sh"), *arguments]
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)

    return run


def test_a_head_is_reached_at_the_address_of_its_container(start: Start) -> None:
    done = start("head", "--config", "/etc/a file.yaml")
    assert done.stdout.splitlines() == [
        *("xgen-ray", "node", "--head", "--block", "--node-ip-address", "10.1.2.3"),
        *("--config", "/etc/a file.yaml"),
    ]


def test_a_worker_joins_the_head_that_it_is_told_of(start: Start) -> None:
    done = start("worker", "10.0.0.1:6379", "--name", "gpu-1")
    assert done.stdout.splitlines() == [
        *("xgen-ray", "node", "--block", "--address", "10.0.0.1:6379", "--name", "gpu-1")
    ]


@pytest.mark.parametrize("arguments", [("worker",), ("worker", "--name", "gpu-1")])
def test_a_worker_without_a_head_is_told_what_to_give(start: Start, arguments: tuple[str, ...]) -> None:
    done = start(*arguments)
    assert done.returncode == 2
    assert "worker HOST:PORT" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("--name", "gpu-1")])
def test_nothing_to_start_is_told_what_there_is(start: Start, arguments: tuple[str, ...]) -> None:
    done = start(*arguments)
    assert done.returncode == 2
    assert "head [OPTIONS]" in done.stderr


def test_anything_else_is_run_as_it_is(start: Start) -> None:
    assert start("xgen-ray", "doctor", "--json").stdout.splitlines() == ["xgen-ray", "doctor", "--json"]
    assert start("sh", "-c", "exit 7").returncode == 7
