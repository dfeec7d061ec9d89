"""Control's judgement, one event at a time."""

import itertools
from collections.abc import Iterable, Mapping
from typing import TypeVar

import pytest

from tests.serving.builders import GIB, facts, failure, fleet, radeon, replica, request, view
from xgen_ray.errors import (
    BadModelFile,
    EngineFailed,
    ModelNotFound,
    NameConflict,
    PlacementRefused,
    UnknownOption,
    WrongState,
)
from xgen_ray.placement import NodeView, Observation, model_key
from xgen_ray.placement.types import Backend
from xgen_ray.process.types import FailureClass
from xgen_ray.schema import LoadRequest, Phase, Progress
from xgen_ray.serving.effects import (
    Answer,
    CancelLook,
    Effect,
    Forget,
    Look,
    PrepareApp,
    Publish,
    Remember,
    RememberLessons,
    StartApp,
    StopApp,
)
from xgen_ray.serving.events import (
    AppPrepared,
    AppRefused,
    AppsObserved,
    AppStartFailed,
    Event,
    ExclusionsLifted,
    LoadAsked,
    LookDone,
    LookFailed,
    LookProgressed,
    NodesObserved,
    ReplicaReported,
    Restored,
    UnloadAsked,
    UseReported,
)
from xgen_ray.serving.ladder import NO_LEASE, RULES
from xgen_ray.serving.machine import step
from xgen_ray.serving.placing import IDLE_S, MAX_REFUSED
from xgen_ray.serving.state import AppRecord, ControlState, Record, ServeState
from xgen_ray.serving.turn import LONGEST_RETRY_S

E = TypeVar("E")


FIRST = Restored((), {}, {}, "life1", 0.0)


class Control:
    """Feeds events and keeps what came of them."""

    def __init__(self, first: Restored | None = FIRST) -> None:
        self.state = ControlState()
        self.effects: list[Effect] = []
        if first is not None:
            self.feed(first)

    def feed(self, event: Event) -> tuple[Effect, ...]:
        self.state, effects = step(self.state, event)
        self.effects += effects
        return effects

    def load(self, name: str = "small", caller: str = "c1", asked: LoadRequest | None = None) -> None:
        self.feed(LoadAsked(name, asked or request(name), caller, 1.0))

    def look(
        self, name: str = "small", weight_bytes: int = 100 * 2**20, *views: NodeView, at: float = 2.0
    ) -> tuple[Effect, ...]:
        attempt = self.state.models[name].attempt
        return self.feed(LookDone(name, attempt, facts(name, weight_bytes), fleet(*views), at))

    def place(self, name: str = "small", weight_bytes: int = 100 * 2**20, *views: NodeView) -> str:
        """Finds the model's place, prepares it, and returns the app that was started."""
        prepare = only(self.look(name, weight_bytes, *views), PrepareApp)
        effects = self.feed(AppPrepared(prepare.app, prepare.plan, 3.0))
        return only(effects, StartApp).app

    def ready(self, name: str = "small", caller: str = "c1", *views: NodeView) -> str:
        self.load(name, caller)
        app = self.place(name, 100 * 2**20, *views)
        self.feed(ReplicaReported(app, replica()))
        return app

    def die(self, app: str, kind: str, at: float = 10.0, replica_id: str = "r1") -> tuple[Effect, ...]:
        return self.feed(ReplicaReported(app, replica(replica_id, "failed"), failure(kind, at)))

    def urls(self, name: str = "small") -> list[str]:
        """Where routers send requests."""
        return [engine.url for engine in self.state.table.routes[name].engines]

    def observe(
        self,
        apps: Mapping[str, ServeState],
        replicas: Mapping[str, Iterable[str]] | None = None,
        messages: Mapping[str, str] | None = None,
        at: float = 20.0,
    ) -> tuple[Effect, ...]:
        alive = {app: frozenset(ids) for app, ids in (replicas or {}).items()}
        return self.feed(AppsObserved(apps, messages or {}, alive, at))

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
    app = control.place()
    assert control.phase() is Phase.LOADING
    control.feed(ReplicaReported(app, replica(state="loading")))
    assert control.phase() is Phase.LOADING
    assert control.answers() == {}
    effects = control.feed(ReplicaReported(app, replica()))
    assert control.phase() is Phase.READY
    assert control.answers() == {"c1": Answer("c1", "small")}
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Publish) < kinds.index(Answer), "routers must know before the caller does"


