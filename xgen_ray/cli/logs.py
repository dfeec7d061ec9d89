"""``logs``: what an engine has written."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server
from xgen_ray.schema import LogPage

_PAGE = 1000
_POLL_S = 0.5

# Whose it is, and what it says.
_Line = tuple[str | None, str]


def logs(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="A name that ps lists.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", metavar=options.FLAG, help="Go on until interrupted.")
    ] = False,
    replica: Annotated[
        str | None,
        typer.Option("--replica", help="Of this engine, by the id that ps NAME shows.", show_default=False),
    ] = None,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, help="Only the last so many.", show_default=False)
    ] = None,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """Print the log of a model's engine, also of one that has failed.

    With --json each line is an object with replica_id and line.

    Examples:

      xgen-ray logs small
      xgen-ray logs small -f -n 20
    """
    with Server(url, api_key) as server:
        read = partial(server.logs, name, limit=_PAGE, replica_id=replica)
        seen, page = _everything(read)
        for line in seen if lines is None else seen[max(0, len(seen) - lines) :]:
            _write(line, as_json=as_json)
        while follow:
            page = read(after=page.next, of=page.replica_id)
            for line in _lines(page):
                _write(line, as_json=as_json)
            if not page.lines:
                time.sleep(_POLL_S)


def _everything(read: Callable[..., LogPage]) -> tuple[list[_Line], LogPage]:
    """Return all lines that the server holds, and the page to go on from."""
    page = read(after=0)
    seen = _lines(page)
    while page.lines:
        page = read(after=page.next, of=page.replica_id)
        seen += _lines(page)
    return seen, page


def _lines(page: LogPage) -> list[_Line]:
    return [(page.replica_id, line) for line in page.lines]


def _write(line: _Line, *, as_json: bool) -> None:
    replica_id, text = line
    if as_json:
        output.print_json({"replica_id": replica_id, "line": text}, compact=True)
        return
    # On a terminal a log must not steer it; into a file it goes as it is.
    sys.stdout.write((output.plain(text) if sys.stdout.isatty() else text) + "\n")
    sys.stdout.flush()
