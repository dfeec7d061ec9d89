"""Sessions find the same engine from every router; shared prompt starts are recognised."""

import json
import subprocess
import sys
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.serving.routing.affinity import PrefixIndex, blocks_of, bytes_in, rendezvous, seed_of

ENGINES = [f"pool-{number}#replica" for number in range(8)]
SEEDS = [seed_of(name) for name in ENGINES]


def favourite(session: str, seeds: list[int]) -> int:
    return seeds[rendezvous(seed_of(session), seeds)[0]]


def test_sessions_spread_evenly() -> None:
    counts = Counter(favourite(f"session-{number}", SEEDS) for number in range(4000))
    assert len(counts) == 8
    assert min(counts.values()) > 350
    assert max(counts.values()) < 650


@settings(max_examples=50)
@given(st.text(max_size=40), st.integers(0, 7), st.permutations(range(8)))
def test_only_the_sessions_of_an_engine_that_goes_move(session: str, gone: int, order: list[int]) -> None:
    before = favourite(session, SEEDS)
    left = [SEEDS[number] for number in order if number != gone]
    if before != SEEDS[gone]:
        assert favourite(session, left) == before


def test_another_process_finds_the_same_order() -> None:
    code = (
        "from xgen_ray.serving.routing.affinity import rendezvous, seed_of;"
        f"print(rendezvous(seed_of('s-1'), [seed_of(name) for name in {ENGINES!r}]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(other.stdout) == rendezvous(seed_of("s-1"), SEEDS)


def body(prompt: str, **others: object) -> bytes:
    messages = [{"role": "system", "content": prompt}]
    return json.dumps({**others, "model": "m", "messages": messages}).encode()


def test_what_comes_before_the_prompt_does_not_matter() -> None:
    text = "abcdefgh" * 1000
    assert blocks_of(body(text)) == blocks_of(body(text, temperature=0.7, seed=3))


@settings(max_examples=50)
@given(st.integers(0, 9000), st.integers(0, 70_000), st.integers(0, 70_000))
def test_blocks_are_equal_just_as_far_as_prompts_are(shared: int, left: int, right: int) -> None:
    one, two = blocks_of(body("s" * shared + "l" * left)), blocks_of(body("s" * shared + "r" * right))
    same = 0
    while same < min(len(one), len(two)) and one[same] == two[same]:
        same += 1
    assert one[same:] == () or two[same:] == () or set(one[same:]).isdisjoint(two[same:])
    if left and right:
        assert bytes_in(same) <= shared + 100
    if same < min(len(one), len(two)):
        assert bytes_in(same + 1) > shared


def test_the_index_knows_how_much_each_engine_has_read() -> None:
    index = PrefixIndex(entries=1000, life_s=100.0)
    long, short = blocks_of(body("s" * 6000)), blocks_of(body("s" * 2000))
    index.read(long, "a", 0.0)
    index.read(short, "b", 0.0)
    found = index.cached(blocks_of(body("s" * 6000 + "more")), 0.0)
    assert found["a"] >= 5000
    assert 1000 <= found["b"] <= 2048
    assert index.cached(blocks_of(body("other" * 1000)), 0.0) == {}


def test_what_is_remembered_fades_and_is_bounded() -> None:
    index = PrefixIndex(entries=4, life_s=100.0)
    blocks = blocks_of(body("s" * 3000))
    index.read(blocks, "a", 0.0)
    fresh, old = index.cached(blocks, 0.0)["a"], index.cached(blocks, 50.0)["a"]
    assert old == fresh / 2
    index.read(blocks_of(body("t" * 8000)), "a", 60.0)
    assert index.cached(blocks, 60.0) == {}
    index.forget("a")
    assert index.cached(blocks_of(body("t" * 8000)), 60.0) == {}
