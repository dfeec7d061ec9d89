"""From single requests to the figures of a level. Pure: times in, statistics out. Seconds throughout."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Spread:
    """A set of durations. ``p99`` of fewer than a hundred samples lies close to ``largest``."""

    count: int
    mean: float
    p50: float
    p99: float
    smallest: float
    largest: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. ``event_times`` are the moments at which text arrived, on the clock of ``started``.

    ``tokens`` is the server's own count (``usage``), None where it gives none: then each text event
    counts as one token. A request that failed has ``error``, a short class such as ``http 503``, and
    ``detail``; its times are left out of every figure.
    """

    started: float
    ended: float
    event_times: tuple[float, ...] = ()
    tokens: int | None = None
    error: str | None = None
    detail: str | None = None
    retried: bool = False


@dataclass(frozen=True, slots=True)
class LevelReport:
    """What a number of concurrent streams got.

    ``gap`` is the time between two text events of one stream: between tokens, as a client sees them.
    ``unfinished`` requests were cut by the time limit. ``tokens_from`` is ``usage`` or ``events``
    (``mixed`` when the server counted only some). ``first_error`` is one message, to know more by.
    """

    streams: int
    requests: int
    unfinished: int
    errors: dict[str, int]
    first_error: str | None
    retries: int
    duration_s: float
    output_tokens: int
    tokens_from: str | None
    requests_per_s: float
    tokens_per_s: float
    ttft_s: Spread | None
    gap_s: Spread | None
    end_to_end_s: Spread | None

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


@dataclass(frozen=True, slots=True)
class RunReport:
    """A whole run. ``workload`` repeats what was asked, so that a report can be compared with another."""

    url: str
    model: str
    taken_at: float
    workload: dict[str, object]
    levels: tuple[LevelReport, ...]
    # What the endpoint says of itself: backend, options. Empty for a server that does not say.
    about: dict[str, object] = field(default_factory=dict)


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Return the value below which ``fraction`` of the ``ordered`` samples lie, linearly interpolated."""
    if not ordered:
        message = "a percentile needs at least one sample"
        raise ValueError(message)
    position = (len(ordered) - 1) * fraction
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(samples: Sequence[float]) -> Spread | None:
    """Summarise ``samples``; None if there are none."""
    if not samples:
        return None
    ordered = sorted(samples)
    return Spread(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 0.5),
        p99=percentile(ordered, 0.99),
        smallest=ordered[0],
        largest=ordered[-1],
    )


def summarise(
    streams: int, outcomes: Sequence[Outcome], *, unfinished: int = 0, duration_s: float | None = None
) -> LevelReport:
    """Return the figures of one level.

    Rates are over ``duration_s``, by default from the first request's start to the last one's end.
    """
    good = [outcome for outcome in outcomes if outcome.error is None]
    bad = [outcome for outcome in outcomes if outcome.error is not None]
    if duration_s is None:
        duration_s = (
            max(outcome.ended for outcome in outcomes) - min(outcome.started for outcome in outcomes)
            if outcomes
            else 0.0
        )
    tokens = sum(_tokens(outcome) for outcome in good)
    first_error = next((outcome.detail or outcome.error for outcome in bad), None)
    return LevelReport(
        streams=streams,
        requests=len(good),
        unfinished=unfinished,
        errors=dict(Counter(outcome.error for outcome in bad if outcome.error).most_common()),
        first_error=first_error,
        retries=sum(outcome.retried for outcome in outcomes),
        duration_s=duration_s,
        output_tokens=tokens,
        tokens_from=_source(good),
        requests_per_s=len(good) / duration_s if duration_s > 0 else 0.0,
        tokens_per_s=tokens / duration_s if duration_s > 0 else 0.0,
        ttft_s=spread([outcome.event_times[0] - outcome.started for outcome in good if outcome.event_times]),
        gap_s=spread([gap for outcome in good for gap in _gaps(outcome.event_times)]),
        end_to_end_s=spread([outcome.ended - outcome.started for outcome in good]),
    )


def _tokens(outcome: Outcome) -> int:
    return len(outcome.event_times) if outcome.tokens is None else outcome.tokens


def _source(outcomes: Sequence[Outcome]) -> str | None:
    sources = {"events" if outcome.tokens is None else "usage" for outcome in outcomes}
    if not sources:
        return None
    return sources.pop() if len(sources) == 1 else "mixed"


def _gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]
