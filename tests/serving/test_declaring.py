"""A changed configuration changes what has changed in it, and nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.serving.builders import facts, replica, request
from tests.serving.machine_builders import Control, none, only
from xgen_ray.errors import NameConflict
from xgen_ray.schema import ChangeKind, LoadRequest, Origin, Phase
from xgen_ray.serving.declaring import changes_of
from xgen_ray.serving.effects import Answer, Effect, Forget, Look, PrepareApp, Remember, StopApp
from xgen_ray.serving.events import (
    LoadAsked,
    ReplicaReported,
    RestartAsked,
    Restored,
    ScaleAsked,
    UnloadAsked,
)
from xgen_ray.serving.state import AppRecord, Record, ServeState

APP = "xgen-engine-small-x-1"
SLEEPY: dict[str, Any] = {"scaling": {"min_replicas": 0, "max_replicas": 2}}


def record(declared: LoadRequest | None, **changes: Any) -> Record:
    """A model that ran before control started again, with one engine."""
    planned = Control()
    planned.load()
    prepare = only(planned.look(), PrepareApp)
    apps = (AppRecord(APP, "n1", "node-n1", "x86_64", prepare.plan),)
    made = Record("small", declared or request(), created=1.0, declared=declared, proven=True, apps=apps)
    return replace(made, **changes)


def applied(
    declared: Mapping[str, LoadRequest], *records: Record, runs: bool = True
) -> tuple[Control, tuple[Effect, ...]]:
    """Control as it starts with this configuration, after a life that left ``records``."""
    control = Control(None)
    apps = {APP: ServeState.RUNNING} if runs else {}
    return control, control.feed(Restored(records, declared, apps, "life2", 50.0))


def kinds(control: Control, **declared: LoadRequest) -> dict[str, ChangeKind]:
    return {change.name: change.kind for change in changes_of(control.state.models, declared)}


def test_what_stays_as_it_was_is_not_touched() -> None:
    control, effects = applied({"small": request()}, record(request()))
    assert none(effects, StopApp)
    assert none(effects, Look)
    assert list(control.state.models["small"].apps) == [APP]


def test_what_is_new_is_loaded_and_what_is_gone_is_unloaded_with_time_for_its_requests() -> None:
    control, effects = applied({"new": request("new")}, record(request()))
    assert only(effects, Look).name == "new"
    assert only(effects, Forget).name == "small"
    assert only(effects, StopApp).node_id == "n1", "its lease is given back"
    assert control.phase() is Phase.UNLOADING
    assert control.state.models["new"].origin is Origin.DECLARED
    control.observe({})
    assert set(control.state.models) == {"new"}


def test_what_is_gone_and_did_not_run_is_forgotten_without_a_look_for_it() -> None:
    control, effects = applied({}, record(request(), apps=()), runs=False)
    assert none(effects, Look)
    assert only(effects, Forget).name == "small"
    assert control.state.models == {}


def test_models_of_the_api_are_nobody_elses() -> None:
    control, effects = applied({"new": request("new")}, record(None))
    assert none(effects, StopApp)
    assert only(effects, Look).name == "new"
    assert control.state.models["small"].origin is Origin.API


def test_another_scale_leaves_the_engines_alone() -> None:
    control, effects = applied({"small": request(replicas=2)}, record(request()))
    assert none(effects, StopApp)
    assert only(effects, Look).name == "small", "a place for the second"
    assert list(control.state.models["small"].apps) == [APP]
    assert control.state.models["small"].wanted == 2

    other_eviction, effects = applied({"small": request(evict="idle")}, record(request()))
    assert none(effects, StopApp)
    assert none(effects, Look)
    assert other_eviction.state.models["small"].request.evict == "idle"


def test_other_options_are_loaded_once_the_former_engines_are_gone() -> None:
    wanted = request(options={"context": 512})
    control, effects = applied({"small": wanted}, record(request()))
    assert only(effects, StopApp).app == APP
    assert none(effects, Look)
    assert none(effects, Forget)
    assert control.phase() is Phase.RESOLVING, "requests wait for it"
    assert [effect.record.request for effect in effects if isinstance(effect, Remember)] == [wanted]
    control.observe({APP: ServeState.STOPPING})
    assert none(control.observe({APP: ServeState.STOPPING}), Look)
    assert only(control.observe({}), Look).request == wanted
    app = control.place()
    control.feed(ReplicaReported(app, replica()))
    assert control.phase() is Phase.READY


def test_a_restart_in_the_middle_of_a_reload_goes_on_with_it() -> None:
    wanted = request(options={"context": 512})
    _, effects = applied({"small": wanted}, record(request()))
    left = only(effects, Remember).record
    control, effects = applied({"small": wanted}, left)
    assert only(effects, StopApp).app == APP
    assert only(effects, Look).request == wanted
    assert control.phase() is Phase.RESOLVING


def test_what_sleeps_goes_on_sleeping_with_its_new_options() -> None:
    asleep = record(request(**SLEEPY), apps=())
    control, effects = applied({"small": request(options={"context": 512}, **SLEEPY)}, asleep, runs=False)
    assert none(effects, Look)
    assert control.phase() is Phase.SLEEPING
    assert control.state.models["small"].request.options.context == 512
    awake, effects = applied({"small": request(options={"context": 512})}, asleep, runs=False)
    assert only(effects, Look).name == "small"
    assert awake.phase() is Phase.RESOLVING


def test_a_model_of_the_api_that_is_declared_alike_is_taken_over_as_it_runs() -> None:
    control, effects = applied({"small": request()}, record(None))
    assert none(effects, StopApp)
    assert none(effects, Look)
    assert only(effects, Remember).record.declared == request()
    assert control.state.models["small"].origin is Origin.DECLARED


def test_a_model_of_the_api_that_is_declared_otherwise_follows_the_configuration() -> None:
    _, effects = applied({"small": request(options={"slots": 2})}, record(None))
    assert only(effects, StopApp).app == APP


def test_a_scale_set_by_hand_holds_until_the_configuration_says_another() -> None:
    declared = request(replicas=2)
    control, _ = applied({"small": declared}, record(declared))
    effects = control.feed(ScaleAsked("small", 1, None, "c9", 60.0))
    left = only(effects, Remember).record
    restarted, effects = applied({"small": declared}, left)
    assert none(effects, Look)
    assert none(effects, StopApp)
    assert restarted.state.models["small"].wanted == 1
    changed, _ = applied({"small": request(replicas=3)}, left)
    assert changed.state.models["small"].wanted == 3


def test_an_unload_by_hand_holds_until_control_starts_again() -> None:
    control, _ = applied({"small": request()}, record(request()))
    effects = control.feed(UnloadAsked("small", "c1", 60.0))
    assert only(effects, Forget).name == "small"
    _, effects = applied({"small": request()}, runs=False)
    assert only(effects, Look).name == "small"


@pytest.mark.parametrize("apps", [(), None])
def test_the_api_cannot_load_another_model_under_a_declared_name(apps: tuple[()] | None) -> None:
    kept = record(request(**SLEEPY)) if apps is None else record(request(**SLEEPY), apps=apps)
    control, _ = applied({"small": request(**SLEEPY)}, kept, runs=apps is None)
    answer = only(control.feed(LoadAsked("small", request("other"), "c1", 60.0)), Answer)
    assert isinstance(answer.error, NameConflict)
    assert "configuration" in str(answer.error)


def test_what_a_change_would_do_is_told_before_it_is_done() -> None:
    control, _ = applied({"small": request()}, record(request()))
    assert kinds(control, small=request()) == {"small": ChangeKind.KEEP}
    assert kinds(control, small=request(replicas=2)) == {"small": ChangeKind.SCALE}
    assert kinds(control, small=request(nodes=("n2",))) == {"small": ChangeKind.RELOAD}
    assert kinds(control, new=request("new")) == {"small": ChangeKind.UNLOAD, "new": ChangeKind.LOAD}
    (told,) = changes_of(control.state.models, {"small": request(options={"context": 512, "slots": 2})})
    assert told.why == "options.context unset -> 512, options.slots unset -> 2"
    (told,) = changes_of(control.state.models, {"small": request(**SLEEPY)})
    assert "min_replicas 0" in told.why


def test_facts_are_read_anew_where_the_file_is_another() -> None:
    control, _ = applied({"small": request("other").model_copy(update={"name": "small"})}, record(request()))
    control.observe({})
    assert control.state.models["small"].facts is None
    control.look("small")
    assert control.state.models["small"].facts == facts("small")


def test_a_restart_of_a_declared_model_leaves_it_declared() -> None:
    control, _ = applied({"small": request()}, record(request()))
    control.feed(ScaleAsked("small", 2, None, "c1", 55.0))
    control.feed(RestartAsked("small", "c2", 60.0))
    assert control.state.models["small"].origin is Origin.DECLARED
    assert control.state.models["small"].request == request(replicas=2), "as it was scaled by hand"
    assert kinds(control, small=request()) == {"small": ChangeKind.KEEP}
