"""The choice of an engine: what must hold whatever happens, and what should follow from what was seen."""

import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.schema import NO_HINTS, RequestHints
from xgen_ray.serving.routing import Balancer, Choice, RoutingRules, Why
from xgen_ray.serving.table import ReportedLoad, RoutedEngine

NONE: frozenset[str] = frozenset()


def engine(
    name: str, slots: int = 4, pool: str = "", backend: str = "x", load: ReportedLoad | None = None
) -> RoutedEngine:
    return RoutedEngine(name, f"http://{name}", "key", backend, slots, pool, load)


def balancer(*engines: RoutedEngine, rules: RoutingRules | None = None) -> Balancer:
    made = Balancer(rules, random.Random(1))
    made.know({"m": engines}, 0.0)
    return made


def take(made: Balancer, now: float, hints: RequestHints = NO_HINTS, avoid: frozenset[str] = NONE) -> Choice:
    choice = made.choose("m", hints, avoid, now)
    assert choice is not None
    return choice


def serve(
    made: Balancer, choice: Choice, now: float, first_s: float, unit_s: float, units: int = 50
) -> float:
    """Answer a request; returns when it was done."""
    made.answering(choice.ticket, now + first_s)
    done = now + first_s + unit_s * (units - 1)
    made.finished(choice.ticket, done, ok=True, units=units)
    return done


def teach(made: Balancer, speeds: dict[str, float], rounds: int = 6) -> float:
    """Show how fast each engine is: one request at a time, each on the engine that is not to be avoided."""
    now = 0.0
    for _ in range(rounds):
        for name, unit_s in speeds.items():
            choice = take(made, now, avoid=frozenset(speeds) - {name})
            now = serve(made, choice, now, unit_s * 10, unit_s)
    return now


def test_a_faster_engine_gets_more() -> None:
    made = balancer(engine("fast"), engine("slow"))
    now = teach(made, {"fast": 0.002, "slow": 0.02})
    assert Counter(take(made, now).engine.replica_id for _ in range(8)).most_common(1)[0][0] == "fast"


def test_when_the_fast_one_is_full_enough_the_slow_one_helps() -> None:
    made = balancer(engine("fast", 2), engine("slow", 2))
    now = teach(made, {"fast": 0.002, "slow": 0.02})
    assert {take(made, now).engine.replica_id for _ in range(60)} == {"fast", "slow"}


def test_a_new_engine_is_taken_for_what_its_pool_is() -> None:
    old = [engine("gpu", pool="gpus"), engine("apu", pool="apus")]
    made = balancer(*old)
    now = teach(made, {"gpu": 0.002, "apu": 0.05})
    made.know({"m": [*old, engine("apu-2", pool="apus"), engine("gpu-2", pool="gpus")]}, now)
    taken = {take(made, now + 1).engine.replica_id for _ in range(4)}
    assert taken == {"gpu", "gpu-2"}


def test_the_traffic_of_other_routers_counts() -> None:
    made = balancer(engine("r1"), engine("r2"))
    made.know(
        {"m": [engine("r1", load=ReportedLoad(4, 6, 0.9)), engine("r2", load=ReportedLoad(0, 0, 0.9))]}, 1.0
    )
    assert {take(made, 1.0).engine.replica_id for _ in range(4)} == {"r2"}


def test_a_report_counts_this_routers_own_requests_once() -> None:
    made = balancer(engine("r1"), engine("r2"))
    own = [take(made, 0.0) for _ in range(4)]
    load = Counter(choice.engine.replica_id for choice in own)
    reported = [engine(name, load=ReportedLoad(count, 0, 0.5)) for name, count in load.items()]
    made.know({"m": reported}, 1.0)
    facts = made._facts
    assert {name: facts[name].load(1.0) for name in load} == {"r1": 2, "r2": 2}


def test_an_old_report_is_worth_little() -> None:
    made = balancer(engine("r1"), engine("r2"))
    made.know({"m": [engine("r1", load=ReportedLoad(4, 6, 0.0)), engine("r2")]}, 0.0)
    taken = Counter(take(made, 120.0).engine.replica_id for _ in range(8))
    assert taken == {"r1": 4, "r2": 4}


