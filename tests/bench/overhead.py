"""What xgen-ray adds to an engine, measured in one run: the engine asked directly, and through.

    python -m tests.bench.overhead                                   # starts everything itself
    python -m tests.bench.overhead --direct URL --through URL        # compares what is running

Rounds alternate (direct, through, through, direct, ...), so that a machine that grows slower or warmer
does so for both. Every figure is compared within its round and then told as the median over the rounds,
with the smallest and the largest beside it: on a shared machine one round proves nothing.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.stack import ENGINES, Pair
from xgen_ray.bench import LevelReport, Target, Workload
from xgen_ray.bench.load import run_level, warm_up
from xgen_ray.bench.report import milliseconds
from xgen_ray.errors import XgenRayError

STREAMS = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class OverRounds:
    """A figure's median over the rounds, between its smallest and its largest."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True, slots=True)
class Round:
    """Both targets under the same load, one right after the other."""

    direct: LevelReport
    through: LevelReport


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number of streams. Ratios are through / direct: 1.0 is "no difference", below 1 is a loss.

    A figure is None when a round had no request that succeeded.
    """

    streams: int
    rounds: tuple[Round, ...]
    added_ttft_p50_ms: OverRounds | None
    requests_per_s_ratio: OverRounds | None
    tokens_per_s_ratio: OverRounds | None

    @property
    def failed(self) -> int:
        return sum(
            level.failed + level.unfinished for one in self.rounds for level in (one.direct, one.through)
        )


@dataclass(frozen=True, slots=True)
class PairReport:
    """All comparisons of a pair. Urls are told, keys are not."""

    name: str
    direct_url: str
    through_url: str
    max_tokens: int
    comparisons: tuple[Comparison, ...]

    @property
    def failed(self) -> int:
        return sum(comparison.failed for comparison in self.comparisons)


async def measure_pair(
    direct: Target,
    through: Target,
    streams: Sequence[int],
    requests: int,
    rounds: int,
    *,
    name: str = "engine",
    max_tokens: int = 32,
    prompt_words: int = 64,
    say: Callable[[str], None] | None = None,
) -> PairReport:
    """Load both targets in turn, ``rounds`` times for each number of ``streams``.

    ``requests`` is about how many each target gets in a round of a level, at least one a stream.
    Raises what ``warm_up`` raises if a target does not answer at all.
    """
    dialects = {}
    for target in (direct, through):
        dialects[target] = await warm_up(target, Workload(max_tokens=max_tokens), streams=max(streams))
    comparisons = []
    first_index = 0
    for level in streams:
        workload = Workload(
            requests_per_stream=max(1, requests // level), max_tokens=max_tokens, prompt_words=prompt_words
        )
        measured: list[Round] = []
        for number in range(rounds):
            # Turn about: who goes first would otherwise always meet the cooler machine.
            order = (direct, through) if number % 2 == 0 else (through, direct)
            reports: dict[Target, LevelReport] = {}
            for target in order:
                if say is not None:
                    which = "direct" if target is direct else "through"
                    say(f"{name}: {level} streams, round {number + 1} of {rounds}, {which}")
                reports[target] = await run_level(
                    target, workload, level, dialect=dialects[target], first_index=first_index
                )
                # No prompt twice, so that no cache answers the second for the first.
                first_index += level * workload.requests_per_stream
            measured.append(Round(reports[direct], reports[through]))
        comparisons.append(compare(level, measured))
    return PairReport(name, direct.url, through.url, max_tokens, tuple(comparisons))


def compare(streams: int, rounds: Sequence[Round]) -> Comparison:
    """Return what the rounds of one level say. Pure."""
    return Comparison(
        streams=streams,
        rounds=tuple(rounds),
        added_ttft_p50_ms=_over(rounds, _added_ttft_ms),
        requests_per_s_ratio=_over(rounds, lambda one: _ratio(one, lambda level: level.requests_per_s)),
        tokens_per_s_ratio=_over(rounds, lambda one: _ratio(one, lambda level: level.tokens_per_s)),
    )


def _added_ttft_ms(one: Round) -> float | None:
    if one.direct.ttft_s is None or one.through.ttft_s is None:
        return None
    return (one.through.ttft_s.p50 - one.direct.ttft_s.p50) * 1e3


def _ratio(one: Round, rate: Callable[[LevelReport], float]) -> float | None:
    direct, through = rate(one.direct), rate(one.through)
    return through / direct if direct > 0 and through > 0 else None


def _over(rounds: Sequence[Round], figure: Callable[[Round], float | None]) -> OverRounds | None:
    values = [value for one in rounds if (value := figure(one)) is not None]
    if not values or len(values) < len(rounds):
        return None
    return OverRounds(min(values), statistics.median(values), max(values))


def as_json(reports: Sequence[PairReport]) -> list[dict[str, Any]]:
    """Return the reports as plain data, every round included."""
    return [asdict(report) for report in reports]


def render(report: PairReport) -> Table:
    """Return a pair's comparisons as a table: medians over the rounds, extremes in brackets."""
    rounds = len(report.comparisons[0].rounds) if report.comparisons else 0
    table = Table(
        title=f"{report.name}: direct and through, {report.max_tokens} tokens, median of {rounds} rounds",
        box=None,
        title_justify="left",
        pad_edge=False,
    )
    for title in ("streams", "ttft p50 ms", "added ms", "req/s", "ratio", "tokens/s", "ratio", "failed"):
        table.add_column(title, justify="right", no_wrap=True)
    for comparison in report.comparisons:
        table.add_row(
            str(comparison.streams),
            _both(comparison, _ttft_ms),
            _told(comparison.added_ttft_p50_ms, 2),
            _both(comparison, lambda level: f"{_number(level.requests_per_s)}"),
            _told(comparison.requests_per_s_ratio, 3),
            _both(comparison, lambda level: f"{_number(level.tokens_per_s)}"),
            _told(comparison.tokens_per_s_ratio, 3),
            str(comparison.failed),
        )
    return table


