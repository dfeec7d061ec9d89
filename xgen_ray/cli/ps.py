"""``ps``: the models, where they run and why they are as they are."""

import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.placement.sizes import gib
from xgen_ray.schema import ModelStatus, StatusReport


def ps(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="Tell all of this model.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", metavar=options.FLAG, help="Go on until interrupted.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.1, metavar="SECONDS", help="Seconds between two looks of --watch."),
    ] = 1.0,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """List the models, or tell all of one.

    With --watch the table stays and follows; into a pipe it is written again
    after each change, with --json as one line of JSON.

    Examples:

      xgen-ray ps
      xgen-ray ps small
      xgen-ray ps --json | jq -r '.models[].name'
    """
    with Server(url, api_key) as server:

        def look() -> StatusReport:
            return _narrowed(server.status(), name)

        if watch:
            _watch(look, name, interval, as_json=as_json)
        elif as_json:
            output.print_json(look())
        else:
            output.stdout().print(_rendered(look(), name))


def _narrowed(report: StatusReport, name: str | None) -> StatusReport:
    if name is None:
        return report
    models = tuple(model for model in report.models if model.name == name)
    if not models:
        known = ", ".join(model.name for model in report.models) or "none"
        message = f"No model is named {name!r}. Loaded: {known}."
        raise CommandError(ExitCode.USAGE, message)
    return report.model_copy(update={"models": models})


def _watch(look: Callable[[], StatusReport], name: str | None, interval_s: float, *, as_json: bool) -> None:
    """Look again and again; only an error or an interrupt ends it."""
    console = output.stdout()
    if console.is_terminal and not as_json:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(_rendered(look(), name), refresh=True)
                time.sleep(interval_s)
    before: StatusReport | None = None
    while True:
        report = look()
        if report != before:
            if as_json:
                output.print_json(report, compact=True)
            else:
                console.print(_rendered(report, name))
                console.print()
            before = report
        time.sleep(interval_s)


def _rendered(report: StatusReport, name: str | None) -> RenderableType:
    now = time.time()
    if name is not None:
        return _detail(report.models[0], now)
    if not report.models:
        return Text("No models. Load one with `xgen-ray load MODEL`.")
    return _overview(report.models, now)


def _overview(models: tuple[ModelStatus, ...], now: float) -> Table:
    result = output.table(
        "NAME", "PHASE", "BACKEND", "WHERE", "SLOTS", "SINCE", "REASON", folded=("NAME", "WHERE")
    )
    for model in models:
        result.add_row(
            output.cell(model.name, "bold"),
            output.phase(model.phase.value),
            output.cell(model.backend),
            output.cell(_where(model)),
            output.cell(_capacity(model)),
            output.cell(output.duration(now - model.since)),
            output.cell(model.reason),
        )
    return result


def _where(model: ModelStatus) -> str | None:
    nodes = [replica.node for replica in model.replicas]
    return ", ".join(
        node if nodes.count(node) == 1 else f"{node} x{nodes.count(node)}" for node in dict.fromkeys(nodes)
    )


def _capacity(model: ModelStatus) -> str | None:
    """Return ``slots x context``: how many requests at once, of how many tokens each."""
    chosen = model.plan.options if model.plan else {}
    slots, context = chosen.get("slots"), chosen.get("context")
    return f"{slots} x {context}" if slots is not None and context is not None else None


def _detail(model: ModelStatus, now: float) -> RenderableType:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    rows: list[tuple[str, object]] = [
        ("name", model.name),
        ("model", model.model),
        ("phase", f"{model.phase.value}, for {output.duration(now - model.since)}"),
        ("reason", model.reason),
        ("origin", model.origin.value),
        ("task", model.task),
        ("format", model.format),
        ("backend", model.backend),
        ("replicas", f"{len(model.replicas)} of {model.wanted_replicas}"),
    ]
    if model.plan:
        rows.append(("why", model.plan.why))
        rows.append(("memory", gib(model.plan.footprint_bytes) if model.plan.footprint_bytes else None))
        rows += [("warning", warning) for warning in model.plan.warnings]
    for title, value in rows:
        facts.add_row(title, output.cell(value))
    parts: list[RenderableType] = [facts]
    if model.plan and model.plan.options:
        chosen = ", ".join(f"{key}={value}" for key, value in model.plan.options.items() if value is not None)
        facts.add_row("options", output.cell(chosen))
    if model.replicas:
        parts += [Text(""), _replicas(model, now)]
    for failure in model.failures:
        parts += [Text(""), _failure(failure.at, now, failure.failure, failure.message, failure.advice)]
    return Group(*parts)


def _replicas(model: ModelStatus, now: float) -> Table:
    result = output.table("REPLICA", "NODE", "STATE", "PID", "SINCE", "PROGRESS")
    for replica in model.replicas:
        result.add_row(
            output.cell(replica.replica_id),
            output.cell(replica.node),
            output.cell(replica.state),
            output.cell(replica.pid),
            output.cell(output.duration(now - replica.since)),
            output.cell(replica.progress.message if replica.progress else None),
        )
    return result


def _failure(at: float, now: float, kind: str, message: str, advice: str | None) -> Text:
    text = f"{kind}, {output.duration(now - at)} ago: {message}{' ' + advice if advice else ''}"
    return Text(output.plain(text), style="red")
