"""The log ring and what feeds it."""

import random
import re
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xgen_ray.process.logs import LogRing
from xgen_ray.process.output import LineFeed

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")
texts = st.text(max_size=60)


def test_lines_are_numbered_from_zero() -> None:
    ring = LogRing()
    assert ring.read() == ((), 0)
    for number in range(5):
        ring.append(f"line {number}")
    assert ring.read() == (tuple(f"line {n}" for n in range(5)), 5)
    assert ring.read(3) == (("line 3", "line 4"), 5)
    assert ring.read(1, limit=2) == (("line 1", "line 2"), 3)
    assert ring.read(5) == ((), 5)


def test_a_reader_that_fell_behind_is_told() -> None:
    ring = LogRing(max_lines=3)
    for number in range(10):
        ring.append(str(number))
    assert ring.read(2) == (("... 5 lines dropped", "7", "8", "9"), 10)
    assert ring.read(7) == (("7", "8", "9"), 10)
    assert ring.read(0, limit=1) == (("... 7 lines dropped", "7"), 8)


@pytest.mark.parametrize("after", [6, 10**9])
def test_a_number_from_another_log_starts_at_the_end(after: int) -> None:
    ring = LogRing()
    for number in range(5):
        ring.append(str(number))
    assert ring.read(after) == ((), 5)


def test_odd_arguments() -> None:
    ring = LogRing()
    ring.append("a")
    assert ring.read(-5) == (("a",), 1)
    assert ring.read(limit=0) == ((), 0)
    assert ring.read(limit=-1) == ((), 0)
    assert ring.tail(0) == ()
    assert ring.tail(-1) == ()
    with pytest.raises(ValueError, match="room"):
        LogRing(max_lines=0)


@given(
    lines=st.lists(texts, max_size=40),
    max_lines=st.integers(1, 10),
    limit=st.integers(1, 7),
    turns=st.lists(st.integers(0, 5), max_size=15),
)
@settings(max_examples=50)
def test_a_follower_misses_nothing_unnoticed(
    lines: list[str], max_lines: int, limit: int, turns: list[int]
) -> None:
    """Lines read and lines told as dropped add up, whatever the order of writing and reading."""
    ring = LogRing(max_lines=max_lines)
    waiting = [f"{number}:" for number in range(len(lines))]
    seen = dropped = after = 0
    for turn in [*turns, len(waiting), *([0] * len(waiting))]:
        for _ in range(min(turn, len(waiting))):
            ring.append(waiting.pop(0))
        got, after = ring.read(after, limit)
        assert len(got) <= limit + 1
        for line in got:
            if match := re.fullmatch(r"\.\.\. (\d+) lines dropped", line):
                dropped += int(match[1])
            else:
                assert line == f"{seen + dropped}:"
                seen += 1
    assert seen + dropped == len(lines) == after


@given(line=st.text(alphabet=st.characters(), max_size=200))
@example("\x1b[31mred\x1b[0m plain\x07\x00")
@example("\x1b]0;title\x07text")
@example("a\ud800b\u202ec")
@settings(max_examples=80)
def test_stored_lines_are_safe_to_show(line: str) -> None:
    ring = LogRing()
    ring.append(line)
    (stored,) = ring.tail()
    assert not CONTROL.search(stored)
    stored.encode()


def test_escapes_go_and_words_stay() -> None:
    ring = LogRing()
    ring.append("\x1b[1;31merror:\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ 한글\tcol")
    assert ring.tail() == ("error: link 한글    col",)


def test_long_lines_are_cut_with_a_mark() -> None:
    ring = LogRing(max_line_chars=10)
    ring.append("0123456789")
    ring.append("0123456789ab")
    ring.append("x" * 100_000)
    assert ring.tail() == (
        "0123456789",
        "0123456789 ... [2 characters cut]",
        f"{'x' * 10} ... [99990 characters cut]",
    )


secrets = st.text(alphabet=string.ascii_letters + string.digits + "-_.$^*[", min_size=4, max_size=20)