def _ttft_ms(level: LevelReport) -> str:
    return milliseconds(level.ttft_s.p50) if level.ttft_s else "-"


def _both(comparison: Comparison, told: Callable[[LevelReport], str]) -> str:
    """Return the figure of the middle round, direct -> through."""
    middle = sorted(comparison.rounds, key=lambda one: one.through.requests_per_s)[
        len(comparison.rounds) // 2
    ]
    return f"{told(middle.direct)} -> {told(middle.through)}"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _told(figure: OverRounds | None, digits: int) -> str:
    if figure is None:
        return "-"
    smallest, median, largest = (
        f"{value:.{digits}f}" for value in (figure.smallest, figure.median, figure.largest)
    )
    return f"{median} ({smallest}..{largest})"


def _measure(pair: Pair, arguments: argparse.Namespace, say: Callable[[str], None]) -> PairReport:
    return asyncio.run(
        measure_pair(
            pair.direct,
            pair.through,
            arguments.streams,
            arguments.requests or pair.requests,
            arguments.rounds,
            name=pair.name,
            prompt_words=pair.prompt_words,
            max_tokens=arguments.max_tokens,
            say=say,
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write JSON if asked to. 1 if any request failed."""
    arguments = _parsed(argv)
    notes, results = Console(stderr=True), Console(width=None if sys.stdout.isatty() else 200)

    def say(text: str) -> None:
        notes.print(text, style="dim", highlight=False)

    reports: list[PairReport] = []
    try:
        if arguments.direct:
            reports.append(_measure(_given_pair(arguments), arguments, say))
            results.print(render(reports[-1]))
        else:
            for engine in ENGINES if arguments.engine is None else [ENGINES[arguments.engine]]:
                say("starting a stack")
                with engine() as pair:
                    reports.append(_measure(pair, arguments, say))
                results.print(render(reports[-1]))
    except XgenRayError as error:
        notes.print(f"error: {error.message}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(reports), indent=2) + "\n", encoding="utf-8")
    return 1 if any(report.failed for report in reports) else 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.overhead", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--direct", metavar="URL", help="an engine; its key in DIRECT_KEY")
    parser.add_argument("--through", metavar="URL", help="xgen-ray; its key in THROUGH_KEY")
    parser.add_argument("--model", default="default", help="the name at --through, and at --direct")
    parser.add_argument("--direct-model", help="the name at --direct, if it is another one")
    parser.add_argument("--streams", type=_numbers, default=STREAMS, metavar="N,N,...")
    parser.add_argument("--requests", type=int, help="about how many in a round of a level")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument(
        "--engine", type=int, choices=range(len(ENGINES)), help="only this one of the engines"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if bool(arguments.direct) != bool(arguments.through):
        parser.error("--direct and --through go together")
    if arguments.rounds < 1 or (arguments.requests is not None and arguments.requests < 1):
        parser.error("--rounds and --requests take at least 1")
    return arguments


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a number below 1")
    return numbers


def _given_pair(arguments: argparse.Namespace) -> Pair:
    model = arguments.direct_model or arguments.model
    return Pair(
        name="given",
        direct=Target(arguments.direct, model, os.environ.get("DIRECT_KEY")),
        through=Target(arguments.through, arguments.model, os.environ.get("THROUGH_KEY")),
        requests=64,
    )


if __name__ == "__main__":
    sys.exit(main())