def test_the_registry_learns_of_a_wish_before_anything_is_started(control: Control) -> None:
    control.load()
    kinds = [type(effect) for effect in control.effects]
    assert kinds.index(Remember) < kinds.index(Look)
    control.effects.clear()
    app = control.place()
    kinds = [type(effect) for effect in control.effects]
    assert kinds.index(Remember) < kinds.index(PrepareApp) < kinds.index(StartApp)
    records = [effect.record for effect in control.effects if isinstance(effect, Remember)]
    assert all([kept.name for kept in record.apps] == [app] for record in records)


def test_two_loads_of_one_model_start_it_once_and_both_are_answered(control: Control) -> None:
    control.load(caller="c1")
    control.load(caller="c2")
    app = control.place()
    control.load(caller="c3")
    control.feed(ReplicaReported(app, replica()))
    control.load(caller="c4")
    assert {caller: answer.error for caller, answer in control.answers().items()} == dict.fromkeys(
        ("c1", "c2", "c3", "c4")
    )
    assert sum(isinstance(effect, StartApp) for effect in control.effects) == 1


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


def test_an_unload_forgets_first_and_answers_when_the_app_is_gone(control: Control) -> None:
    app = control.ready()
    effects = control.feed(UnloadAsked("small", "u1", 5.0))
    assert only(effects, Forget).name == "small"
    assert only(effects, StopApp).app == app
    assert control.phase() is Phase.UNLOADING
    control.observe({app: ServeState.STOPPING})
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
    assert only(effects, CancelLook).attempt == attempt
    assert isinstance(control.answers()["c1"].error, WrongState)
    assert control.answers()["u1"].error is None
    assert control.feed(LookDone("small", attempt, facts(), fleet(), 6.0)) == ()


def test_a_source_that_fails_ends_the_load_and_is_not_remembered(control: Control) -> None:
    control.load()
    attempt = control.state.models["small"].attempt
    effects = control.feed(LookFailed("small", attempt, BadModelFile("no magic"), 3.0))
    assert only(effects, Forget).name == "small"
    assert control.phase() is Phase.FAILED
    assert isinstance(control.answers()["c1"].error, BadModelFile)
    control.load(caller="c2")
    assert control.phase() is Phase.RESOLVING


def test_what_does_not_fit_is_refused_with_every_candidate(control: Control) -> None:
    control.load()
    effects = control.look("small", 100 * GIB)
    assert none(effects, PrepareApp)
    error = control.answers()["c1"].error
    assert isinstance(error, PlacementRefused)
    assert any(candidate["backend"] == "llama-server-cpu" for candidate in error.candidates)


def test_a_node_that_gave_the_memory_to_another_is_planned_around(control: Control) -> None:
    control.load()
    prepare = only(control.look(), PrepareApp)
    effects = control.feed(AppRefused(prepare.app, PlacementRefused("n1 is full"), again=True, at=3.0))
    assert only(effects, Look).name == "small"
    assert control.answers() == {}
    again = only(control.look("small", 100 * 2**20, view("n2")), PrepareApp)
    assert again.node_id == "n2"
    assert again.app != prepare.app


def test_planning_again_has_an_end(control: Control) -> None:
    control.load()
    for _ in range(MAX_REFUSED):
        prepare = only(control.look(), PrepareApp)
        control.feed(AppRefused(prepare.app, PlacementRefused("n1 is full"), again=True, at=3.0))
    prepare = only(control.look(), PrepareApp)
    control.feed(AppRefused(prepare.app, PlacementRefused("n1 is full"), again=True, at=3.0))
    assert control.phase() is Phase.FAILED
    assert "n1 is full" in str(control.answers()["c1"].error)


def test_progress_is_kept_and_wakes_no_router(control: Control) -> None:
    control.load()
    attempt = control.state.models["small"].attempt
    progress = Progress(stage="download", message="half", done_bytes=1, total_bytes=2)
    effects = control.feed(LookProgressed("small", attempt, progress))
    assert effects == ()
    assert control.state.models["small"].progress == progress


