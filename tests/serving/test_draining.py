"""Nodes taken out of service and put back: control's judgement, one event at a time."""

from pathlib import Path

import pytest

from tests.serving.builders import facts, fleet, replica, request, view
from tests.serving.machine_builders import Control, none, only
from tests.serving.test_awaiting import TYPES, amd, on_gpu
from tests.serving.test_chronicle import Told
from xgen_ray.console import EventKind
from xgen_ray.errors import InvalidRequest, NotReady, PlacementRefused
from xgen_ray.placement import DEFAULT_POLICY, FleetPlan, FleetRefusal, NodeView
from xgen_ray.schema import DrainReport, LoadRequest, Phase
from xgen_ray.serving.draining import why_closed
from xgen_ray.serving.effects import (
    Answer,
    AskForNodes,
    Effect,
    Look,
    PrepareApp,
    Remember,
    RememberDrained,
    StopApp,
)
from xgen_ray.serving.events import (
    AppPrepared,
    DrainAsked,
    DrainLifted,
    LookDone,
    NodesObserved,
    ReplicaReported,
    Restored,
    ScaleAsked,
)
from xgen_ray.serving.fleet_reports import drain_report, nodes_report
from xgen_ray.serving.node_state import NodeIdentity
from xgen_ray.serving.nodes import NodesSeen, SilentNode
from xgen_ray.serving.placing import dry_run
from xgen_ray.serving.registry import Registry
from xgen_ray.serving.state import ServeState

HERE, THERE = view("n1"), view("n2")
FULL = view("n2", available_bytes=10 * 2**20)
NAMES = {"n1": "node-n1", "n2": "node-n2"}


class Fleet(Told):
    """Control over two nodes."""

    def __init__(self, first: Restored | None = None) -> None:
        super().__init__(first or Restored((), {}, {}, "life1", 0.0))
        self.feed(NodesObserved(NAMES, 1.0))

    def drain(self, node: str = "node-n1", caller: str = "d1") -> tuple[Effect, ...]:
        return self.feed(DrainAsked(node, caller, 20.0))

    def lift(self, node: str = "node-n1", caller: str = "d2") -> tuple[Effect, ...]:
        return self.feed(DrainLifted(node, caller, 40.0))

    def come(self, app: str, replica_id: str = "r2") -> tuple[Effect, ...]:
        return self.feed(ReplicaReported(app, replica(replica_id, since=30.0)))

    def refused(self, caller: str) -> Exception | None:
        return self.answers()[caller].error

    def places(self, name: str = "small") -> list[tuple[str, bool]]:
        """The node of each app that is wanted, and whether it is leaving."""
        return sorted((app.node, app.leaving) for app in self.state.models[name].live)


@pytest.fixture
def control() -> Fleet:
    return Fleet()


def test_what_runs_there_is_started_elsewhere_before_it_is_stopped(control: Fleet) -> None:
    old = control.ready("small", "c1", HERE)
    effects = control.drain()
    assert effects[0] == RememberDrained({"node-n1": 20.0}), "durable before anybody is told"
    assert only(effects, Answer) == Answer("d1", "node-n1")
    assert only(effects, Look).name == "small"
    assert none(effects, StopApp)
    new = control.place("small", 100 * 2**20, HERE, THERE)
    assert control.places() == [("node-n1", True), ("node-n2", False)]
    assert control.urls() == ["http://127.0.0.1/r1"]
    effects = control.come(new)
    assert only(effects, StopApp) == StopApp(old, "n1")
    assert [app.name for app in only(effects, Remember).record.apps] == [new]
    assert control.urls() == ["http://127.0.0.1/r2"]
    assert control.phase() is Phase.READY
    assert control.places() == [("node-n2", False)]


def test_each_of_several_goes_as_one_comes_in_its_place(control: Fleet) -> None:
    """Two replicas there and one elsewhere; two places are found, one after the other."""
    control.load(asked=request(replicas=3))
    effects = control.look("small", 100 * 2**20, HERE, THERE, at=2.0)
    apps = [effect for effect in effects if isinstance(effect, PrepareApp)]
    for number, one in enumerate(apps):
        control.feed(AppPrepared(one.app, one.plan, 3.0))
        control.come(one.app, f"old{number}")
    leaving = [one.app for one in apps if one.node_id == "n1"]
    assert 0 < len(leaving) < 3
    control.drain()
    for number in range(len(leaving)):
        assert len([place for place in control.places() if place[1]]) == len(leaving) - number
        looked = control.look("small", 100 * 2**20, HERE, THERE) if number == 0 else ()
        apps = [effect for effect in looked if isinstance(effect, PrepareApp)] or apps[1:]
        assert {one.node_id for one in apps} == {"n2"}
        control.feed(AppPrepared(apps[0].app, apps[0].plan, 25.0))
        assert isinstance(only(control.come(apps[0].app, f"new{number}"), StopApp), StopApp)
        assert len(control.urls()) == 3
    assert control.places() == [("node-n2", False)] * 3


