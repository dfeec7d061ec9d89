"""A download as a bar in the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from xgen_ray.models.types import DownloadProgress


@contextmanager
def progress_bar(title: str, console: Console | None = None) -> Iterator[Callable[[DownloadProgress], None]]:
    """Show a bar while the block runs; give ``download`` the callable that it yields."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        # What is fetched may hold brackets, which would otherwise be read as markup.
        task = bar.add_task(_plain(title), total=None)

        def show(progress: DownloadProgress) -> None:
            description = _plain(progress.message or title)
            bar.update(
                task, completed=progress.done_bytes, total=progress.total_bytes, description=description
            )

        yield show


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