def test_the_last_backend_that_dies_for_a_reason_ends_the_load_with_it(control: Control) -> None:
    control.load()
    app = control.place()
    effects = control.die(app, "canary_failed")
    assert only(effects, StopApp).app == app
    control.look()
    error = control.answers()["c1"].error
    assert isinstance(error, EngineFailed)
    assert error.log_tail == ("last words",)
    assert control.phase() is Phase.FAILED
    assert control.state.exclusions == (), "to leave the only backend out would leave the model with none"


def test_replicas_that_fail_alike_do_not_leave_the_model_with_nothing(control: Control) -> None:
    control.load(asked=request(replicas=2))
    for effect in control.look("small", 10 * GIB, view("n1"), view("n2")):
        if isinstance(effect, PrepareApp):
            control.feed(AppPrepared(effect.app, effect.plan, 3.0))
    first, second = control.state.models["small"].live
    assert first.node != second.node, "their deaths are told in other words"
    control.die(first.name, "canary_failed", 10.0, "r1")
    control.die(second.name, "canary_failed", 11.0, "r2")
    control.look("small", 10 * GIB, view("n1"), view("n2"))
    assert control.phase() is Phase.FAILED
    assert control.state.exclusions == ()


def test_an_exclusion_is_taken_back_by_the_next_life_if_it_leaves_nothing(control: Control) -> None:
    app = control.ready()
    effects = control.die(app, "canary_failed")
    lessons = only(effects, RememberLessons)
    left = [effect.record for effect in effects if isinstance(effect, Remember)][-1]
    order = [type(effect) for effect in effects if isinstance(effect, Remember | RememberLessons)]
    assert order[-1] is RememberLessons, "it is written down who may take it back, before it is"
    fresh = Control(Restored((left,), {}, {}, "life2", 20.0, lessons.exclusions))
    fresh.look()
    assert fresh.phase() is Phase.FAILED
    assert "canary_failed" in fresh.state.models["small"].reason
    assert fresh.state.exclusions == ()


def test_it_is_known_who_may_take_an_exclusion_back_until_that_is_written_down(control: Control) -> None:
    control.die(control.ready(), "canary_failed")
    control.effects.clear()
    effects = control.look()
    order = [type(effect) for effect in effects if isinstance(effect, Remember | RememberLessons)]
    assert order == [RememberLessons, Remember]
    assert only(effects, RememberLessons).exclusions == ()


def test_a_bad_file_is_never_tried_again(control: Control) -> None:
    control.load()
    app = control.place("small", 100 * 2**20, view(gpus=[radeon()]))
    effects = control.die(app, "bad_model_file")
    assert none(effects, Look)
    assert control.phase() is Phase.FAILED
    assert control.state.exclusions == ()


@pytest.mark.parametrize("kind", sorted(RULES))
def test_every_class_of_failure_gets_its_restarts_and_not_one_more(
    control: Control, kind: FailureClass
) -> None:
    control.load(asked=request(options={"context": 4096}))
    app = control.place("small", 100 * 2**20, view(gpus=[radeon()]))
    for number in range(RULES[kind].restarts):
        assert none(control.die(app, kind.value, 10.0 + number), StopApp)
        assert control.phase() is Phase.LOADING
    assert only(control.die(app, kind.value, 100.0), StopApp).app == app


def test_a_backend_that_died_is_left_out_and_the_next_takes_over(control: Control) -> None:
    rig = view(gpus=[radeon()])
    app = control.ready("small", "c1", rig)
    assert control.state.models["small"].live[0].backend is Backend.LLAMA_SERVER_VULKAN
    taken = [Backend.LLAMA_SERVER_VULKAN]
    for number in range(2):
        control.die(app, "gpu_page_fault", 20.0 + number)
        effects = control.die(app, "gpu_page_fault", 21.0 + number)
        assert only(effects, RememberLessons).exclusions == control.state.exclusions
        app = control.place("small", 100 * 2**20, rig)
        control.feed(ReplicaReported(app, replica(f"r{number + 2}")))
        assert control.phase() is Phase.READY
        taken.append(control.state.models["small"].live[0].backend)
    assert taken == [Backend.LLAMA_SERVER_VULKAN, Backend.LLAMA_SERVER_ROCM, Backend.LLAMA_SERVER_CPU]
    assert [one.node_kind for one in control.state.exclusions] == ["gfx1100", "gfx1100"]
    assert all("gpu_page_fault" in one.reason for one in control.state.exclusions)


