"""The `ray start` of a node: what it is told, and what its failures are called."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from ray._private.label_utils import parse_node_labels_string
from ray.scripts.scripts import start as ray_start_program

from deployments.environment import LocalPorts
from deployments.joining import Address
from deployments.ray_node import RayNode, RayStart, explain, start_command, start_environment
from xgen_ray.errors import (
    ConfigError,
    DiskFull,
    HeadUnreachable,
    NodeNotStarted,
    Unauthorized,
    XgenRayError,
)

HEAD = RayStart(
    node_ip="10.0.0.1",
    resources={"nvidia": 2.0, "sm_90": 2.0},
    labels={"xgen-ray/name": "gpu-1", "xgen-ray/gpu-type": "nvidia"},
    head=None,
    port=6379,
    client_port=10001,
)
WORKER = replace(HEAD, head=Address("10.0.0.1", 6379), node_ip="10.0.0.2")
PORTS = LocalPorts(1, 2, 3)
# With the standard library only, which it starts twice as fast with.
PYTHON = (sys.executable, "-I", "-S")


def flags(command: tuple[str, ...]) -> dict[str, str]:
    """Every option with what follows it."""
    return {word: command[i + 1] if i + 1 < len(command) else "" for i, word in enumerate(command)}


def environment(start: RayStart, run_dir: Path) -> Mapping[str, str | None]:
    return start_environment(start, run_dir, PORTS, Path("/bin/true"))


@pytest.mark.parametrize(
    "start",
    [
        HEAD,
        WORKER,
        replace(HEAD, dashboard=True, num_cpus=3, metrics_port=9100, temp_dir=Path("/tmp/x")),
        replace(HEAD, arguments=("--autoscaling-config", "x.yaml")),
    ],
)
def test_ray_knows_every_option_that_it_is_given(start: RayStart) -> None:
    """Ray's own parser reads the command up to its help, which ends it."""
    words = start_command(start)
    options = words[words.index("start") + 1 :]
    result = CliRunner().invoke(ray_start_program, [*options, "--help"])
    assert result.exit_code == 0, result.output
    known = {flag for parameter in ray_start_program.params for flag in parameter.opts}
    assert {word for word in options if word.startswith("--")} <= known


def test_resources_and_labels_arrive_as_they_are() -> None:
    given = flags(start_command(WORKER))
    assert json.loads(given["--resources"]) == {"nvidia": 2, "sm_90": 2}
    assert parse_node_labels_string(given["--labels"]) == WORKER.labels
    assert given["--num-gpus"] == "0"


def test_a_head_and_a_node_differ_in_where_the_head_is() -> None:
    head, worker = flags(start_command(HEAD)), flags(start_command(WORKER))
    assert "--head" in head
    assert "--address" not in head
    assert head["--port"] == "6379"
    assert worker["--address"] == "10.0.0.1:6379"
    # Ray refuses these on a node that is no head.
    assert not {"--head", "--port", "--include-dashboard"} & set(worker)


def test_the_autoscalers_monitor_runs_only_where_there_is_something_to_start() -> None:
    assert "--no-monitor" in start_command(HEAD)
    assert "--no-monitor" not in start_command(replace(HEAD, arguments=("--autoscaling-config=x.yaml",)))


