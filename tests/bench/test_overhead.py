"""The comparison of two endpoints: its arithmetic by tables, its run against real endpoints."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from rich.console import Console

from tests.bench.endpoint import Behaviour, Endpoint
from tests.bench.overhead import Round, as_json, compare, main, measure_pair, render
from xgen_ray.bench import LevelReport, Outcome, Target, summarise
from xgen_ray.errors import Unauthorized


@pytest.fixture
async def endpoints() -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(Endpoint().serving()),
            await stack.enter_async_context(Endpoint().serving()),
        )


def level(ttft_s: float, duration_s: float) -> LevelReport:
    """One request of ten tokens: its rates follow from its duration."""
    return summarise(1, [Outcome(0.0, duration_s, (ttft_s,), tokens=10)])


def test_figures_are_compared_within_a_round_and_told_over_all() -> None:
    comparison = compare(
        1,
        [
            Round(direct=level(0.010, 1.0), through=level(0.011, 1.0)),
            Round(direct=level(0.020, 1.0), through=level(0.025, 2.0)),
            Round(direct=level(0.500, 1.0), through=level(0.502, 4.0)),
        ],
    )
    added, ratio = comparison.added_ttft_p50_ms, comparison.requests_per_s_ratio
    assert added is not None
    assert (added.smallest, added.median, added.largest) == pytest.approx((1.0, 2.0, 5.0))
    assert ratio is not None
    assert (ratio.smallest, ratio.median, ratio.largest) == pytest.approx((0.25, 0.5, 1.0))
    assert comparison.tokens_per_s_ratio == ratio
    assert comparison.failed == 0


def test_a_round_without_an_answer_leaves_no_figure() -> None:
    nothing = summarise(1, [Outcome(0.0, 1.0, error="http 503")], unfinished=2)
    comparison = compare(1, [Round(level(0.1, 1.0), level(0.1, 1.0)), Round(level(0.1, 1.0), nothing)])
    assert comparison.added_ttft_p50_ms is None
    assert comparison.requests_per_s_ratio is None
    assert comparison.failed == 3


async def test_an_added_delay_is_found(endpoints: tuple[Endpoint, Endpoint]) -> None:
    direct, through = endpoints
    through.behaviour = Behaviour(first_s=0.2)
    report = await measure_pair(
        Target(direct.url, "m"), Target(through.url, "m"), (1, 2), requests=2, rounds=3, max_tokens=4
    )
    assert [comparison.streams for comparison in report.comparisons] == [1, 2]
    for comparison in report.comparisons:
        assert comparison.added_ttft_p50_ms is not None
        assert 25 < comparison.added_ttft_p50_ms.median < 2000
        assert comparison.requests_per_s_ratio is not None
        assert comparison.requests_per_s_ratio.median < 0.6
        assert len(comparison.rounds) == 3
    prompts = [body["messages"][0]["content"] for endpoint in endpoints for body in endpoint.seen.bodies]
    # The warm-up asks both the same; what is measured is asked once.
    measured = [prompt for prompt in prompts if not prompt.startswith("-")]
    assert len(set(measured)) == len(measured) == 2 * 2 * 3 * 2


async def test_rounds_take_turns(endpoints: tuple[Endpoint, Endpoint]) -> None:
    direct, through = endpoints
    said: list[str] = []
    await measure_pair(
        Target(direct.url, "m"), Target(through.url, "m"), (1,), requests=1, rounds=3, say=said.append
    )
    assert [line.rpartition(" ")[2] for line in said] == [
        "direct", "through", "through", "direct", "direct", "through",
    ]  # fmt: skip


async def test_a_report_is_a_table_and_json_without_keys(endpoints: tuple[Endpoint, Endpoint]) -> None:
    direct, through = endpoints
    direct.behaviour = Behaviour(key="hunter2")
    report = await measure_pair(
        Target(direct.url, "m", "hunter2"), Target(through.url, "m"), (1,), requests=1, rounds=1
    )
    console = Console(width=160, record=True, quiet=True)
    console.print(render(report))
    text = json.dumps(as_json([report]))
    assert report.failed == 0
    assert "hunter2" not in text
    assert json.loads(text)[0]["comparisons"][0]["rounds"][0]["through"]["requests"] == 1
    with pytest.raises(Unauthorized):
        await measure_pair(Target(direct.url, "m"), Target(through.url, "m"), (1,), requests=1, rounds=1)


def test_the_program_says_what_it_cannot_reach(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--direct", "http://127.0.0.1:9", "--through", "http://127.0.0.1:9"]) == 1
    assert "Is the server running" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--direct", "http://127.0.0.1:9"])