def test_what_was_excluded_stays_so_over_a_restart_until_it_is_lifted(control: Control) -> None:
    rig = view(gpus=[radeon()])
    app = control.ready("small", "c1", rig)
    control.die(app, "device_missing", 20.0)
    lessons = control.state.exclusions
    fresh = Control(Restored((), {}, {}, "life2", 50.0, lessons))
    fresh.ready("small", "c1", rig)
    assert fresh.state.models["small"].live[0].backend is Backend.LLAMA_SERVER_ROCM
    fresh.feed(ExclusionsLifted("small", Backend.LLAMA_SERVER_CUDA, "l1", 60.0))
    assert isinstance(fresh.answers()["l1"].error, ModelNotFound), "nothing is held against that one"
    effects = fresh.feed(ExclusionsLifted("small", None, "l2", 61.0))
    assert fresh.answers()["l2"].error is None
    assert only(effects, RememberLessons).exclusions == ()


def test_a_model_that_ran_out_of_memory_is_tried_with_less_context_if_nobody_asked_for_one(
    control: Control,
) -> None:
    control.load()
    app = control.place()
    assert control.state.models["small"].apps[app].plan.options.context == 4096
    control.die(app, "out_of_memory")
    assert control.state.exclusions == ()
    app = control.place()
    assert control.state.models["small"].apps[app].plan.options.context == 2048
    control.die(app, "out_of_memory", 20.0)
    control.look()
    assert control.phase() is Phase.FAILED, "2048 tokens are the least"


def test_a_context_that_was_asked_for_is_not_made_smaller(control: Control) -> None:
    control.load(asked=request(options={"context": 4096}))
    app = control.place("small", 100 * 2**20, view(gpus=[radeon()]))
    control.die(app, "out_of_memory")
    app = control.place("small", 100 * 2**20, view(gpus=[radeon()]))
    plan = control.state.models["small"].apps[app].plan
    assert (plan.backend, plan.options.context) == (Backend.LLAMA_SERVER_ROCM, 4096)


def test_a_replica_without_a_lease_is_placed_anew_with_nothing_held_against_the_backend(
    control: Control,
) -> None:
    app = control.ready()
    effects = control.die(app, NO_LEASE, 20.0)
    assert only(effects, StopApp).app == app
    assert only(effects, Look).name == "small"
    assert control.state.exclusions == ()


def test_a_dead_engine_is_recovered_and_its_wish_kept(control: Control) -> None:
    app = control.ready()
    effects = control.feed(ReplicaReported(app, replica(state="failed"), failure("gpu_page_fault")))
    assert control.phase() is Phase.RECOVERING
    assert none(effects, Forget)
    assert none(effects, StopApp)
    assert control.urls() == []
    control.feed(ReplicaReported(app, replica("r2")))
    assert control.phase() is Phase.READY
    assert control.urls() == ["http://127.0.0.1/r2"]
    assert control.state.models["small"].failures[0].failure == "gpu_page_fault"


def test_one_dead_replica_of_two_leaves_the_model_ready(control: Control) -> None:
    app = control.ready()
    control.feed(ReplicaReported(app, replica("r2")))
    control.feed(ReplicaReported(app, replica("r1", "failed"), failure()))
    assert control.phase() is Phase.READY


def test_a_replica_that_vanishes_without_a_word_is_noticed(control: Control) -> None:
    app = control.ready()
    control.observe({app: ServeState.UNHEALTHY}, {app: []})
    assert control.phase() is Phase.RECOVERING
    control.observe({app: ServeState.RUNNING})
    assert control.phase() is Phase.RECOVERING, "no word on its replicas proves nothing"
    control.feed(ReplicaReported(app, replica("r2")))
    assert control.phase() is Phase.READY


def test_a_replica_that_serve_does_not_count_yet_is_believed(control: Control) -> None:
    app = control.ready()
    control.observe({app: ServeState.STARTING}, {app: []}, at=10.5)
    assert control.phase() is Phase.READY
    control.observe({app: ServeState.RUNNING}, {app: []}, at=30.0)
    assert control.phase() is Phase.RECOVERING


def test_an_option_that_the_engine_does_not_know_is_the_callers_mistake(control: Control) -> None:
    control.load()
    app = control.place()
    control.feed(ReplicaReported(app, replica(state="failed"), failure("unknown_flag")))
    assert isinstance(control.answers()["c1"].error, UnknownOption)


