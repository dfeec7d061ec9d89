"""Asking a real head for its versions."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from deployments.joining import Address, HeadFacts, ask_head, parse_address, reach, with_token
from xgen_ray.errors import Unauthorized

_HEAD = """
import sys, ray
# Local: another cluster that runs on this machine is not to be joined.
ray.init("local", num_cpus=0, include_dashboard=False, logging_level="ERROR", object_store_memory=80 * 2**20)
print("HEAD", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Address]:
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
        yield parse_address(said[-1].split()[1])


@pytest.mark.cluster
async def test_a_head_with_the_users_token(head: Address) -> None:
    await reach(head)
    assert await ask_head(head, os.environ, 30) == HeadFacts(ray.__version__, platform.python_version())


@pytest.mark.cluster
async def test_a_head_with_another_token(head: Address, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("no-token-of-this-head-" * 3)
    with pytest.raises(Unauthorized, match="refuses this node's token"):
        await ask_head(head, with_token(os.environ, token), 30)
