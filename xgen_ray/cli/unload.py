"""``unload``."""

import time
from typing import Annotated

import typer

from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.cli.waiting import pauses
from xgen_ray.schema import ModelStatus, Phase


def unload(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="A name that ps lists.")],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", metavar=options.FLAG, help="Wait until its engines are gone.")
    ] = True,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="Wait at most this many seconds.")
    ] = 120,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """Unload a model: its engines stop, its memory is free again.

    Examples:

      xgen-ray unload small
      xgen-ray unload small --no-wait
    """
    with Server(url, api_key) as server:
        deadline = time.monotonic() + timeout
        status = server.unload(name)
        latest: ModelStatus | None = status
        rests = pauses()
        while wait and (latest := server.model_status(name)) is not None:
            if latest.phase is Phase.FAILED:
                raise CommandError(ExitCode.FAILED, f"{name} could not be unloaded: {latest.reason}")
            if time.monotonic() >= deadline:
                message = f"{name} was still unloading after {timeout:g} s. `xgen-ray ps` shows it."
                raise CommandError(ExitCode.TIMED_OUT, message)
            time.sleep(next(rests))
        if as_json:
            output.print_json(status)
        else:
            output.stdout().print(f"{name} is unloaded" if latest is None else f"{name} is being unloaded")
