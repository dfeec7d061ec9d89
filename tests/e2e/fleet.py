"""A fleet of unlike nodes on one machine: what each has is data here, and the rest is the real thing.

What is real and what stands in is told in this folder's README.
"""

import contextlib
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
import yaml

from tests.e2e.nodes import Node
from tests.fakes.gpu_llama_server import Build, Device
from tests.fakes.native.build import AMDSMI_SITE, build_amdsmi, build_nvml
from tests.stack import REPOSITORY, SAMPLE_MODEL, Client, wait_until
from xgen_ray.process import free_port

HEAD = "head"
_STAND_IN = REPOSITORY / "tests" / "fakes" / "gpu_llama_server.py"
_SEEN_S = 120.0
_END_S = 30.0


@dataclass(frozen=True)
class Card:
    """A card of one of both vendors: ``fields`` for the vendor's stand-in library (see ``cards.h``), and how
    engines list it. ``used_mb`` is what strangers have of it.
    """

    vendor: str
    uuid: str
    fields: str
    description: str
    total_mb: int
    used_mb: int = 0


@dataclass(frozen=True)
class Machine:
    """``engines`` are the programs on its PATH by name: how each names its devices, what a small model takes
    there (MB), and its cards in the order in which it lists them.
    """

    name: str
    node_ip: str
    cards: tuple[Card, ...] = ()
    engines: Mapping[str, tuple[str, int, tuple[Card, ...]]] = field(default_factory=dict)


class FleetNode(Node):
    """A machine as a node, with a folder of its own for everything."""

    def __init__(
        self,
        machine: Machine,
        home: Path,
        arguments: Sequence[str],
        shared_cache: Path,
        token: str | None,
    ) -> None:
        self.machine = machine
        self.launches = home / "launches"
        self.launches.mkdir(parents=True)
        super().__init__(
            home, *arguments, environment=furnish(machine, home, self.launches) | _common(shared_cache)
        )
        if token is not None:
            self.give_token(token)

    @property
    def started(self) -> bool:
        return self._process is not None

    def launch(self, pid: int) -> dict[str, Any]:
        """How an engine of this node was started: command, environment, the devices that it saw and used."""
        launch: dict[str, Any] = json.loads((self.launches / f"{pid}.json").read_text())
        return launch

    def kill(self) -> float:
        """The machine's power fails, as far as processes can tell: SIGKILL, its raylet first. The moment."""
        (raylet,) = (process for process in self.processes() if _name(process) == "raylet")
        moment = time.monotonic()
        raylet.kill()
        kill_all(self)
        self.stop()
        return moment


def furnish(machine: Machine, home: Path, launches: Path) -> dict[str, str]:
    """Put the machine's libraries and programs in place; the variables that lead there. Its engines write
    down in ``launches`` how they were started.
    """
    held = {card.uuid: home / "held" / str(number) for number, card in enumerate(machine.cards)}
    for folder in held.values():
        folder.mkdir(parents=True)
    environment: dict[str, str] = {}
    for vendor in {card.vendor for card in machine.cards}:
        (library := home / vendor).mkdir()
        cards = [card for card in machine.cards if card.vendor == vendor]
        described = ";".join(f"{card.fields},held={held[card.uuid]}" for card in cards)
        if vendor == "nvidia":
            build_nvml(library, {"STANDIN_NVML_CARDS": described})
            environment["LD_LIBRARY_PATH"] = str(library)
        else:
            build_amdsmi(library, {"STANDIN_AMDSMI_CARDS": described})
            environment |= {"ROCM_PATH": str(library), "PYTHONPATH": str(AMDSMI_SITE)}
    (programs := home / "bin").mkdir()
    for name, (prefix, takes_mb, cards_seen) in machine.engines.items():
        devices = tuple(
            Device(
                card.uuid,
                card.description,
                card.total_mb,
                card.total_mb - card.used_mb,
                str(held[card.uuid]),
            )
            for card in cards_seen
        )
        build = programs / f"{name}.json"
        build.write_text(json.dumps(asdict(Build(prefix, takes_mb, devices, str(launches)))))
        words = shlex.join([sys.executable, str(_STAND_IN), str(build)])
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    return environment | {"PATH": f"{programs}:/usr/bin:/bin"}


def _common(cache: Path) -> dict[str, str]:
    # Leave a dead head soon, so that a broken test ends soon.
    return {"XDG_CACHE_HOME": str(cache), "RAY_gcs_rpc_server_reconnect_timeout_s": "3"}


