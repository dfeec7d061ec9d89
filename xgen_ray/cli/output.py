"""What goes to the terminal: tables, JSON and small words. Results to stdout, all else to stderr."""

import json
import re
import sys
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Wide enough that a table on its way into a pipe or a file is never folded.
_UNFOLDED = 10_000

# Control characters, but for tab and newline: model output and logs must not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_PHASE_STYLES = {"ready": "green", "failed": "bold red", "recovering": "yellow"}


def stdout(*, markup: bool = False) -> Console:
    """Return a console for results: colours and folding on a terminal, plain unfolded text elsewhere.

    ``markup`` is for what was made for rich's markup; nothing else is searched for it.
    """
    return _console(stderr=False, markup=markup)


def stderr() -> Console:
    """Return a console for progress, hints and errors."""
    return _console(stderr=True, markup=False)


def print_json(value: BaseModel | dict[str, Any] | list[Any], *, compact: bool = False) -> None:
    """Write ``value`` to stdout as JSON; ``compact`` puts it on one line."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    sys.stdout.write(json.dumps(data, indent=None if compact else 2, default=str) + "\n")
    sys.stdout.flush()


def table(*columns: str, folded: tuple[str, ...] = ()) -> Table:
    """Return an empty table without lines, which a script can cut.

    On a narrow terminal the last column is folded, and before it those that ``folded`` names.
    """
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        folds = column in folded or column == columns[-1]
        result.add_column(column, overflow="fold", no_wrap=not folds, min_width=8 if folds else None)
    return result


def plain(text: str) -> str:
    """Return ``text`` without anything that could steer a terminal."""
    return _CONTROL.sub("", text)


def cell(value: object, style: str = "") -> Text:
    """Return a table cell: ``-`` for what is not known, never markup."""
    return Text("-" if value is None or value == "" else plain(str(value)), style=style)


def phase(value: str) -> Text:
    """Return a model's phase in its colour."""
    return Text(value, style=_PHASE_STYLES.get(value, "cyan"))


def _console(*, stderr: bool, markup: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=markup, emoji=False)
    if console.is_terminal:
        return console
    return Console(
        stderr=stderr, highlight=False, markup=markup, emoji=False, width=_UNFOLDED, color_system=None
    )


def duration(seconds: float) -> str:
    """Return a duration in two units at most: ``8s``, ``3m12s``, ``5h02m``, ``2d04h``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
