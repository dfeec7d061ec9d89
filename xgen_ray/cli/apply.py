"""``apply``: check a Serve config, and bring a running cluster to what it says."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xgen_ray.cli import options, output
from xgen_ray.errors import ConfigError, NotInTime, NotReady
from xgen_ray.schema import ChangeKind, DeclaredChange
from xgen_ray.serve_config import CONTROL_PATH

if TYPE_CHECKING:
    from deployments.applying import Cluster
    from deployments.joining import Address
    from xgen_ray.serve_config import ServeConfig

_DEFAULT_ADDRESS = "127.0.0.1:6379"
_IN_EFFECT_S = 60.0
_LOOK_AGAIN_S = 0.3
_CLUSTER = "Cluster"


def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="A Serve config of ours, as YAML.")
    ],
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            metavar=options.FLAG,
            help="Change nothing. With --address, tell what would change there.",
        ),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            show_default=False,
            help=f"The cluster's head; else {_DEFAULT_ADDRESS}.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            show_default=False,
            help="The cluster's token; else Ray's own ~/.ray/auth_token.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Check a Serve config, and bring the cluster to what it says.

    The file is checked as a whole first, and nothing is changed by one with
    a fault. Then only what changed is changed: models that are declared anew
    are loaded, those that are gone are unloaded, another scale leaves engines
    alone, other options start others. Requests to all other models go on, and
    models that were loaded through the API stay. Where Serve listens is not
    changed: a file that says another host or port is refused.

    Run it on a node of the cluster, on the head best.

    Examples:

      xgen-ray apply cluster_configs/mixed-fleet.yaml --check
      xgen-ray apply cluster_configs/mixed-fleet.yaml --address 10.0.0.1:6379
    """
    from deployments.joining import parse_address

    head = parse_address(address or _DEFAULT_ADDRESS)
    touches = not check or address is not None
    if touches:
        _prepare(head, token_file)
    from deployments.applying import Cluster, read_config

    config = read_config(file)
    if config.control is None:
        raise ConfigError(f"{file} has no application of ours: one with import_path {CONTROL_PATH}")
    changes = asyncio.run(_apply(Cluster(head), config, check=check)) if touches else ()
    _tell(config, changes, applied=not check, as_json=as_json)


def _prepare(head: "Address", token_file: Path | None) -> None:
    """Ray reads its environment when it is imported."""
    from deployments.joining import LOOPBACK, with_token

    os.environ.update(with_token(os.environ, token_file))
    if token_file is not None:
        os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if head.host == LOOPBACK:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


async def _apply(cluster: "Cluster", config: "ServeConfig", *, check: bool) -> tuple[DeclaredChange, ...]:
    console = output.stderr()
    async with cluster:
        cluster.require_same_door(config)
        changes = await cluster.changes(config)
        if not check:
            with console.status(f"applying {config.path.name}"):
                await cluster.deploy(config)
                await _in_effect(cluster, config)
    return changes


async def _in_effect(cluster: "Cluster", config: "ServeConfig") -> None:
    """Until control has started again and has made the config's words its own."""
    until = time.monotonic() + _IN_EFFECT_S
    while time.monotonic() < until:
        with suppress(NotReady):
            if all(one.kind is ChangeKind.KEEP for one in await cluster.changes(config)):
                return
        await asyncio.sleep(_LOOK_AGAIN_S)
    raise NotInTime(
        f"{config.path} is deployed, but control has not followed it after {_IN_EFFECT_S:g} s; "
        "`xgen-ray ps` shows its models"
    )


def _tell(
    config: "ServeConfig", changes: tuple[DeclaredChange, ...], *, applied: bool, as_json: bool
) -> None:
    names = [] if config.control is None else [request.loaded_as for request in config.control.models]
    if as_json:
        told = [change.model_dump(mode="json") for change in changes]
        output.print_json({"file": str(config.path), "models": names, "applied": applied, "changes": told})
        return
    console = output.stdout()
    listed = f": {', '.join(names)}" if names else ""
    counted = f"{len(names)} model{'' if len(names) == 1 else 's'}{listed}"
    console.print(output.plain(f"{config.path} has no fault; it declares {counted}"), soft_wrap=True)
    for change in changes:
        console.print(output.plain(f"  {change.kind.value:7} {change.name} ({change.why})"), soft_wrap=True)
    if applied:
        console.print("applied; `xgen-ray ps` shows how far its models are", soft_wrap=True)
