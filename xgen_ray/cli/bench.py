"""``bench``: a fixed load on an endpoint, as a table and as JSON."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from xgen_ray.bench import RunReport, Target, Workload, as_json, render
from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.errors import EngineUnreachable
from xgen_ray.schema import ModelStatus

_ABOUT_TIMEOUT_S = 5.0


def bench(
    model: Annotated[
        str | None,
        typer.Option("--model", help="A served model; the only one, if left out.", show_default=False),
    ] = None,
    streams: Annotated[
        str, typer.Option("--streams", metavar="N,N,...", help="Concurrent streams, one level each.")
    ] = "1,8,32",
    requests: Annotated[int, typer.Option("--requests", min=1, help="Requests for each stream.")] = 4,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of each answer.")] = 64,
    prompt_words: Annotated[
        int, typer.Option("--prompt-words", min=1, help="Length of the made-up prompts.")
    ] = 64,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Ask all requests this, caches and all.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of prompts and sampling.")] = 1,
    time_limit: Annotated[
        float,
        typer.Option("--time-limit", min=1, metavar="SECONDS", help="Seconds after which a level is cut."),
    ] = 300,
    request_timeout: Annotated[
        float,
        typer.Option(
            "--request-timeout", min=1, metavar="SECONDS", help="Seconds that one request may take."
        ),
    ] = 120,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write JSON to this file; - for stdout alone.", show_default=False),
    ] = None,
) -> None:
    """Measure an endpoint's speed under load.

    Prints tokens/s, the time to the first token and the time between tokens
    (p50 and p99), for each number of streams. A stream sends its next request
    when its last is answered. Every prompt is new, so no cache answers for the
    engine, and equal seeds ask the same on every machine. Works against any
    OpenAI-compatible server. Ends with exit code 1 if any request failed.

    Examples:

      xgen-ray bench
      xgen-ray bench --streams 1,4 --requests 8 --json result.json
      xgen-ray bench --url http://127.0.0.1:8080 --model m --json - | jq .levels
    """
    levels = _levels(streams)
    workload = Workload(
        requests_per_stream=requests,
        max_tokens=max_tokens,
        prompt_words=prompt_words,
        prompt=prompt,
        seed=seed,
        request_timeout_s=request_timeout,
        time_limit_s=time_limit,
    )
    # Checked before minutes are spent on a result that cannot be written.
    if json_file is not None and str(json_file) != "-" and not json_file.absolute().parent.is_dir():
        raise CommandError(ExitCode.USAGE, f"There is no folder {json_file.absolute().parent} to write to.")
    with Server(url, api_key, timeout_s=_ABOUT_TIMEOUT_S) as server:
        name = model or _only_model(server)
        before = _status(server, name)
        report = _measured(Target(server.url, name, api_key), workload, levels)
        report = replace(report, about=_about(before, _status(server, name), report))
    _publish(report, json_file)
    if any(level.failed or level.unfinished for level in report.levels):
        raise typer.Exit(ExitCode.FAILED)


def _levels(text: str) -> list[int]:
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1 or max(levels) > 1024:
        message = f"--streams takes numbers from 1 to 1024, like 1,8,32, not {text!r}."
        raise CommandError(ExitCode.USAGE, message)
    return levels


def _only_model(server: Server) -> str:
    names = server.model_names()
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise CommandError(ExitCode.USAGE, f"Say which with --model. {server.url} serves: {listed}.")
    return names[0]


def _measured(target: Target, workload: Workload, levels: list[int]) -> RunReport:
    from xgen_ray.bench.load import run

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeElapsedColumn(),
        console=output.stderr(),
        transient=True,
        disable=not output.stderr().is_terminal,
    ) as progress:
        task = progress.add_task("warming up", total=None)

        def on_level(streams: int) -> Callable[[int], None]:
            plural = "s" if streams > 1 else ""
            total = streams * workload.requests_per_stream
            progress.reset(task, total=total, description=f"{streams} stream{plural}")
            return lambda done: progress.update(task, completed=done)

        try:
            return asyncio.run(run(target, workload, levels, on_level=on_level))
        except EngineUnreachable as error:
            raise CommandError(ExitCode.UNREACHABLE, error.message) from None


def _status(server: Server, name: str) -> ModelStatus | None:
    """Return what xgen-ray says of the model; None from any other server."""
    try:
        return server.model_status(name)
    except CommandError:
        return None


def _about(before: ModelStatus | None, after: ModelStatus | None, report: RunReport) -> dict[str, object]:
    """Return backend, options and stability: what a figure is worth nothing without."""
    about: dict[str, object] = {}
    if after is not None:
        about["backend"] = after.backend.value if after.backend else None
        about["replicas"] = len(after.replicas)
        about |= {name: after.plan.options.get(name) for name in ("slots", "context")} if after.plan else {}
    deaths = len(after.failures) - len(before.failures) if before is not None and after is not None else 0
    failed = sum(level.failed for level in report.levels)
    asked = failed + sum(level.requests for level in report.levels)
    troubles = []
    if failed:
        troubles.append(f"{failed} of {asked} requests failed")
    if deaths > 0:
        troubles.append(f"the engine died {deaths} time{'s' if deaths > 1 else ''}")
    about["stability"] = "; ".join(troubles) or "stable"
    return about


def _publish(report: RunReport, json_file: Path | None) -> None:
    if json_file is not None and str(json_file) == "-":
        output.print_json(as_json(report))
        return
    output.stdout().print(render(report))
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(as_json(report), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            message = f"The result could not be written to {json_file}: {error.strerror}."
            raise CommandError(ExitCode.FAILED, message) from None
