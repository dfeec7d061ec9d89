"""From no node to the first answer on a node of the right type, and back to none.

Ray's fake node provider starts real Ray nodes here; what is real and what stands in is told in this folder's
README. Everything runs in namespaces of its own, which needs root.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.native, pytest.mark.engine, pytest.mark.timeout(420)]

APART = ("unshare", "--pid", "--fork", "--kill-child", "--net", "--mount", "--mount-proc")
# Ray's own folder is one place for the whole machine, and its processes are found by it.
PROGRAM = 'ip link set lo up && mount -t tmpfs none /tmp/ray && exec "$@"'


@pytest.fixture
def apart() -> tuple[str, ...]:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare and ip are not installed (Debian: util-linux, iproute2)")
    Path("/tmp/ray").mkdir(exist_ok=True)
    prefix = (*APART, "sh", "-c", PROGRAM, "sh")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, timeout=20)
    if tried.returncode != 0:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    return prefix


def test_a_model_brings_up_the_node_that_it_needs_and_lets_it_go(
    apart: tuple[str, ...], tmp_path: Path
) -> None:
    command = [*apart, sys.executable, "-m", "tests.e2e.autoscaled", str(tmp_path)]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"at"')]
    assert [one["event"] for one in told] == [
        "no node but the head",
        "waits for a node",
        "a node has joined",
        "loaded",
        "first answer",
        "still there",
        "unloaded",
        "no node but the head",
    ]
    assert told[1]["awaited"]["types"] == {"amd": 1}
    assert "a node of the type amd" in told[1]["reason"]
    assert [one["nodes"] for one in told if "nodes" in one] == [[], ["amd"], ["amd"], ["amd"], ["amd"], []]
    assert told[3]["backend"] == told[4]["backend"] == "llama-server-vulkan"
    assert "8060S" in told[3]["gpus"][0]
