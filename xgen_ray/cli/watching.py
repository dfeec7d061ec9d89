"""Looking again and again at something that changes, until somebody has seen enough."""

import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from pydantic import BaseModel
from rich.console import RenderableType
from rich.live import Live

from xgen_ray.cli import output

Report = TypeVar("Report", bound=BaseModel)


def watch(
    look: Callable[[], Report],
    rendered: Callable[[Report], RenderableType],
    interval_s: float,
    *,
    as_json: bool,
) -> NoReturn:
    """Show what ``look`` gives, and go on; only an error or an interrupt ends it.

    On a terminal the picture stays and follows. Into a pipe it is written again after each change, with
    ``as_json`` as one line of JSON.
    """
    console = output.stdout()
    if console.is_terminal and not as_json:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(rendered(look()), refresh=True)
                time.sleep(interval_s)
    before: Report | None = None
    while True:
        report = look()
        if report != before:
            if as_json:
                output.print_json(report, compact=True)
            else:
                console.print(rendered(report))
                console.print()
            before = report
        time.sleep(interval_s)
