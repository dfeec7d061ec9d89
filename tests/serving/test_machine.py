"""Control's judgement, one event at a time."""

import itertools
from collections.abc import Iterable, Mapping
from typing import TypeVar

import pytest

from tests.serving.builders import GIB, facts, failure, inventory, replica, request
from xgen_ray.errors import (
    BadModelFile,
    EngineFailed,
    ModelNotFound,
    NameConflict,
    PlacementRefused,
    UnknownOption,
    WrongState,
)
from xgen_ray.schema import LoadRequest, Origin, Phase, Progress
from xgen_ray.serving.machine import step
from xgen_ray.serving.sightings import MAX_FAILED_STARTS
from xgen_ray.serving.state import (
    Answer,
    CancelResolve,
    ControlState,
    Effect,
    Event,
    Forget,
    LoadAsked,
    PoolsObserved,
    PoolStartFailed,
    PoolState,
    Publish,
    Record,
    Remember,
    ReplicaReported,
    Resolve,
    Restored,
    SourceFailed,
    SourceProgressed,
    SourceResolved,
    StartPool,
    StopPool,
    UnloadAsked,
)
from xgen_ray.serving.turn import LONGEST_RETRY_S

E = TypeVar("E")


class Control:
    """Feeds events and keeps what came of them."""

    def __init__(self) -> None:
        self.state = ControlState()
        self.effects: list[Effect] = []
        self.feed(Restored((), {}, {}, "life1", 0.0))

    def feed(self, event: Event) -> tuple[Effect, ...]:
        self.state, effects = step(self.state, event)
        self.effects += effects
        return effects

    def load(self, name: str = "small", caller: str = "c1", asked: LoadRequest | None = None) -> None:
        self.feed(LoadAsked(name, asked or request(name), caller, 1.0))

    def place(self, name: str = "small", weight_bytes: int = 100 * 2**20) -> str:
        """Resolves the source and returns the pool that was started."""
        attempt = self.state.models[name].attempt
        effects = self.feed(SourceResolved(name, attempt, facts(name, weight_bytes), inventory(), 2.0))
        return only(effects, StartPool).pool

    def ready(self, name: str = "small", caller: str = "c1") -> str:
        self.load(name, caller)
        pool = self.place(name)
        self.feed(ReplicaReported(pool, replica()))
        return pool

    def observe(
        self,
        pools: Mapping[str, PoolState],
        replicas: Mapping[str, Iterable[str]] | None = None,
        messages: Mapping[str, str] | None = None,
        at: float = 20.0,
    ) -> tuple[Effect, ...]:
        alive = {pool: frozenset(ids) for pool, ids in (replicas or {}).items()}
        return self.feed(PoolsObserved(pools, messages or {}, alive, at))

    def phase(self, name: str = "small") -> Phase:
        return self.state.models[name].phase

    def answers(self) -> dict[str, Answer]:
        found = {effect.caller: effect for effect in self.effects if isinstance(effect, Answer)}
        assert len(found) == sum(isinstance(effect, Answer) for effect in self.effects), "answered twice"
        return found


def only(effects: Iterable[Effect], kind: type[E]) -> E:
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, found
    return found[0]


def none(effects: Iterable[Effect], kind: type) -> bool:
    return not any(isinstance(effect, kind) for effect in effects)


@pytest.fixture
def control() -> Control:
    return Control()


def test_a_load_goes_from_resolving_to_ready_and_is_answered_once(control: Control) -> None:
    control.load()
    assert control.phase() is Phase.RESOLVING
    pool = control.place()
    assert control.phase() is Phase.LOADING
    control.feed(ReplicaReported(pool, replica(state="loading")))
    assert control.phase() is Phase.LOADING
    assert control.answers() == {}
    effects = control.feed(ReplicaReported(pool, replica()))
    assert control.phase() is Phase.READY
    assert control.answers() == {"c1": Answer("c1", "small")}
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Publish) < kinds.index(Answer), "routers must know before the caller does"


def test_the_registry_learns_of_a_wish_before_anything_is_started(control: Control) -> None:
    control.load()
    kinds = [type(effect) for effect in control.effects]
    assert kinds.index(Remember) < kinds.index(Resolve)
    control.effects.clear()
    pool = control.place()
    kinds = [type(effect) for effect in control.effects]
    assert kinds.index(Remember) < kinds.index(StartPool)
    assert only(control.effects, Remember).record.pool == pool


