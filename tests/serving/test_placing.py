"""Replicas over nodes, and idle models that make room."""

from tests.serving.builders import GIB, replica, request, view
from tests.serving.machine_builders import Control, none, only
from xgen_ray.errors import (
    PlacementRefused,
)
from xgen_ray.placement import NodeView
from xgen_ray.schema import Phase
from xgen_ray.serving.effects import (
    Forget,
    Look,
    PrepareApp,
    StopApp,
)
from xgen_ray.serving.events import (
    AppPrepared,
    NodesObserved,
    ReplicaReported,
    UseReported,
)
from xgen_ray.serving.placing import IDLE_S


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