def test_a_node_on_a_network_always_asks_for_the_token(tmp_path: Path) -> None:
    for start in (HEAD, WORKER, replace(HEAD, node_ip="127.0.0.1", loopback=True)):
        assert environment(start, tmp_path)["RAY_AUTH_MODE"] == "token"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in environment(WORKER, tmp_path)
    assert environment(replace(HEAD, loopback=True), tmp_path)["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_metrics_are_for_nobody_unless_a_port_is_given(tmp_path: Path) -> None:
    assert environment(HEAD, tmp_path)["RAY_enable_metrics_collection"] == "false"
    measured = replace(HEAD, metrics_port=9100)
    assert "RAY_enable_metrics_collection" not in environment(measured, tmp_path)
    assert flags(start_command(measured))["--metrics-export-port"] == "9100"


def test_a_token_file_outdoes_a_token_in_the_environment(tmp_path: Path) -> None:
    given = environment(replace(WORKER, token_file=Path("/etc/token")), tmp_path)
    assert given["RAY_AUTH_TOKEN_PATH"] == "/etc/token"
    assert given["RAY_AUTH_TOKEN"] is None
    assert "RAY_AUTH_TOKEN_PATH" not in environment(WORKER, tmp_path)


# As Ray 2.60 prints them; the ends of long lines are cut.
TRACE = 'Traceback (most recent call last):\n  File "node.py", line 192, in __init__\n    self._init()\n'
SAID = {
    "token": (
        TRACE
        + "RuntimeError: Failed to connect to GCS. Last connection error: Traceback (most recent call last)\n"
        "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing or",
        Unauthorized,
        "refuses this node's token",
    ),
    "no token": (
        TRACE + "ray.exceptions.AuthenticationError: Token authentication is enabled but no authentication "
        "token was found. Ensure that",
        Unauthorized,
        "token file",
    ),
    "versions": (
        TRACE + "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n"
        "    Python: 3.12.1\nThis process on node 192.0.2.2 was started with:\n    Ray: 2.60.1\n"
        "    Python: 3.11.7\n",
        NodeNotStarted,
        "the cluster runs Ray 2.60.0 on Python 3.12.1, this node Ray 2.60.1 on Python 3.11.7",
    ),
    "another head's port": (
        TRACE + "AssertionError: Session name session_2 does not match persisted value b'session_1'. Perhaps",
        ConfigError,
        "a port that Ray needs is taken",
    ),
    "disk": (TRACE + "OSError: [Errno 28] No space left on device: '/tmp/ray/x'", DiskFull, "--temp-dir"),
    "somebody else's folder": (
        TRACE + "PermissionError: [Errno 13] Permission denied: '/tmp/ray/session_latest'",
        ConfigError,
        "may not write to /tmp/ray/session_latest",
    ),
    "option": (
        "Usage: ray start [OPTIONS]\nError: No such option: --frobnicate",
        ConfigError,
        "--frobnicate",
    ),
    "gone": (
        TRACE + "RuntimeError: Failed to connect to GCS. Last connection error: timed out",
        HeadUnreachable,
        "stopped answering",
    ),
    "unheard of": (TRACE + "KeyError: 'x'\n\n", NodeNotStarted, "Ray did not start: KeyError: 'x'"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_ray_prints_becomes_one_sentence(case: str) -> None:
    printed, kind, words = SAID[case]
    error = explain(tuple(printed.splitlines()), "Ray did not start")
    assert type(error) is kind
    assert words in error.message
    assert "Traceback" not in error.message
    assert "\n" not in error.message


def test_silence_has_a_sentence_too() -> None:
    assert "it said nothing" in explain((), "Ray did not start").message


async def refused(program: str, tmp_path: Path, *, deadline_s: float = 20.0) -> XgenRayError:
    """What becomes of a node whose `ray start` is this Python program."""
    path = tmp_path / "program.py"
    path.write_text(program)
    async with RayNode((*PYTHON, str(path)), {}, os.environ) as node:
        with pytest.raises(XgenRayError) as caught:
            await node.start(deadline_s)
    return caught.value


async def test_a_start_that_fails_tells_why(tmp_path: Path) -> None:
    program = "print('Failed to connect to GCS.'); raise SystemExit(1)"
    assert isinstance(await refused(program, tmp_path), HeadUnreachable)


async def test_a_start_that_hangs_ends_at_its_deadline(tmp_path: Path) -> None:
    error = await refused(
        "import time\nprint('thinking', flush=True)\ntime.sleep(300)", tmp_path, deadline_s=3
    )
    assert error.message == "Ray had not started on this node after 3 s: thinking"


async def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with RayNode((str(tmp_path / "none"),), {}, os.environ) as node:
        with pytest.raises(NodeNotStarted, match="cannot be started"):
            await node.start(20)


async def test_a_node_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('Ray runtime started.', flush=True)\nprint('raylet died'); raise SystemExit(1)")
    async with RayNode((*PYTHON, str(program)), {}, os.environ) as node:
        await node.start(20)
        error = await node.wait()
    assert isinstance(error, NodeNotStarted)
    assert "Ray has ended on this node" in error.message
    assert "raylet died" in error.log_tail


async def test_a_node_whose_raylet_was_stopped_by_somebody_ends(tmp_path: Path) -> None:
    """As ``ray stop`` leaves it: ``ray start`` goes on, and there is no node any more."""
    program = tmp_path / "program.py"
    # A program's name in the system's list is the name of its file.
    raylet = tmp_path / "raylet"
    shutil.copy("/bin/sleep", raylet)
    program.write_text(
        f"import subprocess, time\nraylet = subprocess.Popen([{str(raylet)!r}, '1'])\n"
        "print('Ray runtime started.', flush=True)\ntime.sleep(300)"
    )
    async with RayNode((*PYTHON, str(program)), {}, os.environ) as node:
        await node.start(20)
        error = await asyncio.wait_for(node.wait(0.2), 20)
    assert isinstance(error, NodeNotStarted)
    assert "`ray stop`" in error.message


async def deploy(program: str, tmp_path: Path, deadline_s: float) -> None:
    """A config deployed by this Python program; it may leave files in its folder between its runs."""
    path = tmp_path / "program.py"
    path.write_text(program)
    async with RayNode(("/bin/true",), {}, os.environ) as node:
        await node.deploy((*PYTHON, str(path), str(tmp_path)), deadline_s)


async def test_a_deploy_that_fails_by_accident_is_tried_again(tmp_path: Path) -> None:
    program = """
import pathlib, sys
tried = pathlib.Path(sys.argv[1], "tried")
if not tried.exists():
    tried.touch()
    raise SystemExit("The actor is dead because it was killed by `ray.kill`.")
"""
    await deploy(program, tmp_path, 30)
    assert (tmp_path / "tried").exists()


async def test_a_deploy_that_goes_on_failing_ends_at_its_deadline_with_what_was_said(
    tmp_path: Path,
) -> None:
    with pytest.raises(NodeNotStarted, match="after 3 s: no room"):
        await deploy("raise SystemExit('no room')", tmp_path, 3)
