"""The statistics, by tables: times in, figures out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.bench.stats import Outcome, percentile, spread, summarise


@pytest.mark.parametrize(
    ("samples", "fraction", "expected"),
    [
        ([5.0], 0.5, 5.0),
        ([5.0], 0.99, 5.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([0.0, 10.0], 0.99, 9.9),
        ([float(n) for n in range(101)], 0.99, 99.0),
        ([1.0, 2.0, 3.0], 0.0, 1.0),
        ([1.0, 2.0, 3.0], 1.0, 3.0),
    ],
)
def test_percentiles_interpolate_between_samples(
    samples: list[float], fraction: float, expected: float
) -> None:
    assert percentile(samples, fraction) == pytest.approx(expected)


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        percentile([], 0.5)


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_a_spread_keeps_its_order(samples: list[float]) -> None:
    result = spread(samples)
    assert result is not None
    assert result.count == len(samples)
    assert result.smallest <= result.p50 <= result.p99 <= result.largest
    assert result.smallest - 1e-9 <= result.mean <= result.largest + 1e-9


def test_no_samples_have_no_spread() -> None:
    assert spread([]) is None


def test_a_level_is_summed_up_from_its_requests() -> None:
    report = summarise(
        2,
        [
            Outcome(started=0.0, ended=1.0, event_times=(0.2, 0.5, 0.9), tokens=3),
            Outcome(started=0.0, ended=2.0, event_times=(0.4, 0.5), tokens=5),
        ],
    )
    assert report.duration_s == 2.0
    assert report.requests == 2
    assert report.requests_per_s == 1.0
    assert report.output_tokens == 8
    assert report.tokens_per_s == 4.0
    assert report.tokens_from == "usage"
    assert report.ttft_s is not None
    assert report.ttft_s.p50 == pytest.approx(0.3)
    assert report.gap_s is not None
    assert report.gap_s.count == 3
    assert report.gap_s.largest == pytest.approx(0.4)
    assert report.end_to_end_s is not None
    assert report.end_to_end_s.p50 == pytest.approx(1.5)


def test_failed_requests_are_counted_by_class_and_leave_the_times_alone() -> None:
    report = summarise(
        1,
        [
            Outcome(started=0.0, ended=0.001, error="http 503", detail="all slots are taken"),
            Outcome(started=0.0, ended=0.002, error="timeout"),
            Outcome(started=0.0, ended=0.001, error="http 503", detail="again"),
            Outcome(started=1.0, ended=2.0, event_times=(1.5,), tokens=1),
        ],
        unfinished=4,
    )
    assert report.errors == {"http 503": 2, "timeout": 1}
    assert report.failed == 3
    assert report.unfinished == 4
    assert report.first_error == "all slots are taken"
    assert report.requests == 1
    assert report.end_to_end_s is not None
    assert report.end_to_end_s.smallest == 1.0


@pytest.mark.parametrize(
    ("counts", "tokens", "source"),
    [((4, 4), 8, "usage"), ((None, None), 4, "events"), ((4, None), 6, "mixed")],
)
def test_tokens_are_the_servers_count_or_else_the_events(
    counts: tuple[int | None, ...], tokens: int, source: str
) -> None:
    report = summarise(1, [Outcome(0.0, 1.0, (0.5, 0.6), count) for count in counts])
    assert report.output_tokens == tokens
    assert report.tokens_from == source


def test_a_level_without_any_answer_has_no_figures() -> None:
    report = summarise(3, [], unfinished=3)
    assert report.requests_per_s == 0.0
    assert report.tokens_from is None
    assert report.ttft_s is None
    assert report.gap_s is None
