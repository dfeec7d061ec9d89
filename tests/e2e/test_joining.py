"""Machines become nodes: unlike ones, over stand-in native libraries, joined by the real command.

Real: `xgen-ray node`, detection with the vendors' own Python packages, discovery with the engines that are
here, and Ray, with a head and its nodes at addresses of their own (127.0.0.2 and following). Standing in:
the vendors' native libraries, so there is no silicon behind the cards.
"""

import contextlib
import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.nodes import Node, claim_to_be, nodes_of
from tests.e2e.serve_run import ONE_MACHINE
from tests.fakes.native.build import build_amdsmi, build_nvml
from tests.hardware.lab import Lab
from tests.stack import Client, command_of, wait_until
from xgen_ray.cli.exits import ExitCode
from xgen_ray.hardware import detect_in_child
from xgen_ray.placement.tags import tags_of
from xgen_ray.process import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.native, pytest.mark.timeout(600)]

STRIX_HALO = "name=AMD Radeon Graphics,gfx=1151,vram_mb=1024,gtt_mb=16384,bdf=0000:c1:00.0"
RAPHAEL = "name=AMD Radeon Graphics,gfx=1036,vram_mb=512,gtt_mb=16384,bdf=0000:0d:00.0"
RTX_4090 = "name=NVIDIA GeForce RTX 4090,memory_mb=24564,used_mb=1000,cc=8.9,bus=00000000:01:00.0"

HEAD_IP, APU_IP, MIXED_IP, LATE_IP = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    nvml, rocm = tmp_path_factory.mktemp("nvml"), tmp_path_factory.mktemp("rocm")
    build_nvml(nvml)
    build_amdsmi(rocm)
    return Lab(nvml, rocm)


