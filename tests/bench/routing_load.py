"""Requests as they come in life, for the comparison of routing policies. Seeded, so the same each run.

The shape is that of public traces:

* Bursts: gaps are Gamma distributed with a shape below one, as BurstGPT finds them (Wang et al., "BurstGPT: A
  Real-World Workload Dataset to Optimize LLM Serving Systems", arXiv 2401.17644), and their rate jumps
  between calm and burst as in a Markov-modulated process.
* Lengths: log-normal with heavy tails around the medians of conversations in the Azure LLM inference trace
  of 2023 (Patel et al., "Splitwise", ISCA 2024, arXiv 2311.18677): about 1,000 tokens in, 130 out.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES_A_TOKEN = 4
_TEXT_BYTES = 1 << 19


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Of two prompts of the same ``kind``, one extends the other."""

    number: int
    at: float
    router: int
    prompt: int
    answer: int
    kind: int
    session: str | None
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives. ``sessions`` that are open at a time, 0 for requests that have nothing in common;
    ``named``: they say which session they are of.
    """

    requests: int
    per_s: float
    routers: int = 3
    sessions: int = 0
    named: bool = False
    burst: float = 3.0


def arrivals(load: Load, rng: random.Random) -> Iterator[Asked]:
    text = rng.randbytes(_TEXT_BYTES)
    now, bursting, until = 0.0, False, 0.0
    # As long in bursts as out of them would make the mean rate this:
    calm = 2 * load.per_s / (1 + load.burst)
    kinds = itertools.count()
    open_sessions = [[next(kinds), _length(rng, 600, 0.8, 4000)] for _ in range(load.sessions)]
    for number in range(load.requests):
        if now >= until:
            bursting, until = not bursting, now + rng.expovariate(1 / 20.0)
        rate = calm * load.burst if bursting else calm
        now += rng.gammavariate(0.5, 2.0 / rate)
        if load.sessions:
            place = rng.randrange(load.sessions)
            turn = open_sessions[place]
            turn[1] += _length(rng, 300, 0.8, 2000)
            kind, prompt = turn
            if prompt > 6000 or rng.random() < 0.05:
                open_sessions[place] = [next(kinds), _length(rng, 600, 0.8, 4000)]
        else:
            kind, prompt = next(kinds), _length(rng, 1000, 1.0, 12_000)
        start = kind * 7919 % (_TEXT_BYTES // 2)
        body = b'"messages"' + text[start : start + prompt * BYTES_A_TOKEN]
        yield Asked(
            number,
            now,
            rng.randrange(load.routers),
            prompt,
            _length(rng, 130, 0.9, 1500),
            kind,
            f"s{kind}" if load.sessions and load.named else None,
            body,
        )


def _length(rng: random.Random, median: float, sigma: float, most: int) -> int:
    return max(4, min(most, int(rng.lognormvariate(math.log(median), sigma))))