def test_a_app_not_seen_yet_is_waited_for_and_one_that_vanished_is_started_again(control: Control) -> None:
    control.load()
    app = control.place()
    control.observe({})
    assert control.phase() is Phase.LOADING
    control.observe({app: ServeState.STARTING})
    control.feed(ReplicaReported(app, replica()))
    effects = control.observe({})
    assert control.phase() is Phase.RESOLVING
    assert only(effects, Look).name == "small"
    assert control.place() != app


def test_serve_giving_up_on_a_app_fails_the_load_with_its_message(control: Control) -> None:
    control.load()
    app = control.place()
    control.observe({app: ServeState.FAILED}, messages={app: "no node has that resource"})
    assert control.phase() is Phase.FAILED
    assert "no node has that resource" in str(control.answers()["c1"].error)


def test_serve_refusing_a_app_fails_the_load_and_gives_its_leases_back(control: Control) -> None:
    control.load()
    app = control.place()
    effects = control.feed(AppStartFailed(app, "name too long", 3.0))
    assert only(effects, StopApp) == StopApp(app, "n1")
    assert control.phase() is Phase.FAILED


def test_a_app_that_nobody_asked_for_is_stopped(control: Control) -> None:
    effects = control.observe({"xgen-engine-stray": ServeState.RUNNING})
    assert only(effects, StopApp).app == "xgen-engine-stray"
    again = control.observe({"xgen-engine-stray": ServeState.RUNNING})
    assert only(again, StopApp).app == "xgen-engine-stray", "the first stop may have got lost"
    assert none(control.observe({"xgen-engine-stray": ServeState.STOPPING}), StopApp)
    control.observe({})
    assert control.state.stray_apps == frozenset()


def record(app: str | None = None, *, proven: bool = True) -> Record:
    apps: tuple[AppRecord, ...] = ()
    if app is not None:
        planned = Control()
        planned.load()
        prepare = only(planned.look(), PrepareApp)
        apps = (AppRecord(app, "n1", "node-n1", "x86_64", prepare.plan),)
    return Record("small", request("small"), created=1.0, proven=proven, apps=apps)


def test_a_restart_takes_over_what_runs(control: Control) -> None:
    fresh = Control(None)
    apps = {"xgen-engine-small-x-1": ServeState.RUNNING}
    effects = fresh.feed(Restored((record("xgen-engine-small-x-1"),), {}, apps, "life2", 50.0))
    assert none(effects, StopApp)
    assert none(effects, Look)
    assert fresh.phase() is Phase.RECOVERING
    assert list(fresh.state.models["small"].apps) == ["xgen-engine-small-x-1"]
    fresh.feed(ReplicaReported("xgen-engine-small-x-1", replica()))
    assert fresh.phase() is Phase.READY


def test_a_restart_in_the_middle_of_a_load_starts_it_again() -> None:
    fresh = Control(None)
    effects = fresh.feed(Restored((record(None, proven=False),), {}, {}, "life2", 50.0))
    assert only(effects, Look).name == "small"


def test_a_proven_model_that_fails_later_stays_wished_for(control: Control) -> None:
    fresh = Control(None)
    fresh.feed(Restored((record(),), {}, {}, "life2", 50.0))
    attempt = fresh.state.models["small"].attempt
    fresh.feed(LookFailed("small", attempt, BadModelFile("disk is away"), 51.0))
    assert fresh.phase() is Phase.FAILED
    assert none(fresh.effects, Forget)