def test_two_loads_of_one_model_start_it_once_and_both_are_answered(control: Control) -> None:
    control.load(caller="c1")
    control.load(caller="c2")
    pool = control.place()
    control.load(caller="c3")
    control.feed(ReplicaReported(pool, replica()))
    control.load(caller="c4")
    assert {caller: answer.error for caller, answer in control.answers().items()} == dict.fromkeys(
        ("c1", "c2", "c3", "c4")
    )
    assert sum(isinstance(effect, StartPool) for effect in control.effects) == 1


def test_a_name_in_use_is_refused_and_nothing_is_disturbed(control: Control) -> None:
    control.ready()
    before = control.state
    control.load("small", "c2", request("other"))
    assert isinstance(control.answers()["c2"].error, NameConflict)
    control.load("small", "c3", request("small", options={"context": 512}))
    error = control.answers()["c3"].error
    assert isinstance(error, NameConflict)
    assert "other options" in str(error)
    assert control.state.models == before.models


def test_an_unload_forgets_first_and_answers_when_the_pool_is_gone(control: Control) -> None:
    pool = control.ready()
    effects = control.feed(UnloadAsked("small", "u1", 5.0))
    assert only(effects, Forget).name == "small"
    assert only(effects, StopPool).pool == pool
    assert control.phase() is Phase.UNLOADING
    control.observe({pool: PoolState.STOPPING})
    assert "u1" not in control.answers()
    control.load(caller="c2")
    assert isinstance(control.answers()["c2"].error, WrongState)
    control.feed(UnloadAsked("small", "u2", 6.0))
    control.observe({})
    assert control.answers()["u1"].error is None
    assert control.answers()["u2"].error is None
    assert control.state.models == {}


def test_unloading_what_is_not_loaded_names_what_is(control: Control) -> None:
    control.ready()
    control.feed(UnloadAsked("nobody", "u1", 5.0))
    error = control.answers()["u1"].error
    assert isinstance(error, ModelNotFound)
    assert "small" in str(error)


def test_an_unload_while_resolving_cancels_and_answers_both(control: Control) -> None:
    control.load()
    attempt = control.state.models["small"].attempt
    effects = control.feed(UnloadAsked("small", "u1", 5.0))
    assert only(effects, CancelResolve).attempt == attempt
    assert isinstance(control.answers()["c1"].error, WrongState)
    assert control.answers()["u1"].error is None
    assert control.feed(SourceResolved("small", attempt, facts(), inventory(), 6.0)) == ()


def test_a_source_that_fails_ends_the_load_and_is_not_remembered(control: Control) -> None:
    control.load()
    attempt = control.state.models["small"].attempt
    effects = control.feed(SourceFailed("small", attempt, BadModelFile("no magic"), 3.0))
    assert only(effects, Forget).name == "small"
    assert control.phase() is Phase.FAILED
    assert isinstance(control.answers()["c1"].error, BadModelFile)
    control.load(caller="c2")
    assert control.phase() is Phase.RESOLVING


def test_what_does_not_fit_is_refused_with_every_candidate(control: Control) -> None:
    control.load()
    attempt = control.state.models["small"].attempt
    effects = control.feed(SourceResolved("small", attempt, facts(weight_bytes=100 * GIB), inventory(), 2.0))
    assert none(effects, StartPool)
    error = control.answers()["c1"].error
    assert isinstance(error, PlacementRefused)
    assert any(candidate["backend"] == "llama-server-cpu" for candidate in error.candidates)


def test_memory_of_a_plan_that_still_loads_is_not_given_out_twice(control: Control) -> None:
    control.load("first", "c1")
    control.place("first", 9 * GIB)
    control.load("second", "c2")
    attempt = control.state.models["second"].attempt
    effects = control.feed(
        SourceResolved("second", attempt, facts("second", 9 * GIB), inventory(16 * GIB), 2.0)
    )
    assert none(effects, StartPool)
    assert isinstance(control.answers()["c2"].error, PlacementRefused)


def test_progress_is_kept_and_wakes_no_router(control: Control) -> None:
    control.load()
    attempt = control.state.models["small"].attempt
    progress = Progress(stage="download", message="half", done_bytes=1, total_bytes=2)
    effects = control.feed(SourceProgressed("small", attempt, progress))
    assert effects == ()
    assert control.state.models["small"].progress == progress