@given(
    words=st.lists(st.one_of(texts, st.sampled_from(["\x1b[31m", "SECRET0", "SECRET1", "\n"])), max_size=30),
    secret=st.tuples(secrets, secrets),
    max_chars=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=10),
)
@settings(max_examples=80)
def test_secrets_never_come_out(
    words: list[str], secret: tuple[str, str], max_chars: int, sizes: list[int]
) -> None:
    """However they are cut, coloured, put together or split over reads."""
    ring = LogRing(max_line_chars=max_chars, secrets=secret)
    text = "".join(secret[int(word[-1])] if word.startswith("SECRET") else word for word in words)
    feed_all(LineFeed(ring), text.encode("utf-8", "replace"), sizes)
    for line in ring.tail(1000):
        assert not any(hidden in line for hidden in secret if hidden not in "characters cut"), line


def test_a_secret_cut_in_the_middle_leaves_no_beginning() -> None:
    secret = "hidden-0123456789"
    for shift in range(40):
        ring = LogRing(max_line_chars=100, secrets=[secret])
        # Colours shrink the line, so that what was cut off at 400 is shown at 100.
        ring.append("\x1b[31m" * 74 + "." * shift + secret * 30)
        assert "hidde" not in ring.tail()[0]


def test_secrets_are_hidden_in_lines_already_held() -> None:
    ring = LogRing()
    ring.append("the key is abcdef")
    ring.hide(["abcdef"])
    ring.append("the key is abcdef")
    assert ring.tail() == ("the key is ***", "the key is ***")


def test_a_secret_inside_another_and_one_of_several_lines() -> None:
    ring = LogRing(secrets=["abcd", "abcdefgh", "first line\nsecond line", "", " "])
    for line in ("xabcdefghx", "xabcdx", "  second line ", "nothing here"):
        ring.append(line)
    assert ring.tail() == ("x***x", "x***x", "  *** ", "nothing here")


def feed_all(feed: LineFeed, data: bytes, sizes: list[int], now: float = 0.0) -> None:
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        feed.feed(data[:size], now)
        data = data[size:]
        turn += 1
    feed.close()


@given(
    lines=st.lists(
        st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=30)
    ),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=10),
)
@settings(max_examples=40)
def test_lines_come_out_as_printed_however_they_are_read(
    lines: list[str], end: str, sizes: list[int]
) -> None:
    """Also characters of several bytes that two reads share."""
    ring = LogRing()
    feed_all(LineFeed(ring), end.join(lines).encode(), sizes)
    assert ring.tail(10_000) == tuple(line for line in lines if line)


def test_bytes_that_are_no_text() -> None:
    ring = LogRing()
    feed_all(LineFeed(ring), random.Random(1).randbytes(20_000), [997])
    assert all(not CONTROL.search(line) for line in ring.tail(10_000))


def test_an_endless_line_costs_no_more_than_what_it_shows() -> None:
    ring = LogRing(max_line_chars=100)
    feed = LineFeed(ring)
    for _ in range(1000):
        feed.feed(b"x" * 10_000, 0.0)
    feed.feed(b"\nnext\n", 0.0)
    assert ring.tail() == (f"{'x' * 100} ... [9999900 characters cut]", "next")


def test_of_a_flood_the_last_words_are_kept_and_the_rest_is_counted() -> None:
    ring = LogRing()
    feed = LineFeed(ring, lines_per_s=10, burst=20)
    for piece in range(50):
        feed.feed(b"".join(b"line %d.%d\n" % (piece, n) for n in range(100)), now=piece * 0.001)
    feed.feed(b"the last words\n", now=0.05)
    shown = ring.tail(10_000)
    skipped = sum(int(m[1]) for line in shown if (m := re.match(r"\.\.\. (\d+) lines skipped", line)))
    kept = sum(not line.startswith("...") for line in shown)
    assert shown[-1] == "the last words"
    assert "line 49.99" in shown
    assert kept + skipped == 50 * 100 + 1
    assert kept < 200


def test_after_a_flood_everything_is_kept_again() -> None:
    ring = LogRing()
    feed = LineFeed(ring, lines_per_s=100, burst=100)
    feed.feed(b"flood\n" * 10_000, now=0.0)
    feed.feed(b"".join(b"calm %d\n" % n for n in range(90)), now=10.0)
    assert ring.tail(90) == tuple(f"calm {n}" for n in range(90))
