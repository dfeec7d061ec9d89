"""``ps``: the models, where they run and why they are as they are."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xgen_ray.cli import options, output, watching
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.placement.sizes import gib
from xgen_ray.schema import ExclusionReport, ModelStatus, StatusReport


def ps(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="Tell all of this model.")
    ] = None,
    watch: options.Watch = False,
    interval: options.Interval = 1.0,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """List the models, or tell all of one.

    WHERE has each node with its engines, `x2` where there are two. Of one model
    it shows its engines, what runs, why, and which backends are left out after
    failures; `xgen-ray lift` forgives those.

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
            watching.watch(look, lambda report: _rendered(report, name), interval, as_json=as_json)
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
            output.cell(_shortened(_backends(model))),
            output.cell(_where(model)),
            output.cell(_shortened(_capacities(model))),
            output.cell(output.duration(now - model.since)),
            output.cell(_reason(model)),
        )
    return result


def _reason(model: ModelStatus) -> str:
    """Return the reason with what is missing, which it may have in it already."""
    if model.shortfall is None or model.shortfall in model.reason:
        return model.reason
    return f"{model.reason}; {model.shortfall}" if model.reason else model.shortfall


def _shortened(values: Sequence[str]) -> str | None:
    """Return the first, and how many others there are."""
    more = f" +{len(values) - 1}" if len(values) > 1 else ""
    return f"{values[0]}{more}" if values else None


def _backends(model: ModelStatus) -> list[str]:
    if model.engines:
        return list(dict.fromkeys(engine.backend.value for engine in model.engines))
    return [model.backend.value] if model.backend is not None else []


def _where(model: ModelStatus) -> str | None:
    """Return the nodes, each with the number of its engines: those that are there or on their way."""
    nodes: Counter[str] = Counter()
    for engine in model.engines:
        nodes[engine.node] += 1
    # What a server of another kind may tell is the replicas alone.
    nodes = nodes or Counter(replica.node for replica in model.replicas)
    return ", ".join(node if count == 1 else f"{node} x{count}" for node, count in nodes.items())


def _capacities(model: ModelStatus) -> list[str]:
    """Return ``slots x context``: how many requests at once, of how many tokens each, for one engine."""
    if model.engines:
        return list(dict.fromkeys(f"{engine.slots} x {engine.context}" for engine in model.engines))
    chosen = model.plan.options if model.plan else {}
    slots, context = chosen.get("slots"), chosen.get("context")
    return [f"{slots} x {context}"] if slots is not None and context is not None else []


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
        ("backend", ", ".join(_backends(model))),
        ("replicas", f"{len(model.replicas)} of {model.wanted_replicas}"),
    ]
    if model.shortfall is not None:
        rows.append(("missing", model.shortfall))
    if (awaited := model.awaited_nodes) is not None:
        kinds = ", ".join(f"{count} x {name}" for name, count in awaited.types.items())
        rows.append(("waits for", f"nodes of the type {kinds}, for {output.duration(now - awaited.since)}"))
    whys = dict.fromkeys(f"{engine.node}: {engine.why}" for engine in model.engines)
    rows += [("why", why) for why in whys]
    if model.plan:
        if not model.engines:
            rows.append(("why", model.plan.why))
        rows.append(("memory", gib(memory) if (memory := _memory(model)) else None))
        rows += [("warning", warning) for warning in model.plan.warnings]
    for title, value in rows:
        facts.add_row(title, output.cell(value))
    parts: list[RenderableType] = [facts]
    if model.plan and model.plan.options:
        chosen = ", ".join(f"{key}={value}" for key, value in model.plan.options.items() if value is not None)
        facts.add_row("options", output.cell(chosen))
    if model.engines:
        parts += [Text(""), _engines(model)]
    if model.replicas:
        parts += [Text(""), _replicas(model, now)]
    if model.exclusions:
        parts += [Text(""), _excluded(model.exclusions), _lift(model)]
    for failure in model.failures:
        parts += [Text(""), _failure(failure.at, now, failure.failure, failure.message, failure.advice)]
    return Group(*parts)


def _memory(model: ModelStatus) -> int | None:
    """Return what all engines together were planned with."""
    if model.engines:
        return sum(engine.footprint_bytes for engine in model.engines)
    return model.plan.footprint_bytes if model.plan else None


def _engines(model: ModelStatus) -> Table:
    result = output.table("NODE", "BACKEND", "PHASE", "READY", "SLOTS", "MEMORY", "GPUS", folded=("NODE",))
    for engine in model.engines:
        result.add_row(
            output.cell(engine.node, "bold"),
            output.cell(engine.backend.value),
            output.phase(engine.phase),
            output.cell("yes" if engine.ready else "no"),
            output.cell(f"{engine.slots} x {engine.context}"),
            output.cell(gib(engine.footprint_bytes)),
            output.cell(", ".join(engine.gpus)),
        )
    return result


def _excluded(exclusions: tuple[ExclusionReport, ...]) -> Table:
    result = output.table("EXCLUDED", "ON", "WHY", folded=("ON",))
    for exclusion in exclusions:
        result.add_row(
            output.cell(exclusion.backend.value, "yellow"),
            output.cell(exclusion.node_kind),
            output.cell(exclusion.reason),
        )
    return result


def _lift(model: ModelStatus) -> Text:
    return Text(f"Once that is mended: xgen-ray lift {output.plain(model.name)}", style="dim")


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
