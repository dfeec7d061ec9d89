"""``scale``: change how many engines a model has."""

from typing import Annotated

import typer

from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server


def scale(
    name: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="A name that ps lists.")],
    replicas: options.Replicas = None,
    min_replicas: options.MinReplicas = None,
    max_replicas: options.MaxReplicas = None,
    ttl: options.Ttl = None,
    keep_warm: options.KeepWarm = None,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """Change how many engines a model has, with nothing else disturbed.

    Engines that are no longer wanted first finish the requests they have.

    Examples:

      xgen-ray scale small --replicas 3
      xgen-ray scale small --max-replicas 4
      xgen-ray scale small --min-replicas 0 --max-replicas 4 --ttl 600
    """
    request = options.scale_request(
        name, replicas, options.scaling_of(min_replicas, max_replicas, ttl, keep_warm)
    )
    with Server(url, api_key) as server:
        status = server.scale(request)
    if as_json:
        output.print_json(status)
        return
    shown = output.plain(name)
    output.stdout().print(
        f"{shown} is to have {status.wanted_replicas}; `xgen-ray ps {shown}` shows how far it is",
        soft_wrap=True,
    )
