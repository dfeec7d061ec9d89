"""The comparison of routing policies: that it repeats itself, and what must come out of it.

The margins are wide: the orderings are what counts, not the figures.
"""

from dataclasses import replace
from functools import cache

from tests.bench.routing import SCENARIOS, Result, play

REQUESTS = 800
OURS, LEAST = "xgen-ray", "least per slot"


@cache
def result(scenario: str, policy: str, seed: int = 1) -> Result:
    given = SCENARIOS[scenario]
    return play(replace(given, load=replace(given.load, requests=REQUESTS)), policy, seed)


def test_the_same_seed_gives_the_same_result() -> None:
    given = SCENARIOS["death"]
    short = replace(given, load=replace(given.load, requests=200))
    assert play(short, OURS) == play(short, OURS)
    assert play(short, OURS, seed=2) != play(short, OURS)


def test_equal_engines_share_equally_and_nobody_waits_longer() -> None:
    ours, least = result("equal", OURS), result("equal", LEAST)
    assert min(ours.shares) > 0.2
    assert ours.ttft_p99 <= least.ttft_p99 * 1.15
    assert ours.total_p99 <= least.total_p99 * 1.15


def test_slow_engines_get_a_little_and_nobody_waits_for_them() -> None:
    ours, least, fewest = (result("unlike", name) for name in (OURS, LEAST, "least outstanding"))
    assert 0 < sum(ours.shares[2:]) < 0.15
    assert ours.total_p99 < least.total_p99 < fewest.total_p99
    assert ours.ttft_p99 < least.ttft_p99
    assert ours.total_p50 <= least.total_p50 * 1.05


def test_without_reports_unlike_engines_are_still_told_apart() -> None:
    assert result("unlike", "xgen-ray, no reports").total_p99 < result("unlike", LEAST).total_p99


def test_an_engine_that_becomes_slow_is_left_alone() -> None:
    ours, least = result("slow", OURS), result("slow", LEAST)
    assert ours.ttft_p99 < least.ttft_p99 * 0.7
    assert ours.total_p99 < least.total_p99 * 0.8
    assert ours.shares[0] > 0.02


def test_a_death_costs_no_more_than_what_was_being_answered() -> None:
    ours, least = result("death", OURS), result("death", LEAST)
    slots = SCENARIOS["death"].engines[0].slots
    assert ours.lost <= slots
    assert ours.ttft_p99 <= least.ttft_p99 * 1.15


def test_conversations_find_their_caches() -> None:
    for scenario in ("prefixes", "sessions"):
        ours, least = result(scenario, OURS), result(scenario, LEAST)
        assert ours.ttft_p50 < least.ttft_p50 * 0.85
        assert ours.ttft_p99 < least.ttft_p99 * 1.15