class Fleet(Client):
    """A head with control and router, and the nodes that have joined it; leaving the context ends all."""

    def __init__(self, folder: Path, head: Machine, machines: Sequence[Machine]) -> None:
        self.folder = folder
        self.port = free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self._gcs = f"{head.node_ip}:{free_port(head.node_ip)}"
        arguments = ("--head", "--node-ip-address", head.node_ip, "--port", self._gcs.rpartition(":")[2])
        self.head = self._node(head, (*arguments, "--config", str(self._config())), None)
        self.nodes: dict[str, FleetNode] = {head.name: self.head}
        self._machines = tuple(machines)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.head.start()
            token = (self.head.home / ".ray" / "auth_token").read_text()
            for machine in self._machines:
                address = ("--address", self._gcs, "--node-ip-address", machine.node_ip)
                self.nodes[machine.name] = self._node(machine, address, token)
            with ThreadPoolExecutor() as threads:
                list(threads.map(FleetNode.start, list(self.nodes.values())[1:]))
            self.wait_for(set(self.nodes))
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Nodes first: they would report a lost head."""
        started = [node for node in self.nodes.values() if node.started]
        with ThreadPoolExecutor() as threads:
            list(threads.map(FleetNode.stop, [node for node in started if node is not self.head]))
        if self.head in started:
            self.head.stop()
        for node in started:
            node.wait_for_end(_END_S)

    def wait_for(self, names: set[str], seconds: float = _SEEN_S) -> None:
        """Until exactly these nodes are there and take models."""
        wait_until(lambda: self._answering() == names, seconds, f"the nodes {sorted(names)} to answer")

    def seen(self) -> dict[str, dict[str, Any]]:
        """What the API says of every node, by name."""
        answer = self.management("GET", "nodes")
        assert answer.status_code == 200, answer.text
        return {node["node"]: node for node in answer.json()["nodes"]}

    def small(self, name: str, *, on: Sequence[str] | None = None, **more: Any) -> httpx.Response:
        """Load the sample model at its smallest as ``name``."""
        options = {"context": 512, "slots": 1, "threads": 1, **more.pop("options", {})}
        return self.load(SAMPLE_MODEL, **asked(name, on, options), **more)

    def plan(self, *, on: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
        options = {"context": 512, "slots": 1, "threads": 1, **more.pop("options", {})}
        body = {"model": str(SAMPLE_MODEL), **asked(None, on, options), **more}
        answer = self.management("POST", "plan", json=body)
        assert answer.status_code == 200, answer.text
        report: dict[str, Any] = answer.json()
        return report

    @contextlib.contextmanager
    def plain_node(self, node_ip: str) -> Iterator[Node]:
        """A node that somebody starts with Ray's own command."""
        home = self.folder / "plain"
        home.mkdir()
        node = Node(home, environment={"PATH": "/usr/bin:/bin", "RAY_AUTH_MODE": "token"})
        node.give_token((self.head.home / ".ray" / "auth_token").read_text())
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--address", self._gcs]
        ray += ["--node-ip-address", node_ip, "--num-cpus", "1", "--temp-dir", str(self.folder / "p")]
        ray += ["--object-store-memory", str(80 * 2**20)]
        try:
            done = subprocess.run(ray, env=node.environment, capture_output=True, text=True, timeout=90)
            assert done.returncode == 0, done.stderr + done.stdout
            yield node
        finally:
            kill_all(node)

    def _node(self, machine: Machine, arguments: Sequence[str], token: str | None) -> FleetNode:
        own = ["--name", machine.name, "--num-cpus", "1", "--temp-dir", str(self.folder / machine.name[:2])]
        own += ["--metrics-port", str(free_port())]
        cache = self.folder / "cache"
        return FleetNode(machine, self.folder / machine.name, (*arguments, *own), cache, token)

    def _config(self) -> Path:
        control = {
            "base_url": self.url,
            "model_dirs": [str(SAMPLE_MODEL.parent)],
            "state_dir": str(self.folder / "state"),
            "cache_dir": str(self.folder / "cache" / "xgen-ray"),
            "drain_s": 30.0,
        }
        applications = [
            {"name": "xgen-control", "route_prefix": "/api", "import_path": "deployments.app:control"},
            {"name": "xgen-router", "route_prefix": "/", "import_path": "deployments.app:router"},
        ]
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port, "keep_alive_timeout_s": 3600},
            "logging_config": {"enable_access_log": False},
            "applications": [applications[0] | {"args": control}, applications[1] | {"args": {"wait_s": 60}}],
        }
        path = self.folder / "fleet.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _answering(self) -> set[str]:
        try:
            answer = self.management("GET", "nodes")
        except httpx.TransportError:
            return set()
        if answer.status_code != 200:
            return set()
        return {node["node"] for node in answer.json()["nodes"] if node["schedulable"]}


def asked(name: str | None, on: Sequence[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"name": name, "nodes": None if on is None else list(on), "options": dict(options)}
    return {key: value for key, value in fields.items() if value is not None}


def at_once(*calls: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """The answers of calls that are made at the same moment."""
    barrier = threading.Barrier(len(calls))

    def make(call: Callable[[], httpx.Response]) -> httpx.Response:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(make, calls))


def kill_all(node: Node) -> None:
    """SIGKILL to whatever the node has, until it has nothing."""
    while left := node.processes():
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""