def test_what_has_no_other_place_serves_on_and_says_so(control: Fleet) -> None:
    control.ready("small", "c1", HERE)
    control.drain()
    assert none(control.look("small", 100 * 2**20, HERE, FULL), StopApp)
    model = control.state.models["small"]
    assert (model.phase, control.urls()) == (Phase.READY, ["http://127.0.0.1/r1"])
    assert model.shortfall is not None
    assert "node-n2" in model.shortfall
    (closed,) = [verdict for verdict in model.verdicts if verdict.name == "node-n1"]
    assert closed.reasons == (why_closed("node-n1"),)
    # Tried again, and moved once there is room.
    assert model.retry_at is not None
    app = model.live[0].name
    effects = control.observe({app: ServeState.RUNNING}, {app: ["r1"]}, at=model.retry_at)
    assert only(effects, Look).name == "small"
    new = control.place("small", 100 * 2**20, HERE, THERE)
    assert only(control.come(new), StopApp).app == app
    assert control.state.models["small"].shortfall is None


def test_a_new_load_goes_elsewhere_or_is_refused_with_the_reason(control: Fleet) -> None:
    control.drain()
    control.load()
    assert only(control.look("small", 100 * 2**20, HERE, THERE), PrepareApp).node_id == "n2"
    control.load("bound", "c2", request("bound", nodes=["node-n1"]))
    control.look("bound", 100 * 2**20, HERE, THERE)
    error = control.refused("c2")
    assert isinstance(error, PlacementRefused)
    assert "drained by an operator; `xgen-ray drain node-n1 --lift` ends that" in error.message


def planned(control: Fleet, asked: LoadRequest, *views: NodeView) -> FleetPlan | FleetRefusal:
    return dry_run(asked, LookDone("", 0, facts(), fleet(*views), 2.0), control.state)


def test_a_plan_says_so_too(control: Fleet) -> None:
    assert isinstance(planned(control, request(), HERE), FleetPlan)
    control.drain()
    refusal = planned(control, request(), HERE)
    assert isinstance(refusal, FleetRefusal)
    assert why_closed("node-n1") in refusal.message
    strange = view("n1", schedulable=False, reason="it runs xgen-ray 9")
    refusal = planned(control, request(), strange)
    assert refusal.nodes[0].reasons == (f"{why_closed('node-n1')}; it runs xgen-ray 9",)


def test_a_promise_that_serves_nobody_yet_is_taken_back(control: Fleet) -> None:
    control.load()
    prepare = only(control.look("small", 100 * 2**20, HERE), PrepareApp)
    effects = control.drain()
    assert only(effects, StopApp).app == prepare.app
    assert only(effects, Look).name == "small"
    # Its node had not heard of it.
    assert control.feed(AppPrepared(prepare.app, prepare.plan, 21.0)) == ()
    assert control.place("small", 100 * 2**20, HERE, THERE)
    assert control.places() == [("node-n2", False)]


def test_a_look_under_way_knows_of_the_drain(control: Fleet) -> None:
    control.load()
    assert none(control.drain(), Look), "one look at a time"
    assert only(control.look("small", 100 * 2**20, HERE, THERE), PrepareApp).node_id == "n2"


def test_lifted_halfway_it_stays_and_its_successor_goes(control: Fleet) -> None:
    old = control.ready("small", "c1", HERE)
    control.drain()
    new = control.place("small", 100 * 2**20, HERE, THERE)
    effects = control.lift()
    assert effects[0] == RememberDrained({})
    assert only(effects, StopApp).app == new
    assert control.places() == [("node-n1", False)]
    assert only(effects, Answer) == Answer("d2", "node-n1")
    assert [app.name for app in control.state.models["small"].live] == [old]


def test_lifted_it_is_looked_at_by_what_waits_for_room(control: Fleet) -> None:
    control.drain()
    control.ready("small", "c1", THERE)
    control.feed(ScaleAsked("small", 2, None, "s1", 25.0))
    control.look("small", 100 * 2**20, HERE, FULL)
    assert control.state.models["small"].shortfall
    assert only(control.lift(), Look).name == "small"
    assert only(control.look("small", 100 * 2**20, HERE, FULL), PrepareApp).node_id == "n1"


def test_it_comes_back_under_its_name_and_stays_drained(control: Fleet) -> None:
    control.drain()
    control.feed(NodesObserved({"n2": "node-n2"}, 30.0))
    control.feed(NodesObserved({"n9": "node-n1", "n2": "node-n2"}, 60.0))
    back = view("n9", name="node-n1")
    assert isinstance(planned(control, request(), back), FleetRefusal)
    control.lift("n9")
    assert isinstance(planned(control, request(), back), FleetPlan)


def test_a_later_life_goes_on_where_the_drain_was(control: Fleet) -> None:
    """The successor was on its way when control ended."""
    old = control.ready("small", "c1", HERE)
    control.drain()
    new = control.place("small", 100 * 2**20, HERE, THERE)
    last = [effect.record for effect in control.effects if isinstance(effect, Remember)][-1]
    running = {old: ServeState.RUNNING, new: ServeState.STARTING}
    later = Fleet(Restored((last,), {}, running, "life2", 50.0, drained={"node-n1": 20.0}))
    assert later.state.models["small"].wanted == 1
    assert later.places() == [("node-n1", True), ("node-n2", False)]
    assert none(later.come(old, "r1"), StopApp)
    assert only(later.come(new), StopApp).app == old


