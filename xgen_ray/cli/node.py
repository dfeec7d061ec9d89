"""``node``: this machine as a node of a cluster, tagged by what it has."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from xgen_ray.cli import options
from xgen_ray.cli.background import detach
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.cli.node_run import NodeRequest, run_until_told, show
from xgen_ray.errors import ConfigError
from xgen_ray.placement.tags import label_value
from xgen_ray.settings import xdg_dir

_JOIN = "Joining"
_RUN = "Running"


def node(
    ray_arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- RAY_OPTIONS]",
            show_default=False,
            help="Further options for ray start, after two dashes.",
        ),
    ] = None,
    head: Annotated[
        bool,
        typer.Option("--head", metavar=options.FLAG, help="Start a new cluster.", rich_help_panel=_JOIN),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="HOST:PORT", help="Join the cluster of this head.", rich_help_panel=_JOIN
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What people call this node; else its host name.", show_default=False),
    ] = None,
    node_ip_address: Annotated[
        str | None,
        typer.Option(
            "--node-ip-address",
            metavar="ADDRESS",
            show_default=False,
            help="This machine's address for the others. Else a head stays on loopback, where no other "
            "machine can join, and a node takes the one on its way to the head.",
            rich_help_panel=_JOIN,
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option("--port", min=1024, max=65535, help="The head's port.", rich_help_panel=_JOIN),
    ] = 6379,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            show_default=False,
            help="The cluster's token, which every node must have; else Ray's own ~/.ray/auth_token. A head "
            "makes one where there is none.",
            rich_help_panel=_JOIN,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            show_default=False,
            help="With --head: deploy this Serve config once Ray runs.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    block: Annotated[
        bool,
        typer.Option(
            "--block",
            metavar=options.FLAG,
            help="Stay in the foreground; Ctrl-C or TERM stops this node. For systemd.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    num_cpus: Annotated[
        int | None,
        typer.Option(
            "--num-cpus", min=0, help="CPUs that Ray may count here; else all.", rich_help_panel=_RUN
        ),
    ] = None,
    temp_dir: Annotated[
        Path | None,
        typer.Option(
            "--temp-dir",
            metavar="DIR",
            help="For Ray's logs and sockets; else /tmp/ray.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard",
            metavar=options.FLAG,
            help="With --head: Ray's dashboard too, at 127.0.0.1:8265. serve deploy needs it.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=1024,
            max=65535,
            show_default=False,
            help="Serve Ray's metrics of this node for Prometheus, to anybody, on all interfaces; else not "
            "at all.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", metavar=options.FLAG, help="Show the ray start that would be run; start nothing."
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Make this machine a node of a cluster: a new one, or one to join.

    Looks first at what the machine has, hardware and engines, and tells Ray
    of it as resources and labels. All traffic between nodes needs the
    cluster's token. Without --block the node goes on in the background, and
    the process whose number is printed stops it: kill NUMBER.

    Examples:

      xgen-ray node --head --node-ip-address 10.0.0.1
      xgen-ray node --address 10.0.0.1:6379
      xgen-ray node --address 10.0.0.1:6379 --dry-run
      xgen-ray node --head --config cluster_configs/one-machine.yaml --block
    """
    if head == (address is not None):
        raise CommandError(
            ExitCode.USAGE,
            "Give either --head, to start a cluster, or --address HOST:PORT, to join one.",
        )
    if not head and (config or dashboard):
        raise CommandError(ExitCode.USAGE, "--config and --dashboard are for --head.")
    if config is not None and not config.is_file():
        raise ConfigError(f"there is no file {config}; give the path of a Serve config")
    asked = NodeRequest(
        name=_name(name),
        head=address,
        port=port,
        node_ip=node_ip_address,
        num_cpus=num_cpus,
        token_file=token_file.absolute() if token_file else None,
        temp_dir=temp_dir.absolute() if temp_dir else None,
        config=config.absolute() if config else None,
        dashboard=dashboard,
        metrics_port=metrics_port,
        arguments=tuple(ray_arguments or ()),
    )
    if dry_run:
        asyncio.run(show(asked, as_json=as_json))
        return
    ready: Callable[[], None] = _nothing
    if not block:
        ready = detach(xdg_dir("XDG_STATE_HOME", ".local/state") / "node.log")
    asyncio.run(run_until_told(asked, ready, as_json=as_json, block=block))


def _name(given: str | None) -> str:
    if given is not None and label_value(given) != given:
        raise CommandError(
            ExitCode.USAGE,
            f"--name {given!r}: a name has 1 to 63 letters, digits, dashes, dots and underscores, with a "
            "letter or digit first and last.",
        )
    return given or label_value(socket.gethostname()) or "node"


def _nothing() -> None:
    """In the foreground nobody waits to be told."""
