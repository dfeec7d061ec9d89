"""xgen-ray beside Ray Serve LLM on the same vLLM, and vLLM asked directly: three ways in one run.

    make test                                # once: sets up vLLM's CPU build and the model
    python -m tests.bench.against_ray_llm    # sets up what else it needs in .cache/ray-llm, then measures

The engine asked directly is the very process that xgen-ray serves; Ray Serve LLM has one of its own with the
same options. The three take turns within each round, so that a machine that grows slower does so for all, and
figures are compared within their round.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import ceil
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.backends.vllm_standin import HF_MODEL, REAL_VLLM, REPOSITORY, why_no_vllm
from tests.bench.stack import vllm, vllm_dtype
from xgen_ray.bench import LevelReport, Target, Workload
from xgen_ray.bench.load import Dialect, run_level, warm_up
from xgen_ray.bench.report import milliseconds
from xgen_ray.errors import EngineFailed
from xgen_ray.process import free_port

DIRECT, OURS, PEER = "vLLM asked directly", "xgen-ray", "ray.serve.llm"
WAYS = (DIRECT, OURS, PEER)
STREAMS = (1, 8, 32)
SLOTS = 32
CONTEXT = 1024
# What Ray Serve LLM imports beside Ray and vLLM.
_ALSO = ("pyarrow>=17", "pandas>=2.2.3", "jsonref>=1.1")
_PLACE = REPOSITORY / ".cache" / "ray-llm"
_START_S = 300.0
_READY = "ray-serve-llm-serves"


@dataclass(frozen=True, slots=True)
class Level:
    """One number of streams: each round has a report of each way."""

    streams: int
    rounds: tuple[Mapping[str, LevelReport], ...]

    def median(self, way: str, figure: str) -> float | None:
        """Over the rounds: ``tokens_per_s``, or ``ttft_s`` for the median time to the first token."""
        return _median([_figure(one[way], figure) for one in self.rounds])

    def ratio(self, figure: str, way: str, to: str) -> float | None:
        """The median over the rounds of ``way`` / ``to``."""
        pairs = [(_figure(one[way], figure), _figure(one[to], figure)) for one in self.rounds]
        return _median([a / b if a is not None and b else None for a, b in pairs])

    @property
    def failed(self) -> int:
        return sum(one.failed + one.unfinished for reports in self.rounds for one in reports.values())


def _figure(report: LevelReport, figure: str) -> float | None:
    if figure == "ttft_s":
        return report.ttft_s.p50 if report.ttft_s else None
    return report.tokens_per_s or None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None


async def measure(
    targets: Mapping[str, Target],
    streams: Sequence[int],
    rounds: int,
    requests: int,
    max_tokens: int,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Level]:
    """Load the targets in turn; each gets ``requests`` in a round of a level, or two for each stream.

    ``tell`` hears of each round when it is over: all of them take minutes on a slow machine.
    """
    dialects: dict[str, Dialect] = {}
    for way, target in targets.items():
        dialects[way] = await warm_up(target, Workload(max_tokens=max_tokens), streams=max(streams))
    levels, first_index = [], 0
    for level in streams:
        each = max(2, ceil(requests / level))
        workload = Workload(requests_per_stream=each, max_tokens=max_tokens, prompt_words=32)
        measured = []
        for number in range(rounds):
            reports: dict[str, LevelReport] = {}
            # Whoever goes first would otherwise always meet the cooler machine.
            order = [*targets][number % len(targets) :] + [*targets][: number % len(targets)]
            for way in order:
                target, dialect = targets[way], dialects[way]
                reports[way] = await run_level(
                    target, workload, level, dialect=dialect, first_index=first_index
                )
                # No prompt twice: no cache may answer the second for the first.
                first_index += level * each
            measured.append(reports)
            rates = ", ".join(f"{way} {reports[way].tokens_per_s:.1f}" for way in targets)
            tell(f"{level} streams, round {number + 1} of {rounds}: {rates} tokens/s")
        levels.append(Level(level, tuple(measured)))
    return levels


def peer_python() -> Path:
    """The interpreter that has Ray and vLLM together: both of ours, and what else the peer imports."""
    python = _PLACE / "bin" / "python"
    if not (_PLACE / ".done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(_PLACE)], check=True)
        (site,) = (_PLACE / "lib").glob("python*/site-packages")
        found = [
            next((prefix / "lib").glob("python*/site-packages")) for prefix in (REAL_VLLM, Path(sys.prefix))
        ]
        (site / "engines.pth").write_text("".join(f"{folder}\n" for folder in found))
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, *_ALSO], check=True)
        (_PLACE / ".done").touch()
    return python


@contextmanager
def ray_serve_llm() -> Iterator[Target]:
    """Ray Serve LLM with the model, on a Ray of its own; gone afterwards."""
    port, name = free_port(), "bench"
    server = Path(__file__).with_name("ray_llm_server.py")
    command = [
        str(peer_python()),
        str(server),
        str(HF_MODEL),
        name,
        str(port),
        str(SLOTS),
        str(CONTEXT),
        vllm_dtype(),
        _READY,
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=tempfile.gettempdir()
        )
        late = threading.Timer(_START_S, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            if not any(_READY in line for line in process.stdout):
                log.seek(0)
                raise EngineFailed(f"Ray Serve LLM did not start: {log.read()[-3000:]}")
            late.cancel()
            yield Target(f"http://127.0.0.1:{port}", name)
        finally:
            late.cancel()
            process.terminate()
            process.wait(60)


def render(levels: Sequence[Level], max_tokens: int) -> Table:
    rounds = len(levels[0].rounds)
    title = (
        f"{max_tokens} tokens a request; medians of {rounds} rounds; ratios are the median of each round's"
    )
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    for column in ("streams", "way", "ttft p50 ms", "tokens/s", "of direct", "of ray.serve.llm", "failed"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for level in levels:
        for way in WAYS:
            first, rate = level.median(way, "ttft_s"), level.median(way, "tokens_per_s")
            table.add_row(
                str(level.streams) if way == DIRECT else "",
                way,
                milliseconds(first) if first else "-",
                f"{rate:.1f}" if rate else "-",
                _told(level.ratio("tokens_per_s", way, DIRECT)),
                _told(level.ratio("tokens_per_s", way, PEER)),
                str(sum(one[way].failed + one[way].unfinished for one in level.rounds)),
            )
    return table


def _told(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON if asked to. 1 if any request failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.against_ray_llm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6, help="at least so many in a round of a level")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(argv)
    if missing := why_no_vllm():
        parser.error(missing)
    notes = Console(stderr=True)
    notes.print("starting Ray Serve LLM", style="dim")
    with ray_serve_llm() as peer:
        notes.print("starting xgen-ray", style="dim")
        with vllm(SLOTS, CONTEXT) as pair:
            targets = {DIRECT: pair.direct, OURS: pair.through, PEER: peer}
            notes.print("measuring", style="dim")
            levels = asyncio.run(
                measure(
                    targets,
                    given.streams,
                    given.rounds,
                    given.requests,
                    given.max_tokens,
                    lambda line: notes.print(line, style="dim", highlight=False),
                )
            )
    results = Console(width=None if sys.stdout.isatty() else 160)
    said = f"Ray {version('ray')}, vLLM's CPU build, {HF_MODEL.name} in {vllm_dtype()}"
    results.print(said, highlight=False)
    results.print(render(levels, given.max_tokens))
    if given.json:
        given.json.write_text(
            json.dumps([asdict(level) for level in levels], indent=2) + "\n", encoding="utf-8"
        )
    return 1 if any(level.failed for level in levels) else 0


if __name__ == "__main__":
    sys.exit(main())
