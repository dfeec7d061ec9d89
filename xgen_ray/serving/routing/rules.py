"""What may be tuned in the choice of an engine, and what a choice says."""

from dataclasses import dataclass
from enum import StrEnum

from xgen_ray.serving.table import RoutedEngine


class Why(StrEnum):
    """What decided a choice."""

    ONLY = "only"  # there was no other
    SOONEST = "soonest"  # expected to be done first
    PREFIX = "prefix"  # expected to be done first, since it has the start of the prompt in its cache
    SESSION = "session"  # has the session's earlier turns, and is not behind by much
    PROBE = "probe"  # has not been asked for long: its figures are old
    LEAST_BAD = "least bad"  # all have failed lately


@dataclass(frozen=True, slots=True)
class Choice:
    """``ticket`` names this request to the balancer until it is finished."""

    engine: RoutedEngine
    why: Why
    ticket: int


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """Times are seconds.

    ``tie``: engines whose expected times differ by no more than this share count as equal, so that routers
    who know the same old figures do not all run to the same engine. A session stays with its engine while
    that is at most ``session_patience`` times slower than the best, and no fuller than ``session_bound``
    times the mean. An engine idle for ``probe_after_s`` and ``probe_turns`` requests of its model gets one.
    A report of an engine's load loses its worth within ``report_life_s``, what first bytes were late by
    within ``lateness_life_s``, an engine's measured speed within ``speed_life_s`` or ``speed_samples``,
    and a cached prefix within ``prefix_life_s``. An engine that fails is left out for ``backoff_s``,
    doubled with each further failure up to ``backoff_max_s``; one that is full for ``full_s``.
    """

    tie: float = 0.02
    session_patience: float = 2.0
    session_bound: float = 1.25
    probe_after_s: float = 15.0
    probe_turns: int = 50
    report_life_s: float = 5.0
    lateness_life_s: float = 10.0
    speed_life_s: float = 60.0
    speed_samples: float = 32.0
    prefix_life_s: float = 600.0
    prefix_entries: int = 16384
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    full_s: float = 0.5
    refresh_s: float = 0.25