def test_a_fatal_failure_ends_the_load_at_the_first_start(control: Control) -> None:
    control.load()
    pool = control.place()
    effects = control.feed(ReplicaReported(pool, replica(state="failed"), failure("out_of_memory")))
    assert only(effects, StopPool).pool == pool
    error = control.answers()["c1"].error
    assert isinstance(error, EngineFailed)
    assert error.log_tail == ("last words",)
    assert control.phase() is Phase.FAILED


def test_a_crash_while_loading_is_tried_again_but_not_for_ever(control: Control) -> None:
    control.load()
    pool = control.place()
    for number in range(1, MAX_FAILED_STARTS):
        control.feed(ReplicaReported(pool, replica(f"r{number}", "failed"), failure()))
        assert control.phase() is Phase.LOADING
    control.feed(ReplicaReported(pool, replica("last", "failed"), failure()))
    assert control.phase() is Phase.FAILED


def test_a_dead_engine_is_recovered_and_its_wish_kept(control: Control) -> None:
    pool = control.ready()
    effects = control.feed(ReplicaReported(pool, replica(state="failed"), failure("gpu_page_fault")))
    assert control.phase() is Phase.RECOVERING
    assert none(effects, Forget)
    assert none(effects, StopPool)
    assert control.state.table.routes["small"].pool == pool
    control.feed(ReplicaReported(pool, replica("r2")))
    assert control.phase() is Phase.READY
    assert control.state.models["small"].failures[0].failure == "gpu_page_fault"


def test_one_dead_replica_of_two_leaves_the_model_ready(control: Control) -> None:
    pool = control.ready()
    control.feed(ReplicaReported(pool, replica("r2")))
    control.feed(ReplicaReported(pool, replica("r1", "failed"), failure()))
    assert control.phase() is Phase.READY


def test_a_replica_that_vanishes_without_a_word_is_noticed(control: Control) -> None:
    pool = control.ready()
    control.observe({pool: PoolState.UNHEALTHY}, {pool: []})
    assert control.phase() is Phase.RECOVERING
    control.observe({pool: PoolState.RUNNING})
    assert control.phase() is Phase.RECOVERING, "no word on its replicas proves nothing"
    control.feed(ReplicaReported(pool, replica("r2")))
    assert control.phase() is Phase.READY


def test_a_replica_that_serve_does_not_count_yet_is_believed(control: Control) -> None:
    pool = control.ready()
    control.observe({pool: PoolState.STARTING}, {pool: []}, at=10.5)
    assert control.phase() is Phase.READY
    control.observe({pool: PoolState.RUNNING}, {pool: []}, at=30.0)
    assert control.phase() is Phase.RECOVERING


def test_an_option_that_the_engine_does_not_know_is_the_callers_mistake(control: Control) -> None:
    control.load()
    pool = control.place()
    control.feed(ReplicaReported(pool, replica(state="failed"), failure("unknown_flag")))
    assert isinstance(control.answers()["c1"].error, UnknownOption)


def test_a_pool_not_seen_yet_is_waited_for_and_one_that_vanished_is_started_again(control: Control) -> None:
    control.load()
    pool = control.place()
    control.observe({})
    assert control.phase() is Phase.LOADING
    control.observe({pool: PoolState.STARTING})
    control.feed(ReplicaReported(pool, replica()))
    effects = control.observe({})
    assert control.phase() is Phase.RESOLVING
    assert only(effects, Resolve).name == "small"
    assert control.place() != pool


def test_serve_giving_up_on_a_pool_fails_the_load_with_its_message(control: Control) -> None:
    control.load()
    pool = control.place()
    control.observe({pool: PoolState.FAILED}, messages={pool: "no node has that resource"})
    assert control.phase() is Phase.FAILED
    assert "no node has that resource" in str(control.answers()["c1"].error)


def test_serve_refusing_a_pool_fails_the_load(control: Control) -> None:
    control.load()
    pool = control.place()
    effects = control.feed(PoolStartFailed(pool, "name too long", 3.0))
    assert none(effects, StopPool)
    assert control.phase() is Phase.FAILED