def test_an_engine_that_lets_its_first_requests_wait_gets_no_more() -> None:
    """Nobody has to finish for that to be seen."""
    made = balancer(engine("stuck", 8), engine("fine", 8))
    now = teach(made, {"stuck": 0.005, "fine": 0.005})
    while (choice := take(made, now)).engine.replica_id != "stuck":
        now = serve(made, choice, now, 0.05, 0.005)
    later = now + 10
    taken = []
    for _ in range(6):
        taken.append(take(made, later))
        later = serve(made, taken[-1], later, 0.05, 0.005)
    assert {choice.engine.replica_id for choice in taken} == {"fine"}


def test_a_session_stays_with_its_engine_and_sessions_spread() -> None:
    made = balancer(*(engine(f"r{number}", 8) for number in range(4)))
    homes: dict[int, str] = {}
    now = 0.0
    for turn in range(5):
        for session in range(20):
            now += 3.0
            choice = take(made, now, RequestHints(session=f"s{session}"))
            if turn:
                assert choice.engine.replica_id == homes[session]
                assert choice.why in (Why.SESSION, Why.PROBE)
            homes[session] = choice.engine.replica_id
            serve(made, choice, now, 0.1, 0.01)
    assert len(set(homes.values())) == 4


def test_a_session_does_not_stay_where_it_is_much_slower() -> None:
    made = balancer(engine("fast", 8), engine("slow", 8))
    now = teach(made, {"fast": 0.002, "slow": 0.04})
    for session in range(20):
        choice = take(made, now, RequestHints(session=f"s{session}"))
        assert choice.engine.replica_id == "fast"
        now = serve(made, choice, now, 0.02, 0.002)


def test_a_prompt_goes_where_its_start_has_been_read() -> None:
    made = balancer(*(engine(f"r{number}") for number in range(8)))
    now = teach(made, {f"r{number}": 0.001 for number in range(8)})
    start = b'"messages"' + b"system prompt " * 1000
    first = take(made, now, RequestHints(body=start + b"one"))
    now = serve(made, first, now, 0.01, 0.001)
    for number in range(3):
        choice = take(made, now, RequestHints(body=start + b"other %d" % number))
        assert (choice.engine, choice.why) == (first.engine, Why.PREFIX)
        now = serve(made, choice, now, 0.01, 0.001)


def test_nobody_is_sent_to_a_beginning_that_is_not_kept() -> None:
    forgetful = [replace(engine(name), caches_prefixes=False) for name in "ab"]
    made = balancer(*forgetful)
    now = teach(made, {"a": 0.001, "b": 0.001})
    start = b"the same long beginning " * 1000
    for number in range(8):
        choice = take(made, now, RequestHints(body=start + b"and %d" % number))
        assert choice.why is not Why.PREFIX
        now = serve(made, choice, now, 0.01, 0.001)


def test_only_engines_of_the_pool_are_taken() -> None:
    made = balancer(engine("a", pool="gpus"), engine("b", pool="cpus"), engine("c", pool="cpus"))
    cpus = RequestHints(pool="cpus")
    assert {take(made, 0.0, cpus).engine.replica_id for _ in range(8)} == {"b", "c"}
    assert made.choose("m", RequestHints(pool="none"), NONE, 0.0) is None


def test_an_engine_that_fails_is_left_out_and_tried_again_by_one() -> None:
    made = balancer(engine("bad"), engine("good", 64))
    now = 0.0
    while (choice := take(made, now)).engine.replica_id != "bad":
        pass
    made.finished(choice.ticket, now, ok=False)
    assert {take(made, now + 0.1).engine.replica_id for _ in range(10)} == {"good"}
    taken = [take(made, now + 5).engine.replica_id for _ in range(10)]
    assert taken.count("bad") == 1


def test_a_long_answer_does_not_keep_others_from_an_engine_that_has_recovered() -> None:
    made = balancer(engine("back", 64), engine("busy", 1))
    failed = take(made, 0.0, avoid=frozenset({"busy"}))
    made.finished(failed.ticket, 0.0, ok=False)
    trial = take(made, 5.0, avoid=frozenset({"busy"}))
    assert {take(made, 5.1).engine.replica_id for _ in range(4)} == {"busy"}
    made.answering(trial.ticket, 5.2)
    assert take(made, 5.3).engine.replica_id == "back"


def test_when_all_have_failed_one_is_taken_all_the_same() -> None:
    made = balancer(engine("r1"), engine("r2"))
    for _ in range(2):
        choice = take(made, 0.0)
        made.finished(choice.ticket, 0.1, ok=False)
    assert take(made, 0.2).why is Why.LEAST_BAD


