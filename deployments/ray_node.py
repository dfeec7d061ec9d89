"""One Ray node of this machine: the ``ray start`` that makes it, and its owner.

Building the command and running it are two things: ``start_command`` and ``start_environment`` are
shown by a dry run, ``RayNode`` runs them. Importing this module imports nothing of Ray.
"""

import asyncio
import json
import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

from deployments.environment import (
    NO_METRICS,
    OBJECT_STORE_BYTES,
    LocalPorts,
    loopback_environment,
    network_environment,
    serve_environment,
)
from deployments.joining import Address
from xgen_ray.errors import (
    ConfigError,
    DiskFull,
    EngineFailed,
    HeadUnreachable,
    NodeNotStarted,
    Unauthorized,
    XgenRayError,
)
from xgen_ray.process import ChildProcess, LaunchSpec

START_DEADLINE_S: Final = 120.0
# Longer than one attempt may wait for Serve.
DEPLOY_DEADLINE_S: Final = 240.0
STOP_GRACE_S: Final = 10.0
# What ``ray start`` prints when all of its processes run.
_STARTED: Final = "Ray runtime started."
_POLL_S: Final = 0.1
_DEPLOY_AGAIN_S: Final = 2.0
LOOK_S: Final = 5.0
_RAYLET: Final = "raylet"
_TAIL_LINES: Final = 12


@dataclass(frozen=True, slots=True)
class RayStart:
    """What a node is started with. ``head`` is the address to join, None to be a head at ``port``.

    ``loopback`` is for a head that nobody else can join. ``client_port`` is Ray Client's, which every head
    opens. ``arguments`` go to ``ray start`` as they are, after ours.
    """

    node_ip: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    head: Address | None
    port: int
    client_port: int
    loopback: bool = False
    num_cpus: int | None = None
    temp_dir: Path | None = None
    token_file: Path | None = None
    dashboard: bool = False
    metrics_port: int | None = None
    arguments: tuple[str, ...] = ()

    @property
    def address(self) -> Address:
        """Where the cluster's head is."""
        return self.head or Address(self.node_ip, self.port)


def start_command(start: RayStart) -> tuple[str, ...]:
    """The ``ray start`` of this Python's own Ray, in the foreground."""
    command = [*_ray(), "start"]
    if start.head is not None:
        command += ["--address", str(start.head)]
    else:
        command += ["--head", "--port", str(start.port), "--ray-client-server-port", str(start.client_port)]
        command += ["--include-dashboard", str(start.dashboard).lower()]
        # The monitor starts machines; without an autoscaler's configuration there are none to start.
        command += [] if _autoscales(start) else ["--no-monitor"]
    # Ray's own detection knows one vendor a node and hides the cards of the others: it finds nothing to
    # count, and our resources count all.
    command += ["--node-ip-address", start.node_ip, "--num-gpus", "0"]
    if start.num_cpus is not None:
        command += ["--num-cpus", str(start.num_cpus)]
    command += ["--resources", json.dumps({name: int(count) for name, count in start.resources.items()})]
    command += ["--labels", ",".join(f"{key}={value}" for key, value in start.labels.items())]
    command += ["--object-store-memory", str(OBJECT_STORE_BYTES)]
    if start.metrics_port is not None:
        command += ["--metrics-export-port", str(start.metrics_port)]
    if start.temp_dir is not None:
        command += ["--temp-dir", str(start.temp_dir)]
    return (*command, "--block", *start.arguments)


def start_environment(
    start: RayStart, run_dir: Path, ports: LocalPorts, haproxy: Path
) -> Mapping[str, str | None]:
    """What is laid over the environment of ``ray start``; None removes a variable.

    Writes HAProxy's start script into ``run_dir``, which must last as long as the node.
    """
    place = loopback_environment if start.loopback else network_environment
    environment: dict[str, str | None] = {**serve_environment(), **place(run_dir, ports, haproxy)}
    if start.metrics_port is not None:
        for name in NO_METRICS:
            environment.pop(name, None)
    if start.token_file is not None:
        environment |= {"RAY_AUTH_TOKEN_PATH": str(start.token_file), "RAY_AUTH_TOKEN": None}
    return environment