def test_shrinking_takes_what_leaves_first(control: Fleet) -> None:
    control.load(asked=request(replicas=2, options={"spread": True}))
    for one in control.look("small", 100 * 2**20, HERE, THERE):
        if isinstance(one, PrepareApp):
            control.feed(AppPrepared(one.app, one.plan, 3.0))
            control.come(one.app, f"r-{one.node_id}")
    assert control.places() == [("node-n1", False), ("node-n2", False)]
    control.drain()
    effects = control.feed(ScaleAsked("small", 1, None, "s1", 25.0))
    assert only(effects, StopApp).node_id == "n1"
    assert control.places() == [("node-n2", False)]


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ("node-n3", "there is no node node-n3; the nodes are: node-n1, node-n2"),
        ("twin", "2 nodes are named twin"),
        ("t1", "2 nodes are named twin"),
    ],
)
def test_a_node_that_cannot_be_meant_is_refused(control: Fleet, node: str, says: str) -> None:
    if node != "node-n3":
        control.feed(NodesObserved({"t1": "twin", "t2": "twin"}, 2.0))
    control.drain(node)
    error = control.refused("d1")
    assert isinstance(error, InvalidRequest)
    assert (says in error.message, error.param) == (True, "node")
    assert control.state.drained == {}


def test_an_id_means_its_node_and_asking_twice_changes_nothing(control: Fleet) -> None:
    control.ready("small", "c1", HERE)
    control.drain("n1")
    before = control.state
    assert control.drain("node-n1", "again") == (Answer("again", "node-n1"),)
    assert (control.state.drained, control.state.models) == ({"node-n1": 20.0}, before.models)
    control.lift("node-n2", "wrong")
    assert str(control.refused("wrong")) == "node-n2 is not drained; drained are: node-n1"


def test_before_the_nodes_are_known_nothing_can_be_drained() -> None:
    control = Control()
    control.feed(DrainAsked("node-n1", "d1", 1.0))
    assert isinstance(control.answers()["d1"].error, NotReady)


def test_of_the_autoscalers_nodes_a_drained_one_is_none_to_be_had() -> None:
    """Ray compares with all that is there: what waits needs one beside it."""
    control = Control(Restored((), {}, {}, "life1", 0.0, node_types=TYPES))
    control.feed(NodesObserved({"a1": "node-a1"}, 1.0, {"a1": "amd"}))
    control.feed(DrainAsked("node-a1", "d1", 2.0))
    control.load(asked=on_gpu())
    assert only(control.look("small", 100 * 2**20, amd("a1")), AskForNodes).counts == {"amd": 2}


def test_it_is_told_from_its_beginning_to_its_end(control: Fleet) -> None:
    old = control.ready("small", "c1", HERE)
    control.drain()
    new = control.place("small", 100 * 2**20, HERE, THERE)
    control.come(new)
    assert EventKind.NODE_EMPTY not in control.kinds(), "its engine is still stopping"
    control.observe({new: ServeState.RUNNING}, {new: ["r2"]}, at=35.0)
    control.lift()
    assert old not in control.state.models["small"].apps
    assert control.last(EventKind.NODE_DRAINED) == "node-n1 takes nothing new; moving away: small"
    assert control.last(EventKind.MOVED).startswith("moved from node-n1")
    assert control.last(EventKind.NODE_EMPTY) == "nothing runs on node-n1 any more"
    assert control.last(EventKind.NODE_OPENED) == "node-n1 takes models again"


def test_the_registry_keeps_it(tmp_path: Path) -> None:
    first = Registry(tmp_path / "models.db")
    assert first.drained() == {}
    first.remember_drained({"gpu-2": 20.5, "gpu-3": 21.0})
    first.remember_drained({"gpu-2": 20.5})
    first.close()
    second = Registry(tmp_path / "models.db")
    assert second.drained() == {"gpu-2": 20.5}
    assert second.lessons() == ((), ())
    second.close()


def test_the_api_tells_which_nodes_are_drained_and_what_is_there(control: Fleet) -> None:
    control.feed(NodesObserved({**NAMES, "n3": "node-n3"}, 2.0))
    control.ready("small", "c1", HERE)
    control.drain("node-n3", "d3")
    control.drain()
    control.feed(NodesObserved(NAMES, 25.0))
    assert drain_report("n1", control.state) == DrainReport(
        node="node-n1", drained_since=20.0, models=("small",)
    )
    mute = SilentNode(NodeIdentity("n1", "node-n1", "127.0.0.1"), "it gives no answer")
    report = nodes_report(NodesSeen((), (mute,)), control.state, DEFAULT_POLICY)
    (node,) = report.nodes
    assert (node.schedulable, node.drained_since, node.models) == (False, 20.0, ("small",))
    assert node.reason == f"{why_closed('node-n1')}; it gives no answer"
    assert report.drained_away == ("node-n3",)
