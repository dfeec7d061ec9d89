"""``plan``: what would be placed where, and why not elsewhere, without doing it."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from xgen_ray.cli import options, output
from xgen_ray.cli.candidates import weighed
from xgen_ray.cli.client import NoServer, Server, is_loopback
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.placement.sizes import gib
from xgen_ray.schema import AssignmentReport, LoadRequest, PlanReport


def plan(
    model: options.Model,
    local: Annotated[
        bool,
        typer.Option(
            "--local", metavar=options.FLAG, help="For this machine, with all its memory; asks no server."
        ),
    ] = False,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, max=64, metavar="N", help="Engines to find a place for.")
    ] = 1,
    node: options.Nodes = None,
    evict: options.Evict = options.Eviction.NEVER,
    spread: options.Spread = False,
    backend: options.BackendChoice = None,
    context: options.Context = None,
    slots: options.Slots = None,
    gpu: options.Gpus = None,
    option: options.Pairs = None,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """Show how a model would be run, and why not otherwise.

    Changes nothing and fetches no weights. Asks the server, which knows what
    is free on every node; where none runs, plans for this machine. Exit code 5
    says that nothing fits.

    Examples:

      xgen-ray plan ./model.gguf
      xgen-ray plan ./model.gguf --context 32768 --gpu 0 -o kv_cache_type=q8_0
      xgen-ray plan hf:org/name --replicas 2 --node gpu-1 --node gpu-2
      xgen-ray plan hf:org/name --local --json | jq .message
    """
    request = options.load_request(
        model,
        replicas=replicas,
        nodes=node,
        evict=evict,
        spread=spread,
        backend=backend,
        context=context,
        slots=slots,
        gpus=gpu,
        pairs=option,
    )
    if local and (misplaced := _of_a_fleet(request)):
        message = f"--local plans for this machine alone, as one engine; {misplaced} needs a server."
        raise CommandError(ExitCode.USAGE, message)
    report = _planned_here(request) if local else _asked(request, url, api_key)
    if as_json:
        output.print_json(report)
    else:
        output.stdout().print(_rendered(report))
    if not report.accepted:
        raise typer.Exit(ExitCode.REFUSED)


def _asked(request: LoadRequest, url: str, api_key: str | None) -> PlanReport:
    with Server(url, api_key) as server:
        try:
            return server.plan(request)
        except NoServer:
            # A plan for this machine says nothing about another one.
            if not is_loopback(server.url) or _of_a_fleet(request) is not None:
                raise
    output.stderr().print(f"No server answers at {url}: this is for the machine as it is.", style="dim")
    return _planned_here(request)


def _of_a_fleet(request: LoadRequest) -> str | None:
    """Return the option that only a server can answer to, if one is given."""
    if request.nodes is not None:
        return "--node"
    if request.evict != "never":
        return "--evict"
    return "--replicas" if request.replicas > 1 else None


def _planned_here(request: LoadRequest) -> PlanReport:
    from xgen_ray.cli.dry_run import plan_here

    return plan_here(request)


def _rendered(report: PlanReport) -> RenderableType:
    style = "bold" if report.accepted else "bold red"
    parts: list[RenderableType] = [Text(output.plain(report.message), style=style), Text("")]
    if len(report.assignments) > 1:
        parts += [_places(report.assignments), Text("")]
    for table in weighed(report.nodes, report.candidates):
        parts += [table, Text("")]
    if report.footprint:
        parts += [_bill(report), Text("")]
    if report.evict:
        parts.append(_leaving(report))
    if report.gpus:
        parts.append(_line("gpus", ", ".join(report.gpus)))
    if report.options:
        parts.append(_line("options", ", ".join(f"{key}={value}" for key, value in report.options.items())))
    parts += [_line("chosen", note) for note in report.notes]
    parts += [_line("warning", warning, "yellow") for warning in report.warnings]
    if report.argv:
        parts.append(_line("command", " ".join(report.argv)))
    while isinstance(parts[-1], Text) and not parts[-1].plain:
        parts.pop()
    return Group(*parts)


def _places(assignments: Sequence[AssignmentReport]) -> RenderableType:
    """Where the replicas go; those that go the same way share a row."""
    result = output.table("REPLICAS", "NODE", "BACKEND", "MEMORY", "GPUS", "WHY", folded=("NODE", "GPUS"))
    for place, count in Counter(assignments).items():
        result.add_row(
            output.cell(count),
            output.cell(place.node, "bold"),
            output.cell(place.backend.value),
            output.cell(gib(place.footprint_bytes)),
            output.cell(", ".join(place.gpus)),
            output.cell(place.why),
        )
    return result


def _leaving(report: PlanReport) -> Text:
    leaving = ", ".join(report.evict)
    if report.accepted:
        return _line("leaves", f"{leaving}: idle, unloaded first", "yellow")
    return _line("instead", f"--evict idle unloads {leaving} first, which nobody uses", "yellow")


def _bill(report: PlanReport) -> RenderableType:
    bill = output.table("MEMORY", "SIZE", "ON", "DETAIL")
    bill.columns[1].justify = "right"
    for item in report.footprint:
        bill.add_row(
            output.cell(item.name),
            output.cell(gib(item.size_bytes)),
            output.cell("GPU" if item.on_gpu else "host"),
            output.cell(item.detail),
        )
    if report.footprint_bytes is not None:
        bill.add_row(output.cell("total", "bold"), output.cell(gib(report.footprint_bytes), "bold"))
    return bill


def _line(title: str, text: str, style: str = "") -> Text:
    return Text.assemble((f"{title:<9}", "dim"), (output.plain(text), style))