def test_a_pool_that_nobody_asked_for_is_stopped(control: Control) -> None:
    effects = control.observe({"xgen-pool-stray": PoolState.RUNNING})
    assert only(effects, StopPool).pool == "xgen-pool-stray"
    again = control.observe({"xgen-pool-stray": PoolState.RUNNING})
    assert only(again, StopPool).pool == "xgen-pool-stray", "the first stop may have got lost"
    assert none(control.observe({"xgen-pool-stray": PoolState.STOPPING}), StopPool)
    control.observe({})
    assert control.state.stray_pools == frozenset()


def record(pool: str | None = None, origin: Origin = Origin.API, *, proven: bool = True) -> Record:
    return Record("small", request("small"), origin, created=1.0, proven=proven, plan=None, pool=pool)


def test_a_restart_takes_over_what_runs(control: Control) -> None:
    fresh = Control()
    fresh.state = ControlState()
    fresh.effects.clear()
    pools = {"xgen-pool-small-x-1": PoolState.RUNNING}
    effects = fresh.feed(Restored((record("xgen-pool-small-x-1"),), {}, pools, "life2", 50.0))
    assert none(effects, StopPool)
    assert none(effects, Resolve)
    assert fresh.phase() is Phase.RECOVERING
    assert fresh.state.table.routes["small"].pool == "xgen-pool-small-x-1"
    fresh.feed(ReplicaReported("xgen-pool-small-x-1", replica()))
    assert fresh.phase() is Phase.READY


def test_a_restart_in_the_middle_of_a_load_starts_it_again() -> None:
    fresh = Control()
    fresh.state = ControlState()
    effects = fresh.feed(Restored((record(None, proven=False),), {}, {}, "life2", 50.0))
    assert only(effects, Resolve).name == "small"


def test_declared_models_follow_the_configuration() -> None:
    fresh = Control()
    fresh.state = ControlState()
    fresh.effects.clear()
    gone = record(origin=Origin.DECLARED)
    effects = fresh.feed(
        Restored((gone,), {"new": request("new")}, {"xgen-pool-old": PoolState.RUNNING}, "life2", 5.0)
    )
    assert only(effects, Forget).name == "small"
    assert only(effects, Resolve).name == "new"
    assert only(effects, StopPool).pool == "xgen-pool-old"
    assert fresh.state.models["new"].origin is Origin.DECLARED


def test_a_proven_model_that_fails_later_stays_wished_for(control: Control) -> None:
    fresh = Control()
    fresh.state = ControlState()
    fresh.effects.clear()
    fresh.feed(Restored((record(),), {}, {}, "life2", 50.0))
    attempt = fresh.state.models["small"].attempt
    fresh.feed(SourceFailed("small", attempt, BadModelFile("disk is away"), 51.0))
    assert fresh.phase() is Phase.FAILED
    assert none(fresh.effects, Forget)


def test_a_wish_that_lives_on_is_tried_again_and_less_and_less_often() -> None:
    fresh = Control()
    fresh.state = ControlState()
    fresh.effects.clear()
    fresh.feed(Restored((record(),), {}, {}, "life2", 0.0))
    moments = [0.0]
    for _ in range(8):
        attempt = fresh.state.models["small"].attempt
        fresh.feed(SourceFailed("small", attempt, BadModelFile("disk is away"), moments[-1]))
        retry_at = fresh.state.models["small"].retry_at
        assert retry_at is not None
        assert none(fresh.observe({}, at=retry_at - 0.1), Resolve)
        assert only(fresh.observe({}, at=retry_at), Resolve).name == "small"
        moments.append(retry_at)
    pauses = [late - early for early, late in itertools.pairwise(moments)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_RETRY_S
    pool = fresh.place()
    fresh.feed(ReplicaReported(pool, replica()))
    assert fresh.state.models["small"].setbacks == 0


def test_a_load_that_never_worked_is_not_tried_again(control: Control) -> None:
    control.load()
    attempt = control.state.models["small"].attempt
    control.feed(SourceFailed("small", attempt, BadModelFile("no magic"), 3.0))
    assert none(control.observe({}, at=100_000.0), Resolve)


def test_a_new_life_never_reuses_a_pool_name(control: Control) -> None:
    first = control.ready()
    other = Control()
    other.state = ControlState()
    other.feed(Restored((), {}, {}, "life2", 0.0))
    assert other.ready() != first