def test_a_clients_own_errors_count_for_nothing() -> None:
    made = balancer(engine("r1"), engine("r2"))
    for number in range(20):
        made.finished(take(made, number).ticket, number + 0.01, ok=True)
    assert {take(made, 30.0).engine.replica_id for _ in range(4)} == {"r1", "r2"}
    assert take(made, 30.0).why is Why.SOONEST


def test_one_engine_under_two_names_is_known_once() -> None:
    one, two = engine("r1", pool="p"), engine("r2", pool="q")
    made = Balancer(rng=random.Random(1))
    made.know({"m": [one, two], "m@p": [one]}, 0.0)
    for _ in range(3):
        assert made.choose("m@p", NO_HINTS, NONE, 0.0) is not None
    assert made.under_way("r1") == 3
    assert {take(made, 0.0).engine.replica_id for _ in range(3)} == {"r2"}


def test_what_ends_after_its_engine_has_gone_is_no_trouble() -> None:
    made = balancer(engine("r1"), engine("r2"))
    choice = take(made, 0.0)
    made.know({"m": []}, 1.0)
    made.answering(choice.ticket, 2.0)
    made.finished(choice.ticket, 3.0, ok=False)
    made.finished(choice.ticket, 3.0, ok=True)
    assert made.choose("m", NO_HINTS, NONE, 4.0) is None
    made.know({"m": [engine("r1")]}, 5.0)
    assert take(made, 5.0).why is Why.ONLY


SPEEDS = st.lists(st.floats(0.0005, 0.1), min_size=2, max_size=6)


@settings(max_examples=25)
@given(SPEEDS, st.integers(0, 2**32))
def test_nobody_starves(speeds: list[float], seed: int) -> None:
    """However slow an engine is, it is asked again and again, and by no more than a trickle."""
    names = [f"r{number}" for number in range(len(speeds))]
    made = Balancer(rng=random.Random(seed))
    made.know({"m": [engine(name) for name in names]}, 0.0)
    last = dict.fromkeys(names, 0.0)
    rng = random.Random(seed)
    now = 0.0
    for number in range(1500):
        now += rng.expovariate(2.0)
        choice = take(made, now)
        name = choice.engine.replica_id
        unit_s = speeds[names.index(name)]
        made.answering(choice.ticket, now + unit_s * 10)
        made.finished(choice.ticket, now + unit_s * 10 + unit_s * 40, ok=True, units=40)
        last[name] = number
    rules = RoutingRules()
    patience = rules.probe_turns + 2.0 * rules.probe_after_s * 2 + 8 * (len(speeds) + 1) + 100
    assert min(last.values()) >= 1500 - patience


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 3.0),
        st.sampled_from(["choose", "session", "answer", "end", "fail", "full", "leave", "table"]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@settings(max_examples=120)
@given(STEPS, st.integers(1, 6))
def test_no_history_leads_to_an_engine_that_is_to_be_avoided(
    steps: list[tuple[float, str, int]], count: int
) -> None:
    names = [f"r{number}" for number in range(count)]
    made = balancer(*(engine(name, 1 + at % 3) for at, name in enumerate(names)))
    open_: list[Choice] = []
    now = 0.0
    for gap, step, number in steps:
        now += gap
        if step in ("choose", "session"):
            avoid = frozenset(names[: number % (count + 1)])
            hints = RequestHints(session=f"s{number}") if step == "session" else NO_HINTS
            choice = made.choose("m", hints, avoid, now)
            assert (choice is None) == (len(avoid) == count)
            if choice:
                assert choice.engine.replica_id not in avoid
                open_.append(choice)
        elif step == "table":
            made.know({"m": [engine(name, load=ReportedLoad(number, 0, now)) for name in names]}, now)
        elif open_:
            choice = open_.pop(number % len(open_))
            if step in ("answer", "end"):
                made.answering(choice.ticket, now)
            made.finished(choice.ticket, now, ok=step != "fail", full=step == "full", units=number * 10)
    for name in names:
        assert made.under_way(name) == sum(1 for choice in open_ if choice.engine.replica_id == name)
        facts = made._facts[name]
        assert math.isfinite(facts.fixed_s)
        assert facts.fixed_s >= 0


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(2, 8))
def test_sessions_never_overload_an_engine(sessions: list[int], count: int) -> None:
    """Equal engines and few sessions, the worst case: nobody has more than a quarter above the mean."""
    made = balancer(*(engine(f"r{number}", 4) for number in range(count)))
    for total, session in enumerate(sessions, 1):
        choice = take(made, 0.0, RequestHints(session=f"s{session}"))
        if choice.why is Why.SESSION:
            bound = math.ceil(RoutingRules().session_bound * total / count)
            assert made.under_way(choice.engine.replica_id) <= bound
    loads = [made.under_way(f"r{number}") for number in range(count)]
    assert max(loads) <= math.ceil(RoutingRules().session_bound * len(sessions) / count) + 1


