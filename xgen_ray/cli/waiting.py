"""Waiting for models: looking again and again, showing how far they are, and being interrupted."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from xgen_ray.cli import output
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.schema import ModelStatus, Phase
from xgen_ray.schema import Progress as LoadProgress

_FIRST_POLL_S = 0.05
_LONGEST_POLL_S = 1.0
_SILENCE_S = 120.0
# What a server's errors may be while its control starts again.
_PASSING = frozenset({ExitCode.FAILED, ExitCode.UNREACHABLE, ExitCode.TIMED_OUT})
# Where a model stays, until a request or somebody moves it.
_ARRIVED = frozenset({Phase.READY, Phase.SLEEPING, Phase.FAILED})


def pauses() -> Iterator[float]:
    """Give the pauses between two looks: short at first, so that a quick load is not held up."""
    pause = _FIRST_POLL_S
    while True:
        yield pause
        pause = min(_LONGEST_POLL_S, pause * 1.5)


def follow(
    server: Server, status: ModelStatus, *, deadline: float, show: Callable[[ModelStatus], None]
) -> ModelStatus:
    """Poll until the model is ready, sleeps or has failed, and return its state."""
    name = status.name
    rests = pauses()
    while True:
        show(status)
        if status.phase in _ARRIVED:
            return status
        if time.monotonic() >= deadline:
            message = (
                f"{name} is not ready yet ({status.reason}). It goes on loading; `xgen-ray ps` shows it."
            )
            raise CommandError(ExitCode.TIMED_OUT, message)
        time.sleep(next(rests))
        latest = server.model_status(name)
        if latest is None or latest.phase is Phase.UNLOADING:
            message = f"{name} was unloaded by someone while it was loading."
            raise CommandError(ExitCode.FAILED, message)
        status = latest


def follow_all(server: Server, stop: threading.Event, *, every_s: float) -> tuple[ModelStatus, ...]:
    """Poll until every model has arrived or ``stop`` is set, show them meanwhile, and return their states.

    A server that gives no answer, as while its control starts again, is asked again for two minutes.
    """
    console = output.stderr()
    statuses: tuple[ModelStatus, ...] = ()
    told: set[str] = set()
    answered = time.monotonic()
    with console.status("") as line:
        while not stop.is_set():
            try:
                statuses = server.status().models
            except CommandError as error:
                if error.exit_code not in _PASSING or time.monotonic() > answered + _SILENCE_S:
                    raise
                line.update(output.plain(error.message))
                stop.wait(_LONGEST_POLL_S)
                continue
            answered = time.monotonic()
            for status in statuses:
                if status.phase in _ARRIVED and status.name not in told:
                    told.add(status.name)
                    _tell_arrival(status)
            under_way = [status for status in statuses if status.name not in told]
            if not under_way:
                break
            line.update("; ".join(f"{status.name}: {_text(status)}" for status in under_way))
            stop.wait(every_s)
    return statuses


def _tell_arrival(status: ModelStatus) -> None:
    console = output.stderr()
    match status.phase:
        case Phase.READY:
            console.print(f"{status.name}: ready on {status.backend}", style="green")
        case Phase.SLEEPING:
            console.print(f"{status.name}: sleeps; the next request wakes it", style="dim")
        case _:
            console.print(f"{status.name}: {output.plain(status.reason)}", style="red", soft_wrap=True)


@contextmanager
def interruptible(name: str) -> Iterator[None]:
    """Make an interrupt end the waiting, and say that the load goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError(
            ExitCode.INTERRUPTED,
            f"interrupted; {name} goes on loading in the server",
            f"`xgen-ray ps {name}` shows it, `xgen-ray unload {name}` stops it.",
        ) from None


@contextmanager
def progress_shown() -> Iterator[Callable[[ModelStatus], None]]:
    """Give a function that shows a state: as a bar on a terminal, elsewhere as a line a stage."""
    console = output.stderr()
    if not console.is_terminal:
        told: list[str] = []

        def tell(status: ModelStatus) -> None:
            stage = _stage(status)
            # Why it failed is told as an error, once.
            if stage not in told and status.phase is not Phase.FAILED:
                told.append(stage)
                console.print(f"{status.name}: {_text(status)}")

        yield tell
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=None)

        def draw(status: ModelStatus) -> None:
            at = _progress_of(status)
            known = at is not None and at.total_bytes is not None and at.done_bytes is not None
            progress.update(
                task,
                description=f"{status.name}: {_text(status)}",
                total=at.total_bytes if known and at else None,
                completed=at.done_bytes if known and at else 0,
            )

        yield draw


def _progress_of(status: ModelStatus) -> LoadProgress | None:
    """Return the progress to show: the model's own, else that of the replica that is on its way."""
    return status.progress or next((one.progress for one in status.replicas if one.progress), None)


def _stage(status: ModelStatus) -> str:
    at = _progress_of(status)
    return f"{status.phase}/{at.stage if at else ''}"


def _text(status: ModelStatus) -> str:
    at = _progress_of(status)
    return output.plain(at.message if at else status.reason or status.phase.value)
