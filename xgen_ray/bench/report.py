"""A run as a table for people and as JSON for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xgen_ray.bench.stats import LevelReport, RunReport, Spread


def as_json(report: RunReport) -> dict[str, Any]:
    """Return the whole report as plain data; durations are seconds."""
    return asdict(report)


def render(report: RunReport) -> RenderableType:
    """Return the table of all levels, with a line for what it was measured on and one for each error."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("streams", "req/s", "tokens/s", "ttft p50", "p99", "gap p50", "p99", "total p50", "p99"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    for level in report.levels:
        table.add_row(*_cells(level))
    return Group(Text(_heading(report), style="bold"), table, *(_notes(report.levels)))


def milliseconds(seconds: float) -> str:
    """Return a duration in ms with three significant digits: ``1.23``, ``45.6``, ``1,235``."""
    value = seconds * 1e3
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _cells(level: LevelReport) -> tuple[str, ...]:
    return (
        str(level.streams),
        f"{level.requests_per_s:,.2f}",
        f"{level.tokens_per_s:,.1f}",
        *_pair(level.ttft_s),
        *_pair(level.gap_s),
        *_pair(level.end_to_end_s),
        str(level.failed + level.unfinished),
    )


def _pair(figure: Spread | None) -> tuple[str, str]:
    return ("-", "-") if figure is None else (milliseconds(figure.p50), milliseconds(figure.p99))


def _heading(report: RunReport) -> str:
    about = "".join(f", {name} {value}" for name, value in report.about.items() if value is not None)
    return f"{report.model} at {report.url}{about}; times in ms"


def _notes(levels: Sequence[LevelReport]) -> list[Text]:
    notes = []
    for level in levels:
        streams = f"{level.streams} stream{'s' if level.streams > 1 else ''}"
        if level.errors:
            kinds = ", ".join(f"{count} x {kind}" for kind, count in level.errors.items())
            notes.append(Text(f"{streams}: {kinds}; the first: {level.first_error}", style="red"))
        if level.unfinished:
            notes.append(
                Text(f"{streams}: {level.unfinished} requests cut by the time limit", style="yellow")
            )
        if level.tokens_from not in (None, "usage"):
            notes.append(Text(f"{streams}: tokens counted from the stream's events", style="dim"))
    return notes
