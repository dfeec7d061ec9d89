"""Control's judgement, one event at a time."""

from tests.serving.builders import GIB, facts, fleet, replica, request, view
from tests.serving.machine_builders import Control, none, only
from xgen_ray.errors import (
    BadModelFile,
    ModelNotFound,
    NameConflict,
    PlacementRefused,
    WrongState,
)
from xgen_ray.placement import Observation, model_key
from xgen_ray.placement.types import Backend
from xgen_ray.schema import Phase, Progress
from xgen_ray.serving.effects import (
    Answer,
    CancelLook,
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
    AppRefused,
    LookDone,
    LookFailed,
    LookProgressed,
    ReplicaReported,
    Restored,
    UnloadAsked,
)
from xgen_ray.serving.placing import MAX_REFUSED
from xgen_ray.serving.state import ServeState


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


def lose_place(control: Control) -> None:
    """A model that has served has no place any more: its wish is kept."""
    app = control.ready()
    control.observe({app: ServeState.RUNNING})
    control.observe({})
    control.look("small", 100 * GIB, at=21.0)
    assert control.phase() is Phase.FAILED
    assert control.state.models["small"].retry_at is not None


def test_a_name_that_waits_for_its_place_is_refused_to_others_and_comes_back(control: Control) -> None:
    lose_place(control)
    before = control.state.models
    control.effects.clear()
    control.load("small", "c2", request("other"))
    error = control.answers()["c2"].error
    assert isinstance(error, NameConflict)
    assert "has failed" in str(error)
    assert "unload it first" in str(error)
    assert [type(effect) for effect in control.effects] == [Answer], "nothing is forgotten or looked for"
    assert control.state.models == before
    control.load("small", "c3", request("small", evict="idle"))
    assert isinstance(control.answers()["c3"].error, NameConflict), "as while it serves"
    control.load("small", "c4", request("small"))
    assert control.phase() is Phase.RESOLVING, "the same is tried again at once"


def test_a_name_that_waits_for_its_place_is_free_once_it_is_unloaded(control: Control) -> None:
    lose_place(control)
    control.feed(UnloadAsked("small", "u1", 30.0))
    assert control.answers()["u1"].error is None
    control.load("small", "c2", request("other"))
    assert control.state.models["small"].request == request("other")
    effects = control.fail_look(BadModelFile("no magic"))
    assert only(effects, Forget).name == "small"
    assert control.state.models["small"].retry_at is None


def test_a_load_that_never_worked_leaves_nothing_to_the_next_of_its_name(control: Control) -> None:
    control.load()
    app = control.place()
    control.die(app, "bad_model_file")
    control.load("small", "c2", request("other"))
    taken = control.state.models["small"]
    assert (taken.request, taken.facts, taken.failures) == (request("other"), None, ())
    assert list(taken.apps) == [app], "what is still stopping is stopped to the end"
    assert not taken.proven


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


def test_an_app_that_nobody_asked_for_is_stopped(control: Control) -> None:
    effects = control.observe({"xgen-engine-stray": ServeState.RUNNING})
    assert only(effects, StopApp).app == "xgen-engine-stray"
    again = control.observe({"xgen-engine-stray": ServeState.RUNNING})
    assert only(again, StopApp).app == "xgen-engine-stray", "the first stop may have got lost"
    assert none(control.observe({"xgen-engine-stray": ServeState.STOPPING}), StopApp)
    control.observe({})
    assert control.state.stray_apps == frozenset()


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