def apply_command(address: Address, config: Path) -> tuple[str, ...]:
    """Brings the cluster to what a Serve config says, in a process that ends: this one stays, without Ray."""
    return (sys.executable, "-P", "-m", "xgen_ray", "apply", str(config), "--address", str(address))


def _ray() -> tuple[str, ...]:
    script = Path(sysconfig.get_path("scripts")) / "ray"
    return (str(script),) if script.is_file() else (sys.executable, "-m", "ray.scripts.scripts")


def _autoscales(start: RayStart) -> bool:
    return any(argument.startswith("--autoscaling-config") for argument in start.arguments)


class RayNode:
    """A node of a cluster, from ``start`` to ``stop``. Leaving the context ends its processes, all of them
    and no others; so does the end of this process, however it comes. Belongs to one event loop.
    """

    def __init__(
        self, command: tuple[str, ...], environment: Mapping[str, str | None], base_env: Mapping[str, str]
    ) -> None:
        self._environment = environment
        self._base_env = base_env
        spec = LaunchSpec(command, environment, stop_grace_s=STOP_GRACE_S)
        self._child = ChildProcess(spec, base_env=base_env)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._child.stop()

    async def start(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Return once all of Ray's processes on this node run. Raises what ``explain`` makes of a failure."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._child.start()
                ended = asyncio.ensure_future(self._child.wait())
                try:
                    while not self._said(_STARTED) and not ended.done():
                        await asyncio.wait({ended}, timeout=_POLL_S)
                finally:
                    ended.cancel()
        except TimeoutError:
            await self._child.stop()
            raise explain(
                self._child.logs.tail(), f"Ray had not started on this node after {deadline_s:g} s"
            ) from None
        except EngineFailed as error:
            raise NodeNotStarted(f"Ray cannot be started: {error.message}", error.log_tail) from None
        if not self._said(_STARTED):
            raise explain(self._child.logs.tail(200), "Ray did not start on this node")

    async def wait(self, look_s: float = LOOK_S) -> XgenRayError:
        """Wait until the node's processes are gone without having been told to; says why.

        ``ray stop`` ends Ray's own processes and leaves ``ray start`` waiting for nothing: an end as well.
        """
        ended = asyncio.ensure_future(self._child.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=look_s)
                if not ended.done() and not await asyncio.to_thread(self._has_raylet):
                    await self._child.stop()
                    return NodeNotStarted(
                        "Ray was stopped on this node by somebody else, with `ray stop` perhaps"
                    )
        finally:
            ended.cancel()
        failure = ended.result()
        lines = tuple(line for line in self._child.logs.tail(200) if line.strip())
        if any("GCS" in line for line in lines):
            return HeadUnreachable("this node has lost its head: see whether it still runs")
        return NodeNotStarted(
            f"Ray has ended on this node: {failure.message}. Its logs are in {self.log_dir() or '/tmp/ray'}",  # noqa: S108
            lines[-_TAIL_LINES:],
        )

    def log_dir(self) -> str | None:
        """Where this node's logs are, as Ray says."""
        found = re.search(r"saved to: (\S+)/ray_process_exit", " ".join(self._child.logs.tail(200)))
        return found[1] if found else None

    async def deploy(self, command: tuple[str, ...], deadline_s: float = DEPLOY_DEADLINE_S) -> None:
        """Run ``apply_command`` until the cluster is what the config says.

        A machine that has much to do at its start may lose one of Serve's actors meanwhile, which comes back
        by itself: so it is tried again until the deadline. Raises NodeNotStarted with what was said last.
        """
        said = "it did not answer"
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    spec = LaunchSpec(command, self._environment, stop_grace_s=1.0)
                    async with ChildProcess(spec, base_env=self._base_env) as child:
                        await child.wait()
                    lines = child.logs.tail(200)
                    if child.exit_code == 0:
                        return
                    said = _last_words(lines)
                    await asyncio.sleep(_DEPLOY_AGAIN_S)
        except TimeoutError:
            raise NodeNotStarted(f"the config is not deployed after {deadline_s:g} s: {said}") from None

    def _has_raylet(self) -> bool:
        """Whether the process that makes this machine a node still lives."""
        try:
            below = psutil.Process(self._child.pid).children(recursive=True)
            return any(one.name() == _RAYLET and one.status() != psutil.STATUS_ZOMBIE for one in below)
        except psutil.NoSuchProcess:
            return True  # somebody ended while we looked: look again

    def _said(self, words: str) -> bool:
        return any(words in line for line in self._child.logs.tail(200))


@dataclass(frozen=True, slots=True)
class _Row:
    """What Ray prints, and what it means. Groups of the pattern fill the sentence."""

    pattern: re.Pattern[str]
    kind: type[XgenRayError]
    sentence: str


def _row(pattern: str, kind: type[XgenRayError], sentence: str) -> _Row:
    return _Row(re.compile(pattern, re.IGNORECASE | re.DOTALL), kind, sentence)


# The first row that fits counts: the particular ones before those that follow from them.
_ROWS: Final = (
    _row(
        r"InvalidAuthToken|authentication token (?:is|was)|no authentication token",
        Unauthorized,
        "the cluster refuses this node's token. Copy the head's token file, by default ~/.ray/auth_token, "
        "to this machine",
    ),
    _row(
        r"cluster was started with:\s+Ray: (\S+)\s+Python: (\S+)"
        r".*?started with:\s+Ray: (\S+)\s+Python: (\S+)",
        NodeNotStarted,
        "the cluster runs Ray {0} on Python {1}, this node Ray {2} on Python {3}; all nodes need the same",
    ),
    _row(
        r"does not match persisted value|is already running at|Address already in use|Failed to bind",
        ConfigError,
        "a port that Ray needs is taken, perhaps by another cluster on this machine. Stop that, or give "
        "another --port",
    ),
    _row(
        r"No space left on device",
        DiskFull,
        "no space is left for Ray's files on this node. Make room, or give another --temp-dir",
    ),
    _row(
        r"AF_UNIX path|socket path|validate_socket_filepath",
        ConfigError,
        "the --temp-dir is too long for Ray's sockets: their paths may have 107 characters. Give a shorter "
        "one",
    ),
    _row(
        r"Permission denied: '([^']+)'",
        ConfigError,
        "Ray may not write to {0} as this user. Remove what another user has left there, or give another "
        "--temp-dir",
    ),
    _row(
        r"No such option:? '?(-[\w-]+)",
        ConfigError,
        "ray start knows no option {0}; `ray start --help` lists them",
    ),
    _row(
        r"(?:Invalid value for|Got unexpected extra argument)[^\n]*",
        ConfigError,
        "ray start does not take its arguments; see `ray start --help`",
    ),
    _row(
        r"amount of memory on this node available",
        NodeNotStarted,
        "this machine has too little free memory for Ray. End other programs",
    ),
    _row(
        r"Failed to connect to GCS|Failed to get (?:cluster ID|head node info)|connect to GCS at address",
        HeadUnreachable,
        "the head stopped answering while this node joined. See whether it still runs",
    ),
)


def explain(lines: tuple[str, ...], otherwise: str) -> XgenRayError:
    """What ``ray start`` printed, as one sentence that says what to do. ``otherwise`` begins the sentence
    for what no row knows.
    """
    text = "\n".join(lines)
    for row in _ROWS:
        if found := row.pattern.search(text):
            return row.kind(row.sentence.format(*found.groups()))
    return NodeNotStarted(f"{otherwise}: {_last_words(lines)}", lines[-_TAIL_LINES:])


def _last_words(lines: tuple[str, ...]) -> str:
    """The last line that says something: of a stack trace that is the exception."""
    for line in reversed(lines):
        if line.strip() and not line.startswith((" ", "\t", "Traceback")):
            return line.strip()[:300]
    return "it said nothing"