class Machines:
    """Machines to make nodes of, each in a folder of its own; they share what was found out of engines."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        self.folder = folder
        self.lab = lab
        self.port = free_port(HEAD_IP)
        self.token = ""

    def environment(self, nvidia: str | None = None, amd: str | None = None) -> dict[str, str]:
        return self.lab.env(nvidia=nvidia, amd=amd) | {"XDG_CACHE_HOME": str(self.folder / "cache")}

    def home(self, name: str) -> Path:
        home = self.folder / name
        home.mkdir()
        return home

    def head(self) -> Node:
        arguments = ("--head", "--node-ip-address", HEAD_IP, "--port", str(self.port), "--name", "head")
        environment = self.environment(nvidia=RTX_4090)
        return Node(self.home("head"), *arguments, *self.small("r"), environment=environment)

    def worker(
        self,
        name: str,
        node_ip: str,
        *,
        nvidia: str | None = None,
        amd: str | None = None,
        token: bool = True,
    ) -> Node:
        environment = self.environment(nvidia, amd) | {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
        address = f"{HEAD_IP}:{self.port}"
        arguments = ("--address", address, "--node-ip-address", node_ip, "--name", name)
        node = Node(self.home(name), *arguments, *self.small(name[0]), environment=environment)
        if token:
            node.give_token(self.token)
        return node

    def small(self, temp: str) -> tuple[str, ...]:
        return ("--num-cpus", "1", "--temp-dir", str(self.folder / temp))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Machines:
    return Machines(tmp_path_factory.mktemp("m"), lab)


@pytest.fixture(scope="module")
def head(machines: Machines) -> Iterator[Node]:
    with machines.head() as head:
        machines.token = (head.home / ".ray" / "auth_token").read_text()
        yield head


@pytest.fixture(scope="module")
def fleet(machines: Machines, head: Node) -> Iterator[dict[str, Node]]:
    """The head with one NVIDIA card, an APU, and a machine with cards of two vendors."""
    apu = machines.worker("apu", APU_IP, amd=STRIX_HALO)
    mixed = machines.worker("mixed", MIXED_IP, nvidia=RTX_4090, amd=RAPHAEL)
    with ThreadPoolExecutor() as threads:
        started = [threads.submit(node.start) for node in (apu, mixed)]
    try:
        for one in started:
            one.result()
        yield {"head": head, "apu": apu, "mixed": mixed}
    finally:
        for node in (apu, mixed):
            node.stop()


def refusal(node: Node, *more: str) -> tuple[int, str]:
    """How the command ends, and its one line."""
    done = node.run(*more)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return done.returncode, line


def test_ray_knows_every_node_by_its_tags(fleet: dict[str, Node]) -> None:
    known = nodes_of(fleet["head"])
    assert set(known) == set(fleet)
    for name, node in fleet.items():
        said = node.described
        assert known[name]["Alive"]
        assert said["resources"].items() <= known[name]["Resources"].items()
        assert said["labels"].items() <= known[name]["Labels"].items()
        # Ray's own count of GPUs, of one vendor, stays out of it.
        assert "GPU" not in known[name]["Resources"]
        tags = tags_of(detect_in_child(env=node.environment, deadline_s=30), (), name)
        assert tags.resources == said["resources"]
    assert fleet["head"].described["resources"] == {"nvidia": 1, "sm_89": 1}
    assert fleet["apu"].described["resources"] == {"amd_rdna": 1, "gfx1151": 1}
    assert fleet["mixed"].described["resources"] == {"nvidia": 1, "sm_89": 1, "amd_rdna": 1, "gfx1036": 1}


def test_labels_tell_what_people_ask_for(fleet: dict[str, Node]) -> None:
    labels = {name: node.described["labels"] for name, node in fleet.items()}
    assert labels["apu"]["xgen-ray/gpu-type"] == "amd_rdna"
    assert labels["apu"]["xgen-ray/gfx"] == "gfx1151"
    assert labels["apu"]["xgen-ray/gpu-integrated"] == "true"
    assert labels["mixed"]["xgen-ray/gpu-type"] == "nvidia"
    assert labels["mixed"]["xgen-ray/gpu-amd_rdna"] == "true"
    assert labels["mixed"]["xgen-ray/gpu-memory"] == "24g"
    for node in labels.values():
        assert node["xgen-ray/backend-llama-server-cpu"] == "true"
        # Cards without silicon: no engine lists them.
        assert "xgen-ray/backend-llama-server-cuda" not in node


def test_the_head_says_how_to_join_and_keeps_the_token_to_itself(fleet: dict[str, Node]) -> None:
    head = fleet["head"]
    token = (head.home / ".ray" / "auth_token").read_text()
    assert head.described["join"] == f"xgen-ray node --address {head.described['address']}"
    assert token not in json.dumps(head.described)
    for node in fleet.values():
        for process in node.processes():
            assert token not in " ".join(command_of(process))


def test_a_wrong_token(machines: Machines, head: Node) -> None:
    stranger = machines.worker("stranger", LATE_IP, token=False)
    code, line = refusal(stranger, "--block")
    assert code == ExitCode.UNAUTHORISED
    assert line.startswith(f"error: no token at {stranger.home}/.ray/auth_token")
    stranger.give_token("0123456789abcdef" * 4)
    # In the background as well: the caller gets the same answer.
    for mode in (["--block"], []):
        code, line = refusal(stranger, *mode)
        assert code == ExitCode.UNAUTHORISED
        assert line.startswith(f"error: the head at {HEAD_IP}:{machines.port} refuses this node's token")
    stranger.wait_for_end(5)


def test_another_version(machines: Machines, head: Node) -> None:
    """The head is real and says other versions of itself than it has."""
    late = machines.worker("late", LATE_IP)
    own = {"ray_version": version("ray"), "python_version": platform.python_version()}
    try:
        claim_to_be(head, python_version="3.99.1")
        code, line = refusal(late, "--block")
        assert code == ExitCode.FAILED, "systemd is to try again"
        assert f"runs Python 3.99.1, this node Python {own['python_version']}" in line
        claim_to_be(head, python_version=own["python_version"], ray_version="2.1.0")
        code, line = refusal(late, "--block")
        assert code == ExitCode.FAILED, "systemd is to try again"
        assert f"runs Ray 2.1.0, this node Ray {own['ray_version']}" in line
    finally:
        claim_to_be(head, **own)


def test_no_head_there(machines: Machines) -> None:
    nobody = Node(machines.home("nobody"), "--address", f"127.0.0.9:{free_port()}")
    code, line = refusal(nobody, "--block")
    assert code == ExitCode.UNREACHABLE
    assert "nothing listens at 127.0.0.9" in line


def test_a_second_head_at_the_same_port(machines: Machines, head: Node) -> None:
    arguments = ("--head", "--node-ip-address", HEAD_IP, "--port", str(machines.port))
    code, line = refusal(Node(machines.home("second"), *arguments), "--block")
    assert code == ExitCode.USAGE
    assert line.startswith(f"error: port {machines.port} of {HEAD_IP} is taken")


def test_a_signal_ends_one_node_whole_and_no_other(fleet: dict[str, Node]) -> None:
    head, apu, mixed = fleet["head"], fleet["apu"], fleet["mixed"]
    assert len(apu.processes()) > 3
    others = {process.pid for node in (head, mixed) for process in node.processes()}
    assert apu.stop(signal.SIGTERM) == ExitCode.OK, apu.errors
    # It returns when all is gone, not before.
    apu.wait_for_end(0.5)
    assert others <= {process.pid for node in (head, mixed) for process in node.processes()}
    wait_until(lambda: not nodes_of(head)["apu"]["Alive"], 20, "the head to see that the node has left")
    assert nodes_of(head)["mixed"]["Alive"]


def test_a_node_ends_when_its_head_is_killed(fleet: dict[str, Node]) -> None:
    """The last of this fleet. The head's own processes die with it, by SIGKILL as well."""
    head, mixed = fleet["head"], fleet["mixed"]
    head.process.kill()
    head.wait_for_end()
    assert mixed.process.wait(60) == ExitCode.UNREACHABLE
    assert "".join(mixed.errors).splitlines()[-1] == (
        "error: this node has lost its head: see whether it still runs"
    )
    mixed.wait_for_end(1)


