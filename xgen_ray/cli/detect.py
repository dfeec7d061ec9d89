"""``detect``: this machine's hardware, without a server."""

import json
from typing import Annotated

import typer

from xgen_ray.cli import options, output


def detect(
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, metavar="SECONDS", help="Seconds that each vendor's library may take."
        ),
    ] = 10,
    as_json: options.Json = False,
) -> None:
    """Show this machine's GPUs, CPU and memory.

    Tells what each detector said, also those that found nothing. Needs no
    server. A vendor's library that hangs or crashes costs its own answer only.

    Examples:

      xgen-ray detect
      xgen-ray detect --json | jq .detection.gpus
    """
    from xgen_ray.hardware import detect_in_child, snapshot_to_json
    from xgen_ray.hardware.report import render_snapshot

    snapshot = detect_in_child(deadline_s=timeout)
    if as_json:
        output.print_json(json.loads(snapshot_to_json(snapshot)))
    else:
        output.stdout(markup=True).print(render_snapshot(snapshot))
