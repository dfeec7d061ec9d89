"""``drain``: take a node out of service before it is stopped, and put it back."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.cli.waiting import pauses
from xgen_ray.schema import DrainReport, DrainRequest, ModelStatus


def drain(
    node: Annotated[
        str, typer.Argument(metavar="NODE", show_default=False, help="A name that nodes lists, or an id.")
    ],
    lift: Annotated[
        bool, typer.Option("--lift", metavar=options.FLAG, help="Put the node back into service.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", metavar=options.FLAG, help="Wait until nothing runs there.")
    ] = True,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, metavar="SECONDS", help="Wait at most this many seconds; the drain goes on."
        ),
    ] = 900,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """Take a node out of service before it is stopped, for an upgrade.

    Nothing new goes there. What runs there is started elsewhere first, then
    stopped, and requests that run may finish. A model that no other node can
    take goes on there, and is named with the reason. The node stays drained,
    also when it starts again, until --lift.

    Examples:

      xgen-ray drain gpu-2
      xgen-ray drain gpu-2 --timeout 120 --json
      xgen-ray drain gpu-2 --lift
    """
    with Server(url, api_key) as server:
        report = server.drain(DrainRequest(node=node, lift=lift))
        if lift or not wait:
            if as_json:
                output.print_json(report)
            else:
                _tell_order(report)
            return
        started = time.monotonic()
        try:
            left = _until_empty(server, report.node, started + timeout)
        except KeyboardInterrupt:
            name = output.plain(report.node)
            message = f"interrupted; {name} stays drained, and what runs there goes on moving"
            hint = (
                f"`xgen-ray nodes {name}` shows what is left there, `xgen-ray drain {name} --lift` ends it."
            )
            raise CommandError(ExitCode.INTERRUPTED, message, hint) from None
        reasons = {model: _reason(server.model_status(model)) for model in left}
    if as_json:
        told = [{"model": model, "reason": reason} for model, reason in reasons.items()]
        output.print_json({"node": report.node, "drained_since": report.drained_since, "left": told})
    if reasons:
        raise _still_there(report.node, reasons, timeout)
    if not as_json:
        shown, took = output.plain(report.node), time.monotonic() - started
        output.stdout().print(
            f"{shown} is empty after {took:.0f} s and takes nothing new until "
            f"`xgen-ray drain {shown} --lift`",
            soft_wrap=True,
        )


def _tell_order(report: DrainReport) -> None:
    shown = output.plain(report.node)
    text = f"{shown} takes models again"
    if report.drained_since is not None:
        models = output.plain(", ".join(report.models))
        text = f"{shown} takes nothing new" + (f"; moving away: {models}" if models else " and is empty")
    output.stdout().print(text, soft_wrap=True)


def _until_empty(server: Server, node: str, deadline: float) -> Sequence[str]:
    """Wait, telling who is still there each time that it changes; return who is at the deadline."""
    told: Sequence[str] | None = None
    rests = pauses()
    while True:
        left = _left_on(server, node)
        if left and left != told:
            output.stderr().print(f"{output.plain(node)}: {output.plain(', '.join(left))} still there")
        told = left
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(next(rests))


def _left_on(server: Server, node: str) -> Sequence[str]:
    """Return the models that have an engine on the node, or memory of it."""
    here = [one for one in server.nodes().nodes if one.node == node]
    models = {model for one in here for model in one.models}
    return sorted(models | {lease.model for one in here for lease in one.leases})


def _reason(status: ModelStatus | None) -> str:
    """Say why a model is still there, as far as the server tells."""
    if status is None:
        return "it is being unloaded"
    return status.shortfall or status.reason or status.phase.value


def _still_there(node: str, reasons: dict[str, str], timeout: float) -> CommandError:
    lines = "; ".join(f"{model} ({reason})" for model, reason in reasons.items())
    message = f"{node} is not empty after {timeout:g} s: {lines}"
    hint = (
        "What has no other place goes on there and moves as soon as it has one: make room elsewhere, "
        f"or `xgen-ray unload` it. `xgen-ray drain {node}` waits again."
    )
    return CommandError(ExitCode.TIMED_OUT, message, hint)
