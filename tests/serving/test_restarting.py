"""A model's engines are started anew at an operator's word, and the wish for it is there throughout."""

from dataclasses import replace

import pytest

from tests.serving.builders import replica, request, view
from tests.serving.machine_builders import Control, none, only
from tests.serving.test_sizing import SLEEPER, Sized
from xgen_ray.errors import BadModelFile, ModelNotFound, WrongState
from xgen_ray.schema import Phase
from xgen_ray.serving.effects import Answer, CancelLook, Forget, Look, Remember, StopApp
from xgen_ray.serving.events import (
    LookFailed,
    ReplicaReported,
    RestartAsked,
    Restored,
    ScaleAsked,
    UnloadAsked,
)
from xgen_ray.serving.state import Record, ServeState


@pytest.fixture
def control() -> Sized:
    return Sized()


def restart(control: Control, name: str = "small") -> list[Record]:
    """Asks for it; nothing is forgotten, and the answer comes once. Returns what is remembered instead."""
    effects = control.feed(RestartAsked(name, "restarter", 50.0))
    assert none(effects, Forget)
    assert only(effects, Answer) == Answer("restarter", name)
    remembered = [number for number, effect in enumerate(effects) if isinstance(effect, Remember)]
    answered = next(number for number, effect in enumerate(effects) if isinstance(effect, Answer))
    assert max(remembered) < answered
    return [effect.record for effect in effects if isinstance(effect, Remember)]


def test_what_serves_ends_first_and_is_then_loaded_as_it_was_asked_for(control: Sized) -> None:
    app = control.ready()
    control.feed(ScaleAsked("small", 2, None, "c2", 40.0))
    control.effects.clear()
    (record,) = restart(control)
    assert (record.request, record.proven, record.apps) == (request(replicas=2), True, ())
    assert only(control.effects, StopApp).app == app
    assert only(control.effects, CancelLook).name == "small", "the place for the second is looked for anew"
    assert none(control.effects, Look)
    assert control.phase() is Phase.RESOLVING, "requests wait for it"
    assert none(control.observe({app: ServeState.STOPPING}, at=51.0), Look)
    assert only(control.observe({}, at=52.0), Look).request == request(replicas=2)
    control.grow(at=53.0)
    assert (control.phase(), control.sizes()) == (Phase.READY, (2, 2))


def test_who_waits_for_a_load_gets_its_answer_from_the_one_that_follows(control: Sized) -> None:
    control.load()
    app = control.place()
    restart(control)
    assert "c1" not in control.answers()
    control.observe({app: ServeState.STOPPING})
    control.observe({})
    control.feed(ReplicaReported(control.place(), replica("r2")))
    assert control.answers()["c1"].error is None


def test_a_restart_that_finds_no_place_leaves_the_wish(control: Sized) -> None:
    app = control.ready()
    restart(control)
    control.observe({app: ServeState.STOPPING})
    control.observe({}, at=52.0)
    control.look("small", 100 * 2**40)
    assert control.phase() is Phase.FAILED
    assert none(control.effects, Forget)
    assert control.state.models["small"].retry_at is not None


def test_what_the_ladder_may_take_back_it_may_after_a_restart_as_well(control: Sized) -> None:
    app = control.ready()
    control.die(app, "canary_failed")
    restart(control)
    control.observe({app: ServeState.STOPPING})
    control.observe({}, at=52.0)
    control.look()
    assert control.phase() is Phase.FAILED
    assert control.state.exclusions == ()


def test_control_may_end_in_the_middle_of_it(control: Sized) -> None:
    app = control.ready()
    (record,) = restart(control)
    seen = {app: ServeState.STOPPING}
    other = Sized(Restored((record,), {}, seen, "life2", 60.0))
    assert only(other.effects, Look).name == "small"
    assert other.state.stray_apps == {app}


def test_what_sleeps_wakes_and_what_has_failed_is_tried_again(control: Sized) -> None:
    control.loaded(SLEEPER)
    control.at(20.0, 0)
    control.at(200.0, 0)
    assert control.phase() is Phase.SLEEPING
    control.observe({})
    restart(control)
    assert only([one for one in control.effects if isinstance(one, Look)][-1:], Look).name == "small"
    control.grow(at=52.0)
    assert control.sizes() == (1, 1)

    other = Sized()
    other.load()
    other.feed(LookFailed("small", other.state.models["small"].attempt, BadModelFile("no magic"), 3.0))
    restart(other)
    assert other.phase() is Phase.RESOLVING
    other.feed(ReplicaReported(other.place(), replica()))
    assert other.phase() is Phase.READY


def test_what_was_learned_of_the_request_is_forgotten_for_it(control: Sized) -> None:
    control.load()
    control.die(control.place(), "out_of_memory")
    assert control.state.models["small"].context_limit == 2048
    restart(control)
    assert control.state.models["small"].context_limit is None


def test_all_pools_of_a_name_or_one(control: Sized) -> None:
    for pool in ("a", "b"):
        control.load(f"m@{pool}", f"c-{pool}", request("small", pool=pool))
        control.feed(ReplicaReported(control.place(f"m@{pool}"), replica(f"in-{pool}")))
    both = replace(control.state)
    restart(control, "m@b")
    assert (control.phase("m@a"), control.phase("m@b")) == (Phase.READY, Phase.RESOLVING)
    control.state = both
    control.effects.clear()
    assert [record.name for record in restart(control, "m")] == ["m@a", "m@b"]
    assert {control.phase("m@a"), control.phase("m@b")} == {Phase.RESOLVING}


def test_what_is_not_there_or_is_leaving_cannot_be_restarted(control: Sized) -> None:
    control.feed(RestartAsked("small", "c8", 5.0))
    assert isinstance(control.answers()["c8"].error, ModelNotFound)
    control.ready("small", "c1", view())
    control.feed(UnloadAsked("small", "c2", 20.0))
    effects = control.feed(RestartAsked("small", "c9", 21.0))
    assert isinstance(only(effects, Answer).error, WrongState)
    assert control.phase() is Phase.UNLOADING