def test_a_wish_that_lives_on_is_tried_again_and_less_and_less_often() -> None:
    fresh = Control(None)
    fresh.feed(Restored((record(),), {}, {}, "life2", 0.0))
    moments = [0.0]
    for _ in range(8):
        attempt = fresh.state.models["small"].attempt
        fresh.feed(LookFailed("small", attempt, BadModelFile("disk is away"), moments[-1]))
        retry_at = fresh.state.models["small"].retry_at
        assert retry_at is not None
        assert none(fresh.observe({}, at=retry_at - 0.1), Look)
        assert only(fresh.observe({}, at=retry_at), Look).name == "small"
        moments.append(retry_at)
    pauses = [late - early for early, late in itertools.pairwise(moments)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_RETRY_S
    app = fresh.place()
    fresh.feed(ReplicaReported(app, replica()))
    assert fresh.state.models["small"].setbacks == 0


def test_what_is_whole_again_begins_with_short_pauses(control: Control) -> None:
    control.load(asked=request(replicas=2))
    for effect in control.look():
        if isinstance(effect, PrepareApp):
            control.feed(AppPrepared(effect.app, effect.plan, 3.0))
    first, second = control.state.models["small"].apps
    control.feed(ReplicaReported(first, replica("r1")))
    control.feed(AppStartFailed(second, "Serve is busy", 5.0))
    assert control.state.models["small"].setbacks == 1
    control.observe({first: ServeState.RUNNING}, at=100.0)
    control.feed(ReplicaReported(control.place(), replica("r2")))
    assert control.phase() is Phase.READY
    assert control.state.models["small"].setbacks == 0


def test_who_asks_again_is_not_held_against_what_was_tried(control: Control) -> None:
    control.load()
    for _ in range(2):
        attempt = control.state.models["small"].attempt
        control.feed(LookFailed("small", attempt, BadModelFile("no magic"), 3.0))
        control.load(caller="again")
        assert control.state.models["small"].setbacks == 0
        control.effects.clear()


def test_a_load_that_never_worked_is_not_tried_again(control: Control) -> None:
    control.load()
    attempt = control.state.models["small"].attempt
    control.feed(LookFailed("small", attempt, BadModelFile("no magic"), 3.0))
    assert none(control.observe({}, at=100_000.0), Look)


def test_a_new_life_never_reuses_a_app_name(control: Control) -> None:
    first = control.ready()
    other = Control(None)
    other.feed(Restored((), {}, {}, "life2", 0.0))
    assert other.ready() != first


# ---- the fleet ---------------------------------------------------------------------------------


def test_replicas_go_to_as_many_nodes_as_it_takes_and_each_is_routed_to(control: Control) -> None:
    control.load(asked=request(replicas=2))
    tight = 11 * GIB
    prepares = [
        effect
        for effect in control.look(
            "small", 9 * GIB, view("n1", available_bytes=tight), view("n2", available_bytes=tight)
        )
        if isinstance(effect, PrepareApp)
    ]
    assert {prepare.node_id for prepare in prepares} == {"n1", "n2"}
    for number, prepare in enumerate(prepares):
        control.feed(AppPrepared(prepare.app, prepare.plan, 3.0))
        control.feed(ReplicaReported(prepare.app, replica(f"r{number}")))
    assert sorted(control.urls()) == ["http://127.0.0.1/r0", "http://127.0.0.1/r1"]
    assert control.state.models["small"].reason == "2 of 2 replicas ready"


def test_every_replica_is_an_application_of_its_own(control: Control) -> None:
    control.load(asked=request(replicas=2))
    prepares = [effect for effect in control.look() if isinstance(effect, PrepareApp)]
    assert [prepare.node_id for prepare in prepares] == ["n1", "n1"]
    assert len({prepare.app for prepare in prepares}) == 2


def test_a_node_that_leaves_takes_its_apps_along_and_they_move(control: Control) -> None:
    control.feed(NodesObserved({"n1": "node-n1", "n2": "node-n2"}, 1.0))
    moved = control.ready("small", "c1", view("n1"))
    other = control.ready("other", "c2", view("n2"))
    effects = control.feed(NodesObserved({"n2": "node-n2"}, 30.0))
    assert only(effects, StopApp).app == moved
    assert only(effects, Look).name == "small"
    assert control.urls() == []
    assert control.urls("other") == ["http://127.0.0.1/r1"]
    assert "node-n1" in control.state.models["small"].reason
    app = control.place("small", 100 * 2**20, view("n2"))
    control.feed(ReplicaReported(app, replica("r9")))
    assert control.phase() is Phase.READY
    assert control.state.models["other"].apps.keys() == {other}


def test_a_model_without_a_place_says_why_and_goes_on_when_a_node_joins(control: Control) -> None:
    control.feed(NodesObserved({"n1": "node-n1"}, 1.0))
    control.ready()
    control.feed(NodesObserved({}, 30.0))
    effects = control.look("small", 100 * GIB, view("n2"), at=31.0)
    assert none(effects, Forget), "it has served once: the wish stays"
    assert control.phase() is Phase.FAILED
    assert "node-n2" in control.state.models["small"].reason
    effects = control.feed(NodesObserved({"n3": "node-n3"}, 32.0))
    assert only(effects, Look).name == "small"


def test_one_replica_lost_leaves_the_other_serving_and_the_reason_in_sight(control: Control) -> None:
    control.feed(NodesObserved({"n1": "one", "n2": "two"}, 1.0))
    control.load(asked=request(replicas=2))
    tight = 11 * GIB
    views = [view("n1", available_bytes=tight), view("n2", available_bytes=tight)]
    for effect in control.look("small", 9 * GIB, *views):
        if isinstance(effect, PrepareApp):
            control.feed(AppPrepared(effect.app, effect.plan, 3.0))
            control.feed(ReplicaReported(effect.app, replica(f"on-{effect.node_id}")))
    control.feed(NodesObserved({"n2": "two"}, 30.0))
    assert control.phase() is Phase.READY
    assert control.urls() == ["http://127.0.0.1/on-n2"]
    control.look("small", 9 * GIB, view("n2", available_bytes=2 * GIB), at=31.0)
    model = control.state.models["small"]
    assert model.phase is Phase.READY
    assert model.shortfall is not None
    assert model.retry_at is not None


def idle_pair(control: Control) -> None:
    """``old`` has 9 of the node's 11 GiB and nobody uses it."""
    control.load("old", "c1")
    app = control.place("old", 9 * GIB, view(available_bytes=11 * GIB))
    control.feed(ReplicaReported(app, replica()))


def crowded(control: Control) -> NodeView:
    """The node as it is with ``old`` on it."""
    return view(available_bytes=11 * GIB - 9 * GIB)


def test_a_load_that_would_fit_without_idle_models_says_which(control: Control) -> None:
    idle_pair(control)
    control.load("new", "c2")
    control.look("new", 8 * GIB, crowded(control), at=10.0 + IDLE_S * 2)
    error = control.answers()["c2"].error
    assert isinstance(error, PlacementRefused)
    assert "old" in error.message
    assert control.phase("old") is Phase.READY


def test_idle_models_make_room_if_the_load_says_so(control: Control) -> None:
    idle_pair(control)
    control.load("new", "c2", request("new", evict="idle"))
    effects = control.look("new", 8 * GIB, crowded(control), at=10.0 + IDLE_S * 2)
    assert only(effects, Forget).name == "old"
    assert control.phase("old") is Phase.UNLOADING
    assert "old" in control.state.models["new"].reason
    effects = control.observe({}, at=200.0)
    assert "old" not in control.state.models
    assert only(effects, Look).name == "new"
    control.place("new", 8 * GIB, view(available_bytes=11 * GIB))
    assert control.phase("new") is Phase.LOADING


def test_a_model_in_use_is_not_idle(control: Control) -> None:
    idle_pair(control)
    control.feed(UseReported({"old": 10.0 + IDLE_S * 2 - 1}))
    control.load("new", "c2", request("new", evict="idle"))
    control.look("new", 8 * GIB, crowded(control), at=10.0 + IDLE_S * 2)
    assert control.phase("old") is Phase.READY
    assert control.phase("new") is Phase.FAILED


def test_what_an_engine_really_took_is_kept_for_the_next_plan(control: Control) -> None:
    app = control.ready()
    seen = Observation(model_key(facts()), Backend.LLAMA_SERVER_CPU, "ram", GIB, 2 * GIB)
    effects = control.feed(ReplicaReported(app, replica(), observations=(seen,)))
    assert only(effects, RememberLessons).observations == (seen,)
    control.load("small", "c9", request("small"))
    fresh = Control(Restored((), {}, {}, "life2", 50.0, (), (seen,)))
    before, after = Control(), fresh
    for world in (before, after):
        world.load()
        world.place()
    bills = [
        next(iter(world.state.models["small"].apps.values())).plan.footprint for world in (before, after)
    ]
    assert bills[1].total_bytes > bills[0].total_bytes


def test_a_model_that_is_seen_as_it_was_stays_the_object_that_it_was() -> None:
    """So nobody compares it with what it was: not the routes, nor the chronicle."""
    control = Control()
    app = control.ready()
    control.observe({app: ServeState.RUNNING}, {app: ["r1"]})
    before = control.state
    assert control.observe({app: ServeState.RUNNING}, {app: ["r1"]}) == ()
    assert control.state.models["small"] is before.models["small"]
    assert control.state.table is before.table
