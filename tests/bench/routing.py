"""Routing policies compared in a computed world of unlike engines.

    python -m tests.bench.routing                    # every scenario
    python -m tests.bench.routing unlike --requests 4000 --seed 7

Each policy sees the same requests. Several routers share the engines; each knows its own requests at once,
those of the others only from the engines' reports, which are seconds old. See ``routing_world`` for the
engines, ``routing_load`` for the requests and the traces that they follow.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from tests.bench.routing_load import Asked, Load, arrivals
from tests.bench.routing_world import LARGE, SMALL, Hardware, Mishap, Outcome, Policy, World
from xgen_ray.schema import RequestHints
from xgen_ray.serving.routing import Balancer
from xgen_ray.serving.table import ReportedLoad, RoutedEngine

NO_ONE: frozenset[str] = frozenset()


class RoundRobin:
    """Each router takes the engines in turn."""

    def __init__(self, engines: Sequence[Hardware], rng: random.Random) -> None:
        self._turns: Counter[int] = Counter()
        self._under_way: Counter[tuple[int, int]] = Counter()
        self._rng = rng
        self._slots = [hardware.slots for hardware in engines]

    def choose(self, asked: Asked, engines: Sequence[int], avoid: frozenset[int], now: float) -> int | None:
        free = [engine for engine in engines if engine not in avoid]
        if not free:
            return None
        chosen = self._pick(asked, free)
        self._under_way[asked.router, chosen] += 1
        return chosen

    def answering(self, asked: Asked, engine: int, now: float) -> None: ...

    def finished(self, asked: Asked, engine: int, now: float, *, ok: bool) -> None:
        self._under_way[asked.router, engine] -= 1

    def table(self, loads: Mapping[int, tuple[int, int]], seen_at: float, now: float) -> None: ...

    def _pick(self, asked: Asked, free: Sequence[int]) -> int:
        self._turns[asked.router] += 1
        return free[self._turns[asked.router] % len(free)]


class AtRandom(RoundRobin):
    """Any engine."""

    def _pick(self, asked: Asked, free: Sequence[int]) -> int:
        return self._rng.choice(free)


class LeastOutstanding(RoundRobin):
    """The engine with the fewest of the router's own requests."""

    def _pick(self, asked: Asked, free: Sequence[int]) -> int:
        loads = {engine: self._load(asked.router, engine) for engine in free}
        least = min(loads.values())
        return self._rng.choice([engine for engine, load in loads.items() if load == least])

    def _load(self, router: int, engine: int) -> float:
        return self._under_way[router, engine]


class LeastPerSlot(LeastOutstanding):
    """The same, for the slots that an engine has."""

    def _load(self, router: int, engine: int) -> float:
        return self._under_way[router, engine] / self._slots[engine]


class Balanced:
    """xgen-ray's own: one balancer in each router."""

    reports = True

    def __init__(self, engines: Sequence[Hardware], rng: random.Random) -> None:
        self._engines = [
            RoutedEngine(f"e{at}", f"http://e{at}", "key", hardware.name, hardware.slots)
            for at, hardware in enumerate(engines)
        ]
        self._rng = rng
        self._routers: dict[int, Balancer] = {}
        self._tickets: dict[int, int] = {}
        self._known: dict[int, tuple[int, int]] = {}

    def choose(self, asked: Asked, engines: Sequence[int], avoid: frozenset[int], now: float) -> int | None:
        hints = RequestHints(session=asked.session, body=asked.body)
        bad = frozenset(f"e{engine}" for engine in avoid) if avoid else NO_ONE
        choice = self._router(asked.router).choose("m", hints, bad, now)
        if choice is None:
            return None
        self._tickets[asked.number] = choice.ticket
        return int(choice.engine.replica_id[1:])

    def answering(self, asked: Asked, engine: int, now: float) -> None:
        self._router(asked.router).answering(self._tickets[asked.number], now)

    def finished(self, asked: Asked, engine: int, now: float, *, ok: bool) -> None:
        ticket = self._tickets.pop(asked.number)
        self._router(asked.router).finished(ticket, now, ok=ok, units=asked.answer if ok else 0)

    def table(self, loads: Mapping[int, tuple[int, int]], seen_at: float, now: float) -> None:
        self._engines_now = {
            "m": [
                replace(self._engines[at], load=ReportedLoad(*load, seen_at) if self.reports else None)
                for at, load in loads.items()
            ]
        }
        for balancer in self._routers.values():
            balancer.know(self._engines_now, now)

    def _router(self, number: int) -> Balancer:
        if number not in self._routers:
            self._routers[number] = Balancer(rng=random.Random(self._rng.random()))
            self._routers[number].know(self._engines_now, 0.0)
        return self._routers[number]


