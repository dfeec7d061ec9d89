"""Three ways compared: the arithmetic by tables, the turns against real endpoints."""

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from rich.console import Console

from tests.bench.against_ray_llm import DIRECT, OURS, PEER, Level, measure, render
from tests.bench.endpoint import Behaviour, Endpoint
from xgen_ray.bench import LevelReport, Outcome, Target, summarise


def report(ttft_s: float, duration_s: float) -> LevelReport:
    """One request of ten tokens: its rates follow from its duration."""
    return summarise(1, [Outcome(0.0, duration_s, (ttft_s,), tokens=10)])


ROUNDS = Level(
    1,
    (
        {DIRECT: report(0.1, 1.0), OURS: report(0.1, 1.0), PEER: report(0.2, 2.0)},
        {DIRECT: report(0.1, 2.0), OURS: report(0.3, 4.0), PEER: report(0.2, 4.0)},
        {DIRECT: report(0.3, 1.0), OURS: report(0.5, 1.0), PEER: report(0.9, 4.0)},
    ),
)


def test_ratios_are_made_within_a_round() -> None:
    assert ROUNDS.ratio("tokens_per_s", OURS, DIRECT) == pytest.approx(1.0)
    assert ROUNDS.ratio("tokens_per_s", OURS, PEER) == pytest.approx(2.0)
    assert ROUNDS.ratio("ttft_s", PEER, DIRECT) == pytest.approx(2.0)
    assert ROUNDS.median(OURS, "ttft_s") == pytest.approx(0.3)
    assert ROUNDS.median(PEER, "tokens_per_s") == pytest.approx(2.5)


def test_a_round_without_an_answer_leaves_no_figure() -> None:
    nothing = summarise(1, [Outcome(0.0, 1.0, error="http 503")], unfinished=2)
    broken = replace(ROUNDS, rounds=(*ROUNDS.rounds, {**ROUNDS.rounds[0], PEER: nothing}))
    assert broken.ratio("tokens_per_s", OURS, PEER) is None
    assert broken.ratio("tokens_per_s", OURS, DIRECT) is not None
    assert broken.failed == 3


async def test_each_takes_its_turn_with_prompts_of_its_own() -> None:
    async with AsyncExitStack() as stack:
        endpoints = {
            way: await stack.enter_async_context(Endpoint().serving()) for way in (DIRECT, OURS, PEER)
        }
        endpoints[PEER].behaviour = Behaviour(first_s=0.2)
        targets = {way: Target(endpoint.url, "m") for way, endpoint in endpoints.items()}
        levels = await measure(targets, (1, 4), rounds=3, requests=2, max_tokens=4)
    assert [level.streams for level in levels] == [1, 4]
    prompts = [
        body["messages"][0]["content"] for endpoint in endpoints.values() for body in endpoint.seen.bodies
    ]
    asked = [prompt for prompt in prompts if not prompt.startswith("-")]
    assert len(asked) == len(set(asked)) == 3 * 3 * (2 + 8), "no cache answers one way for another"
    added = levels[0].ratio("ttft_s", PEER, DIRECT)
    assert added is not None
    assert added > 2
    console = Console(width=160, record=True)
    console.print(render(levels, 4))
    assert "ray.serve.llm" in console.export_text()
