"""``nodes``: the cluster's machines, what is on them, what is free, and what holds the rest."""

from typing import Annotated

import typer
from rich.console import RenderableType

from xgen_ray.cli import options, output, watching
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.cli.node_tables import fleet_tables, node_tables
from xgen_ray.schema import NodesReport


def nodes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default=False, help="Tell all of this node: its name or id."),
    ] = None,
    watch: options.Watch = False,
    interval: options.Interval = 2.0,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """List the nodes, or tell all of one.

    Figures of memory and use are live; LEASED is what models were promised,
    whether they use it by now or not. A node that takes no models, or fewer
    than it could, is shown with the reason and what to do.

    Examples:

      xgen-ray nodes
      xgen-ray nodes gpu-1
      xgen-ray nodes --json | jq '.nodes[] | {node, available_backends}'
    """
    with Server(url, api_key) as server:

        def look() -> NodesReport:
            return _narrowed(server.nodes(), name)

        def rendered(report: NodesReport) -> RenderableType:
            return (
                fleet_tables(report.nodes, report.drained_away) if name is None else node_tables(report.nodes)
            )

        if watch:
            watching.watch(look, rendered, interval, as_json=as_json)
        elif as_json:
            output.print_json(look())
        else:
            output.stdout().print(rendered(look()))


def _narrowed(report: NodesReport, name: str | None) -> NodesReport:
    """Return the nodes of that name, or the one of that id. Two machines may have one name."""
    if name is None:
        return report
    found = tuple(node for node in report.nodes if name in (node.node, node.node_id))
    if not found:
        known = ", ".join(node.node for node in report.nodes) or "none"
        message = f"No node is named {name!r}. Nodes: {known}."
        raise CommandError(ExitCode.USAGE, message)
    return report.model_copy(update={"nodes": found})