class BalancedUnreported(Balanced):
    """The same where engines report nothing."""

    reports = False


POLICIES: Mapping[str, Callable[[Sequence[Hardware], random.Random], Policy]] = {
    "round robin": RoundRobin,
    "random": AtRandom,
    "least outstanding": LeastOutstanding,
    "least per slot": LeastPerSlot,
    "xgen-ray": Balanced,
    "xgen-ray, no reports": BalancedUnreported,
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """``mishaps`` happen at a share of the time that the arrivals take."""

    says: str
    engines: tuple[Hardware, ...]
    load: Load
    mishaps: tuple[Mishap, ...] = ()


SCENARIOS: Mapping[str, Scenario] = {
    "equal": Scenario("four equal engines", (LARGE,) * 4, Load(3000, 8.0)),
    "unlike": Scenario("two engines, and two ten times slower", (LARGE,) * 2 + (SMALL,) * 2, Load(3000, 4.0)),
    "death": Scenario("one of three dies", (LARGE,) * 3, Load(3000, 5.0), (Mishap(0.5, 0),)),
    "slow": Scenario(
        "one of three becomes ten times slower", (LARGE,) * 3, Load(3000, 4.0), (Mishap(0.4, 0, 10.0),)
    ),
    "prefixes": Scenario("conversations, not named", (LARGE,) * 4, Load(3000, 10.0, sessions=60)),
    "sessions": Scenario("conversations, named", (LARGE,) * 4, Load(3000, 10.0, sessions=60, named=True)),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One policy in one scenario. Times are seconds; ``shares`` by engine; ``lost`` had no whole answer."""

    policy: str
    ttft_p50: float
    ttft_p99: float
    total_p50: float
    total_p99: float
    shares: tuple[float, ...]
    lost: int


def play(scenario: Scenario, policy: str, seed: int = 1) -> Result:
    """Deterministic: the same seed gives the same result, and all policies the same requests."""
    load = scenario.load
    lasts = load.requests / load.per_s
    mishaps = [replace(one, at=one.at * lasts) for one in scenario.mishaps]
    chosen = POLICIES[policy](scenario.engines, random.Random(seed + 1))
    world = World(scenario.engines, chosen, mishaps)
    return judged(policy, world.run(arrivals(load, random.Random(seed))), len(scenario.engines))


def judged(policy: str, outcomes: Sequence[Outcome], engines: int) -> Result:
    firsts = sorted(one.first_s for one in outcomes if one.first_s is not None)
    totals = sorted(one.total_s for one in outcomes if one.total_s is not None)
    counts = Counter(one.engine for one in outcomes)
    return Result(
        policy=policy,
        ttft_p50=_at(firsts, 0.5),
        ttft_p99=_at(firsts, 0.99),
        total_p50=_at(totals, 0.5),
        total_p99=_at(totals, 0.99),
        shares=tuple(counts[engine] / len(outcomes) for engine in range(engines)),
        lost=len(outcomes) - len(totals),
    )


def _at(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def render(name: str, scenario: Scenario, results: Sequence[Result]) -> Table:
    table = Table(title=f"{name}: {scenario.says}", box=None, title_justify="left", pad_edge=False)
    table.add_column("policy")
    for column in ("ttft p50", "p99 s", "whole p50", "p99 s", "shares %", "lost"):
        table.add_column(column, justify="right")
    for one in results:
        times = (one.ttft_p50, one.ttft_p99, one.total_p50, one.total_p99)
        shares = " ".join(f"{share * 100:.0f}" for share in one.shares)
        table.add_row(one.policy, *(f"{seconds:.2f}" for seconds in times), shares, str(one.lost))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="all of them if none is named")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name in arguments.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]
        if arguments.requests:
            scenario = replace(scenario, load=replace(scenario.load, requests=arguments.requests))
        console.print(render(name, scenario, [play(scenario, policy, arguments.seed) for policy in POLICIES]))
        console.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