def test_a_head_in_the_background_with_a_serve_config(machines: Machines) -> None:
    """On loopback, as without any address: one command, our applications, and one signal that ends it all."""
    web, port = free_port(), free_port()
    content = yaml.safe_load(ONE_MACHINE.read_text())
    content["http_options"]["port"] = web
    content["applications"][0]["args"]["base_url"] = f"http://127.0.0.1:{web}"
    config = machines.folder / "one-machine.yaml"
    config.write_text(yaml.safe_dump(content))
    environment = machines.environment()
    arguments = ("--head", "--port", str(port), "--config", str(config), *machines.small("b"))
    head = Node(machines.home("background"), *arguments, environment=environment)
    done = head.run("--json")
    assert done.returncode == ExitCode.OK, done.stderr
    described = json.loads(done.stdout)
    try:
        assert described["join"] is None
        # All interfaces: Ray Serve's replicas, one port each, which takes nothing without the token.
        assert listening(head) <= {"127.0.0.1", "::ffff:127.0.0.1", "::"}
        client = Client(f"http://127.0.0.1:{web}")
        assert client.management("GET", "status").json()["models"] == [], "it answers once that is said"
    finally:
        began = time.monotonic()
        os.kill(described["pid"], signal.SIGTERM)
        head.wait_for_end()
    assert time.monotonic() - began < 20
    log = head.home / ".local" / "state" / "xgen-ray" / "node.log"
    assert log.read_text().splitlines()[-1] == "stopped"


def listening(node: Node) -> set[str]:
    """The addresses that a node's processes listen at."""
    found: set[str] = set()
    for process in node.processes():
        with contextlib.suppress(psutil.Error):
            sockets = process.net_connections(kind="tcp")
            found |= {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    return found
