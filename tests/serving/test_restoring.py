"""What outlives control, and what is tried again."""

import itertools

from tests.serving.builders import replica, request
from tests.serving.machine_builders import Control, none, only
from xgen_ray.errors import (
    BadModelFile,
    ModelNotFound,
)
from xgen_ray.schema import Phase
from xgen_ray.serving.effects import (
    Forget,
    Look,
    PrepareApp,
    StopApp,
)
from xgen_ray.serving.events import (
    AppPrepared,
    AppStartFailed,
    LookFailed,
    ReplicaReported,
    Restored,
)
from xgen_ray.serving.state import AppRecord, Record, ServeState
from xgen_ray.serving.turn import LONGEST_RETRY_S


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
    fresh.feed(LookFailed("small", attempt, ModelNotFound("disk is away"), 51.0))
    assert fresh.phase() is Phase.FAILED
    assert none(fresh.effects, Forget)


def test_a_wish_that_lives_on_is_tried_again_and_less_and_less_often() -> None:
    fresh = Control(None)
    fresh.feed(Restored((record(),), {}, {}, "life2", 0.0))
    moments = [0.0]
    for _ in range(8):
        attempt = fresh.state.models["small"].attempt
        fresh.feed(LookFailed("small", attempt, ModelNotFound("disk is away"), moments[-1]))
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
    control.feed(LookFailed("small", attempt, ModelNotFound("disk is away"), 3.0))
    assert none(control.observe({}, at=100_000.0), Look)


def test_a_new_life_never_reuses_an_app_name(control: Control) -> None:
    first = control.ready()
    other = Control(None)
    other.feed(Restored((), {}, {}, "life2", 0.0))
    assert other.ready() != first