def calls(work: Callable[[], object]) -> int:
    """How many functions ``work`` calls: unlike its time, the same on a busy machine."""
    count = 0

    def note(_frame: object, event: str, _of: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def calls_of_a_choice(engines: int, hints: RequestHints, *, refreshes: bool) -> int:
    """Of one among so many engines that have all been seen at work."""
    names = [f"r{number}" for number in range(engines)]
    made = balancer(*(engine(name, 8, pool=f"p{number % 4}") for number, name in enumerate(names)))
    for name in names:
        choice = made.choose("m", hints, frozenset(names) - {name}, 0.0)
        assert choice is not None
        serve(made, choice, 0.0, 0.1, 0.01)
    take(made, 10.0, hints)
    return calls(lambda: take(made, 20.0 if refreshes else 10.0, hints))


@pytest.mark.parametrize("session", [None, "s"])
def test_a_choice_looks_at_each_engine_a_few_times(session: str | None) -> None:
    hints = RequestHints(session=session, body=b'"messages"' + b"x" * 4000)
    few, many = (calls_of_a_choice(count, hints, refreshes=False) for count in (16, 64))
    assert many < 5 * few


@pytest.mark.parametrize("writes", [True, False])
def test_what_engines_are_expected_to_be_costs_each_as_much_among_few_as_among_many(writes: bool) -> None:
    """What only reads never shows how it writes, and is judged by its peers for ever."""
    hints = RequestHints(body=b"x" * 1000, generates=writes)
    few, many = (calls_of_a_choice(count, hints, refreshes=True) for count in (20, 200))
    assert many < 12 * few


def test_a_table_with_the_same_engines_has_nobody_judged_anew() -> None:
    both = (engine("r1"), engine("r2"))
    made = balancer(*both)
    take(made, 1.0)
    made.know({"m": both[::-1]}, 1.1)
    assert made._groups["m"].refreshed_at == 1.0
    made.know({"m": [*both, engine("r3")]}, 1.2)
    take(made, 1.2)
    assert made._groups["m"].refreshed_at == 1.2


def test_the_same_report_told_again_is_no_news() -> None:
    made = balancer(engine("r1"), engine("r2"))
    busy = engine("r1", load=ReportedLoad(3, 0, 0.0))
    made.know({"m": [busy, engine("r2")], "m@p": [engine("r1")]}, 0.0)
    own = [take(made, 1.0, avoid=frozenset({"r2"})) for _ in range(2)]
    for choice in own:
        serve(made, choice, 1.0, 0.1, 0.01)
    before = made._facts["r1"].load(2.0)
    made.know({"m": [busy, engine("r2")], "m@p": [engine("r1")]}, 2.0)
    assert made._facts["r1"].load(2.0) == before > 0


def test_a_session_is_not_spent_on_a_probe_as_long_as_others_come() -> None:
    made = balancer(engine("fast", 8), engine("slow", 8))
    now = teach(made, {"fast": 0.002, "slow": 0.05})
    probes = []
    for number in range(300):
        now += 0.5
        session = f"s{number % 5}" if number % 2 else None
        choice = take(made, now, RequestHints(session=session))
        if choice.why is Why.PROBE:
            probes.append(session)
        unit_s = 0.002 if choice.engine.replica_id == "fast" else 0.05
        made.answering(choice.ticket, now + unit_s)
        made.finished(choice.ticket, now + 10 * unit_s, ok=True, units=10)
    assert probes
    assert set(probes) == {None}


def test_the_pace_of_an_engine_is_what_it_answers_with_all_slots_busy() -> None:
    made = balancer(engine("fast"), engine("slow"))
    assert made.paces() == {}, "nothing is measured"
    teach(made, {"fast": 0.002, "slow": 0.02})
    paces = made.paces()
    assert paces.keys() == {"fast", "slow"}
    assert paces["fast"] / paces["slow"] == pytest.approx(10, rel=0.3)
    # About 50 units of 20 ms and as much as ten of them to read, four at a time.
    assert paces["slow"] == pytest.approx(4 / (0.02 * 150), rel=0.5)
