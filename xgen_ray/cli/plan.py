"""``plan``: what would be placed where, and why not elsewhere, without doing it."""

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from xgen_ray.cli import options, output
from xgen_ray.cli.candidates import candidate_table
from xgen_ray.cli.client import Server, is_loopback
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.placement.sizes import gib
from xgen_ray.schema import LoadRequest, PlanReport


def plan(
    model: options.Model,
    local: Annotated[
        bool,
        typer.Option(
            "--local", metavar=options.FLAG, help="For this machine, with all its memory; asks no server."
        ),
    ] = False,
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

    Changes nothing. Asks the server, which knows what is free; where none
    runs, plans for this
    machine. Exit code 5 says that nothing fits.

    Examples:

      xgen-ray plan ./model.gguf
      xgen-ray plan ./model.gguf --context 32768 --gpu 0 -o kv_cache_type=q8_0
      xgen-ray plan hf:org/name --local --json | jq .message
    """
    request = options.load_request(
        model, backend=backend, context=context, slots=slots, gpus=gpu, pairs=option
    )
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
        except CommandError as error:
            # A plan for this machine says nothing about another one.
            if error.exit_code is not ExitCode.UNREACHABLE or not is_loopback(server.url):
                raise
    output.stderr().print(f"No server answers at {url}: this is for the machine as it is.", style="dim")
    return _planned_here(request)


def _planned_here(request: LoadRequest) -> PlanReport:
    from xgen_ray.cli.dry_run import plan_here

    return plan_here(request)


def _rendered(report: PlanReport) -> RenderableType:
    style = "bold" if report.accepted else "bold red"
    parts: list[RenderableType] = [Text(output.plain(report.message), style=style), Text("")]
    if report.candidates:
        parts += [candidate_table(report.candidates), Text("")]
    if report.footprint:
        parts += [_bill(report), Text("")]
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
