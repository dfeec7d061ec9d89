"""How fast an engine has proven to be: to read a prompt, and to write while it has so much to do.

Work is measured in what a relay sees for free: bytes of the request, and events (about tokens) of the
answer. Estimates forget by time and by number, so that an engine that has changed is known anew after some
tens of requests or a minute.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xgen_ray.serving.routing.rules import RoutingRules

# What the shortest request costs, as if it had so many bytes.
REQUEST_BYTES: Final = 256.0
# An engine of which so many samples are known is no longer judged by its peers.
_OWN_SAMPLES: Final = 3
# A sample this many times off counts as that: a client that reads slowly slows its answer, too.
_OUTLIER: Final = 4.0
# Nothing takes no time, though a clock may say so.
_INSTANT_S: Final = 1e-7
# Too short an answer says little of the time between two events.
MIN_UNITS: Final = 4
# Weight of the prior's slope, in squared requests: as four samples that lie one request off the mean.
_STEADY: Final = 4.0


@dataclass(frozen=True, slots=True)
class Speed:
    """``byte_s``: reading one byte of a prompt. ``unit_s`` + ``crowd_s`` * n: writing one unit of an answer,
    of n at the same time.
    """

    byte_s: float
    unit_s: float
    crowd_s: float

    def per_unit(self, concurrency: float) -> float:
        return self.unit_s + self.crowd_s * concurrency


# Of an engine of which nothing is known, beside others of which nothing is known: any will do, as long as
# the emptier one is the better one.
UNKNOWN: Final = Speed(byte_s=2e-5, unit_s=0.02, crowd_s=0.002)


class SpeedMeter:
    """Measures one engine. ``speed`` is the estimate, with ``prior`` (its peers') mixed in at first.

    Reading is a ratio of sums; writing a line through (concurrency, seconds a unit), pulled towards the
    prior's slope where the samples do not tell one. Sums forget by time and are capped in weight.
    """

    __slots__ = (
        "_prior",
        "_read_at",
        "_reads",
        "_rules",
        "_seen_reads",
        "_seen_writes",
        "_write_at",
        "_writes",
        "speed",
    )

    def __init__(self, rules: RoutingRules, prior: Speed = UNKNOWN) -> None:
        self._rules = rules
        self._read_at = self._write_at = 0.0
        self._reads = (0.0, 0.0, 0.0)  # weight, bytes, seconds
        self._writes = (0.0, 0.0, 0.0, 0.0, 0.0)  # weight, c, u, c*c, c*u
        self._seen_reads = self._seen_writes = 0
        self._prior = prior
        self.speed = prior

    @property
    def reads(self) -> bool:
        """The engine has shown how fast it reads."""
        return self._seen_reads > 0

    @property
    def writes(self) -> bool:
        """The engine has shown how fast it writes."""
        return self._seen_writes > 0

    @property
    def measured(self) -> bool:
        """Others may be judged by it."""
        return self.reads or self.writes

    @property
    def guessed(self) -> bool:
        """``speed`` is in part a guess after its peers."""
        return min(self._seen_reads, self._seen_writes) < _OWN_SAMPLES

    def expect(self, prior: Speed) -> None:
        """What its peers are like."""
        if prior != self._prior:
            self._prior = prior
            self._estimate()

    def read(self, size: float, seconds: float, now: float) -> None:
        """It took ``seconds`` to read ``size`` bytes (with REQUEST_BYTES)."""
        seconds = max(seconds, _INSTANT_S)
        if self._seen_reads:
            seconds = min(seconds, _OUTLIER * self.speed.byte_s * size)
        weight, total, spent = self._reads
        kept = self._kept(weight, self._read_at, now)
        self._reads = (weight * kept + 1, total * kept + size, spent * kept + seconds)
        self._read_at = now
        self._seen_reads += 1
        self._estimate()

    def wrote(self, unit_s: float, concurrency: float, now: float) -> None:
        """Each unit of an answer took ``unit_s``, while so many were written at once."""
        unit_s = max(unit_s, _INSTANT_S)
        if self._seen_writes:
            unit_s = min(unit_s, _OUTLIER * self.speed.per_unit(concurrency))
        n, c, u, cc, cu = self._writes
        kept = self._kept(n, self._write_at, now)
        self._writes = (
            n * kept + 1,
            c * kept + concurrency,
            u * kept + unit_s,
            cc * kept + concurrency * concurrency,
            cu * kept + concurrency * unit_s,
        )
        self._write_at = now
        self._seen_writes += 1
        self._estimate()

    def _kept(self, weight: float, since: float, now: float) -> float:
        """The share that remains of a sum of such weight, when one more sample comes."""
        kept = math.exp(-max(0.0, now - since) / self._rules.speed_life_s)
        most = self._rules.speed_samples
        return kept if weight * kept <= most else most / weight

    def _estimate(self) -> None:
        prior = self._prior
        byte_s, unit_s, crowd_s = prior.byte_s, prior.unit_s, prior.crowd_s
        if self._seen_reads:
            _, total, spent = self._reads
            byte_s = _mixed(spent / total, byte_s, self._seen_reads, prior)
        if self._seen_writes:
            n, c, u, cc, cu = self._writes
            mean_c, mean_u = c / n, u / n
            expected = prior.per_unit(mean_c)
            usual = prior.crowd_s / expected * mean_u
            spread = max(0.0, cc - c * mean_c)
            slope = (cu - c * mean_u + _STEADY * usual) / (spread + _STEADY)
            slope = min(max(0.0, slope), mean_u / mean_c)
            level = _mixed(mean_u, expected, self._seen_writes, prior)
            # The slope keeps its share of the level.
            crowd_s = slope * level / mean_u
            unit_s = max(0.0, level - crowd_s * mean_c)
        self.speed = Speed(byte_s, unit_s, crowd_s)


def _mixed(own: float, expected: float, seen: int, prior: Speed) -> float:
    guesses = max(0, _OWN_SAMPLES - seen) if prior is not UNKNOWN else 0
    return (own * seen + expected * guesses) / (seen + guesses)


class Ranking:
    """Speeds of several engines, by replica, in the order of what an average request takes."""

    __slots__ = ("_places", "_ranked")

    def __init__(self, speeds: Mapping[str, Speed]) -> None:
        names = sorted(speeds, key=lambda name: speeds[name].per_unit(1))
        self._ranked = [speeds[name] for name in names]
        self._places = {name: at for at, name in enumerate(names)}

    def typical(self, *, without: str) -> Speed | None:
        """The middle one of the others: an engine is expected to be no better or worse. None without any."""
        place = self._places.get(without, len(self._ranked))
        others = len(self._ranked) - (without in self._places)
        if not others:
            return None
        middle = (others - 1) // 2
        return self._ranked[middle + (middle >= place)]
