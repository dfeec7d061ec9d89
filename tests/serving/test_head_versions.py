"""Asking a head for its versions: a real one, and those that are none."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from xgen_ray.serving.head_versions import ask_head

_HEAD = """
import sys, ray
# Local: another cluster that runs on this machine is not to be joined.
ray.init("local", num_cpus=0, include_dashboard=False, logging_level="ERROR", object_store_memory=80 * 2**20)
print("HEAD", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a head of its own, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", _HEAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        assert child.stdout is not None
        said: list[str] = []
        for line in child.stdout:
            said.append(line)
            if line.startswith("HEAD "):
                break
        else:
            pytest.fail(f"the head did not start: {''.join(said)}")
        yield said[-1].split()[1]


@pytest.mark.cluster
async def test_a_head_with_the_users_token(head: str) -> None:
    told = await ask_head(head, os.environ, 30)
    assert (told.problem, told.ray, told.python) == (None, ray.__version__, platform.python_version())


@pytest.mark.cluster
async def test_a_head_with_another_token(head: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("no-token-of-this-head-" * 3)
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    told = await ask_head(head, env, 30)
    assert told.refused
    assert "is missing or not its" in (told.problem or "")


async def test_nobody_listens() -> None:
    assert "no connection" in ((await ask_head("127.0.0.1:9", {}, 5)).problem or "")


@pytest.mark.parametrize("address", ["gpu-1", "gpu-1:", ":x", "http://gpu-1"])
async def test_no_address(address: str) -> None:
    assert "HOST:PORT" in ((await ask_head(address, {}, 5)).problem or "")


async def test_somebody_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = await ask_head(f"127.0.0.1:{server.getsockname()[1]}", os.environ, 2)
    assert told.problem == "it listens, but has not answered as Ray's head does in 2 s"
