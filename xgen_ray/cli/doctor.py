"""``doctor``: whether this node is fit to serve, and what to do where it is not."""

import asyncio
import os
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from xgen_ray.cli import options, output
from xgen_ray.cli.exits import ExitCode
from xgen_ray.errors import XgenRayError

if TYPE_CHECKING:
    from deployments.joining import Address
    from xgen_ray.doctor import Finding, Head, NodeFacts
    from xgen_ray.placement.types import Backend

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}


def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            show_default=False,
            help="The Ray head that this node joins; its versions are compared.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="XGEN_RAY_URL",
            show_default=False,
            help="Where the server is; its clock is compared.",
        ),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", metavar=options.FLAG, help="Ask the hub of models too.")
    ] = False,
    engine: options.Engines = None,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", metavar="DIR", help="Where downloads are kept.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", help="Where the registry of models is kept.")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=1, metavar="SECONDS", help="Seconds that each look may take."),
    ] = 15,
    as_json: options.Json = False,
) -> None:
    """Check this machine: drivers, devices, engines, versions, limits, disks.

    Needs no server and changes nothing. Exit code 1 says that there is a
    problem; warnings and notes leave it at 0.

    Examples:

      xgen-ray doctor
      xgen-ray doctor --engine vllm-cuda=/opt/vllm/bin/python
      xgen-ray doctor --address head:6379 --url http://head:8000
      xgen-ray doctor --json | jq '.findings[] | select(.level == "problem")'
    """
    from xgen_ray.doctor import Level, examine, worst

    commands = options.engine_commands(engine or ())
    facts = asyncio.run(_look(address, url, commands, cache_dir, state_dir, timeout, online=online))
    findings = examine(facts)
    if as_json:
        answer = {
            "host": facts.snapshot.host.hostname,
            "worst": worst(findings),
            "findings": [asdict(finding) for finding in findings],
        }
        output.print_json(answer)
    else:
        output.stdout().print(_rendered(facts.snapshot.host.hostname, findings))
    if worst(findings) is Level.PROBLEM:
        raise typer.Exit(ExitCode.FAILED)


async def _look(
    address: str | None,
    url: str | None,
    commands: "dict[Backend, tuple[str, ...]]",
    cache_dir: Path | None,
    state_dir: Path | None,
    timeout: float,
    *,
    online: bool,
) -> "NodeFacts":
    from huggingface_hub import constants

    from xgen_ray.doctor import Questions, gather
    from xgen_ray.settings import engine_environment, xdg_dir

    questions = Questions(
        env=engine_environment(os.environ),
        commands=commands,
        cache_dir=cache_dir or xdg_dir("XDG_CACHE_HOME", ".cache"),
        state_dir=state_dir or xdg_dir("XDG_STATE_HOME", ".local/state"),
        temp_dir=Path(tempfile.gettempdir()),
        peer_url=url,
        hub_endpoint=constants.ENDPOINT if online else None,
        timeout_s=timeout,
    )
    if address is None:
        return await gather(questions)
    from deployments.joining import parse_address

    return await gather(questions, _ask_head(parse_address(address), timeout))


async def _ask_head(address: "Address", timeout: float) -> "Head":
    """What a node that joins would be told."""
    from deployments.joining import ask_head, reach
    from xgen_ray.doctor import Head

    try:
        await reach(address, timeout)
        # Ray finds its token through the environment, whatever that is set to.
        told = await ask_head(address, os.environ, timeout)
    except XgenRayError as error:
        return Head(str(address), problem=error.message)
    return Head(str(address), told.ray, told.python)


def _rendered(host: str, findings: "tuple[Finding, ...]") -> RenderableType:
    table = output.table("CHECK", "LEVEL", "FOUND")
    for finding in findings:
        level = finding.level.value
        found = output.cell(finding.found)
        if finding.advice:
            found.append(f"\n-> {output.plain(finding.advice)}", style="dim")
        table.add_row(output.cell(finding.check), output.cell(level, _STYLES[level]), found)
    counts = Counter(finding.level.value for finding in findings)
    summary = ", ".join(f"{counts[level]} {level}" for level in reversed(_STYLES) if counts[level])
    return Group(table, Text(""), Text(f"{output.plain(host)}: {summary}", style="bold"))
