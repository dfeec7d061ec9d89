"""What an engine's death, a refusal and a lost replica do to a model."""

import pytest

from tests.serving.builders import GIB, failure, radeon, replica, request, view
from tests.serving.machine_builders import Control, none, only
from xgen_ray.errors import (
    BadModelFile,
    DownloadFailed,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    UnknownOption,
    XgenRayError,
)
from xgen_ray.placement.types import Backend
from xgen_ray.process.types import FailureClass
from xgen_ray.schema import Phase
from xgen_ray.serving.effects import (
    Forget,
    Look,
    PrepareApp,
    Remember,
    RememberLessons,
    StopApp,
)
from xgen_ray.serving.events import (
    AppPrepared,
    AppStartFailed,
    ExclusionsLifted,
    NodesObserved,
    ReplicaReported,
    Restored,
)
from xgen_ray.serving.ladder import NO_LEASE, RULES
from xgen_ray.serving.state import ServeState


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


@pytest.mark.parametrize("kind", ["bad_model_file", "unknown_flag"])
def test_what_time_cannot_mend_is_kept_and_not_tried_again(kind: str) -> None:
    control = Control(Restored((), {"small": request()}, {}, "life1", 0.0))
    effects = control.die(control.place(), kind)
    assert control.phase() is Phase.FAILED
    assert none(effects, Forget)
    record = only(effects, Remember).record
    for moment in (26.0, 1010.0):
        assert none(control.observe({}, at=moment), Look)
        control.feed(NodesObserved({"n1": "node-n1", f"n{moment}": "another"}, moment))
    assert control.phase() is Phase.FAILED
    assert kind in control.state.models["small"].reason
    route = control.state.table.routes["small"]
    assert (route.will_retry, route.reason) == (False, control.state.models["small"].reason)

    again = Control(Restored((record,), {"small": request()}, {}, "life2", 2000.0))
    assert only(again.effects, Look).name == "small", "the next life of control tries it"
    control.effects.clear()
    control.load(caller="c2")
    assert only(control.effects, Look).name == "small", "and whoever asks for it"


def test_a_file_that_has_served_may_be_on_a_share_that_is_away(control: Control) -> None:
    control.die(control.ready(), "bad_model_file")
    assert control.phase() is Phase.FAILED
    assert control.state.table.routes["small"].will_retry
    assert only(control.observe({}, at=1010.0), Look).name == "small"


@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (BadModelFile("no magic"), False),
        (InvalidRequest("which of its files?"), False),
        (DownloadFailed("the hub is away"), True),
        (ModelNotFound("the disk is not there"), True),
    ],
)
def test_a_declared_model_is_looked_for_again_where_that_may_help(
    error: XgenRayError, *, is_tried_again: bool
) -> None:
    control = Control(Restored((), {"small": request()}, {}, "life1", 0.0))
    control.fail_look(error)
    assert control.phase() is Phase.FAILED
    assert none(control.observe({}, at=20.0), Look) is not is_tried_again


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


def test_an_app_not_seen_yet_is_waited_for_and_one_that_vanished_is_started_again(control: Control) -> None:
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


def test_serve_giving_up_on_an_app_fails_the_load_with_its_message(control: Control) -> None:
    control.load()
    app = control.place()
    control.observe({app: ServeState.FAILED}, messages={app: "no node has that resource"})
    assert control.phase() is Phase.FAILED
    assert "no node has that resource" in str(control.answers()["c1"].error)


def test_serve_refusing_an_app_fails_the_load_and_gives_its_leases_back(control: Control) -> None:
    control.load()
    app = control.place()
    effects = control.feed(AppStartFailed(app, "name too long", 3.0))
    assert only(effects, StopApp) == StopApp(app, "n1")
    assert control.phase() is Phase.FAILED
