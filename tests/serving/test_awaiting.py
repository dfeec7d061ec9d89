"""Models that wait for nodes which the autoscaler may start: asked for, placed, given back."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.serving.builders import GIB, facts, radeon, replica, request, view
from tests.serving.machine_builders import Control, none, only
from tests.serving.test_sizing import RULE, SLEEPER, Sized
from xgen_ray.errors import PlacementRefused
from xgen_ray.placement import FleetRefusal, NodeType, NodeView
from xgen_ray.schema import LoadRequest, Phase
from xgen_ray.serving.awaiting import LOOK_EVERY_S, NODE_PATIENCE_S
from xgen_ray.serving.effects import AskForNodes, Effect, Forget, Look, PrepareApp, Remember
from xgen_ray.serving.events import (
    AppPrepared,
    LookDone,
    NodesObserved,
    ReplicaReported,
    Restored,
    UnloadAsked,
    WakeAsked,
)
from xgen_ray.serving.placing import dry_run
from xgen_ray.serving.state import Fleet, ServeState
from xgen_ray.serving.supply import nodes_at_rest

TYPES = {
    "amd": NodeType(
        "amd",
        {"CPU": 8, "amd_rdna": 1, "gfx1151": 1},
        {"xgen-ray/ram": "64g", "xgen-ray/gpu-memory": "24g", "xgen-ray/gpu-type": "amd_rdna"},
        max_workers=2,
    ),
    "cpu": NodeType("cpu", {"CPU": 8, "cpu_node": 1}, {"xgen-ray/ram": "16g"}, max_workers=2),
}


def on_gpu(name: str = "small", **changes: object) -> LoadRequest:
    return request(name, options={"backend": "llama-server-vulkan"}, **changes)


def amd(node_id: str, **changes: object) -> NodeView:
    return replace(view(node_id, gpus=[radeon(24 * GIB)], node_type="amd"), **changes)  # type: ignore[arg-type]


def begun() -> Sized:
    control = Sized(Restored((), {}, {}, "life1", 0.0, node_types=TYPES))
    control.feed(NodesObserved({"head": "head"}, 1.0))
    return control


def asked_of(effects: tuple[Effect, ...]) -> Mapping[str, int]:
    return only(effects, AskForNodes).counts


def join(control: Control, *node_ids: str, at: float = 60.0) -> tuple[Effect, ...]:
    names = {"head": "head", **{node_id: f"node-{node_id}" for node_id in node_ids}}
    return control.feed(NodesObserved(names, at, dict.fromkeys(node_ids, "amd")))


def start(control: Control, effects: tuple[Effect, ...], at: float = 62.0) -> str:
    prepare = only(effects, PrepareApp)
    control.feed(AppPrepared(prepare.app, prepare.plan, at))
    control.feed(ReplicaReported(prepare.app, replica(f"r-{prepare.app}", since=at)))
    return prepare.app


def test_a_new_life_withdraws_what_an_earlier_one_asked_for() -> None:
    assert asked_of(tuple(begun().effects)) == {}
    assert none(tuple(Control().effects), AskForNodes), "where there is no autoscaler, it is left alone"


def test_a_model_without_a_place_waits_for_a_node_and_gives_it_back() -> None:
    control = begun()
    control.load(asked=on_gpu())
    effects = control.look("small", GIB, view("head"), at=2.0)
    assert asked_of(effects) == {"amd": 1}
    model = control.state.models["small"]
    assert (model.phase, model.awaited and model.awaited.since) == (Phase.RESOLVING, 2.0)
    assert "waiting for a node of the type amd" in model.reason
    assert not control.answers(), "the load goes on"
    assert only(join(control, "n1"), Look).name == "small"
    effects = control.look("small", GIB, view("head"), amd("n1"), at=61.0)
    assert asked_of(effects) == {}, "an engine keeps its node"
    assert nodes_at_rest(control.state) == frozenset(), "not before it is at rest"
    start(control, effects)
    assert control.phase() is Phase.READY
    assert control.answers()["c1"].error is None
    assert nodes_at_rest(control.state) == frozenset()
    control.feed(UnloadAsked("small", "c2", 70.0))
    assert nodes_at_rest(control.state) == frozenset(), "its engine is not gone yet"
    control.observe({}, at=75.0)
    assert nodes_at_rest(control.state) == {"n1"}


def test_a_second_model_asks_for_a_node_beside_the_first_ones() -> None:
    control = begun()
    for number, name in enumerate(("one", "two", "three"), 1):
        control.load(name, f"c-{name}", on_gpu(name))
        known = [amd(f"n{other}", leased=("x",)) for other in range(1, number)]
        full = [view("head"), *map(_full, known)]
        effects = control.look(name, 15 * GIB, *full, at=2.0)
        if number == 3:
            error = control.answers()["c-three"].error
            assert isinstance(error, PlacementRefused)
            assert "amd: all 2 that the autoscaler may start are in use" in error.message
            return
        assert asked_of(effects) == {"amd": number}
        join(control, *(f"n{other}" for other in range(1, number + 1)))
        start(control, control.look(name, 15 * GIB, *full, amd(f"n{number}"), at=61.0))


def test_two_models_that_fit_one_node_wait_for_one_together() -> None:
    control = begun()
    for name, size, nodes in (("one", GIB, 1), ("two", GIB, 1), ("three", 20 * GIB, 2)):
        control.load(name, f"c-{name}", on_gpu(name))
        effects = control.look(name, size, view("head"), at=2.0)
        assert control.state.asked_nodes == {"amd": nodes}, name
        assert none(effects, AskForNodes) == (name == "two"), "asked once for both"
    assert "waiting for a node of the type amd" in control.state.models["two"].reason
    for at in (40.0, 80.0):
        control.observe({}, at=at)
        for name in ("one", "two"):
            control.look(name, GIB, view("head"), at=at + 1)
        control.look("three", 20 * GIB, view("head"), at=at + 1)
        assert control.state.asked_nodes == {"amd": 2}, "looking again changes nothing"
    control.feed(UnloadAsked("three", "c3", 90.0))
    control.feed(UnloadAsked("one", "c4", 90.0))
    control.observe({}, at=120.0)
    control.look("two", GIB, view("head"), at=121.0)
    assert control.state.asked_nodes == {"amd": 1}, "it asks for itself when nobody does any longer"


def _full(one: NodeView) -> NodeView:
    gpu = one.snapshot.detection.gpus[0]
    return replace(one, taken=frozenset({gpu.uuid or gpu.pci_bus_id or ""}))


def test_a_node_that_is_not_what_it_declares_is_not_asked_for_again() -> None:
    control = begun()
    control.load(asked=on_gpu())
    control.look("small", GIB, view("head"), at=2.0)
    join(control, "n1")
    effects = control.look("small", GIB, view("head"), view("n1", node_type="amd"), at=61.0)
    assert asked_of(effects) == {}
    error = control.answers()["c1"].error
    assert isinstance(error, PlacementRefused)
    assert "node-n1 is one, and does not do" in error.message
    assert "cpu: " in error.message


def test_a_node_that_does_not_come_is_not_waited_for_for_ever() -> None:
    control = begun()
    control.load(asked=on_gpu())
    at = 2.0
    while not control.answers():
        control.look("small", GIB, view("head"), at=at)
        at += LOOK_EVERY_S
        control.observe({}, at=at)
        assert at < 2 * NODE_PATIENCE_S
    error = control.answers()["c1"].error
    assert isinstance(error, PlacementRefused)
    assert "has not come" in error.message
    assert control.state.asked_nodes == {}


def test_a_node_that_has_joined_and_does_not_answer_yet_is_looked_at_again_soon() -> None:
    control = begun()
    control.load(asked=on_gpu())
    control.look("small", GIB, view("head"), at=2.0)
    join(control, "n1")
    for at in (61.0, 65.0):
        silent = amd("n1", schedulable=False, reason="its engines are being tried")
        found = Fleet((view("head"), silent), silent=frozenset({"n1"}))
        attempt = control.state.models["small"].attempt
        control.feed(LookDone("small", attempt, facts("small", GIB), found, at))
        retry_at = control.state.models["small"].retry_at
        assert retry_at is not None
        assert retry_at < at + 5.0
        assert control.state.models["small"].awaited is not None
        control.observe({}, at=at + 4.0)


def test_what_has_no_room_to_grow_waits_for_a_node_while_it_serves() -> None:
    control = begun()
    control.load(asked=on_gpu(scaling=RULE))
    join(control, "n1")
    app = start(control, control.look("small", 15 * GIB, view("head"), amd("n1"), at=10.0), at=10.0)
    control.at(20.0, 99)
    control.at(25.0, 99)
    effects = control.look("small", 15 * GIB, view("head"), _full(amd("n1", leased=("x",))), at=26.0)
    assert asked_of(effects) == {"amd": 2}
    model = control.state.models["small"]
    assert model.phase is Phase.READY
    assert "waiting for a node of the type amd" in (model.shortfall or "")
    control.at(30.0, 0)
    effects_before = len(control.effects)
    control.at(91.0, 0)
    withdrawn = [one for one in control.effects[effects_before:] if isinstance(one, AskForNodes)]
    assert [one.counts for one in withdrawn] == [{}], "nobody needs more any longer"
    assert control.state.models["small"].live[0].name == app


def test_one_that_sleeps_lets_its_node_go_and_gets_another_when_woken() -> None:
    control = begun()
    control.load(asked=on_gpu(scaling=SLEEPER))
    join(control, "n1")
    start(control, control.look("small", GIB, view("head"), amd("n1"), at=10.0), at=10.0)
    control.at(120.0, 0)
    assert control.phase() is Phase.SLEEPING
    control.observe({}, at=121.0)
    assert nodes_at_rest(control.state) == {"n1"}
    join(control, at=150.0)
    control.feed(WakeAsked(frozenset({"small"}), 200.0))
    assert nodes_at_rest(control.state) == frozenset()
    effects = control.look("small", GIB, view("head"), at=201.0)
    assert asked_of(effects) == {"amd": 1}
    assert none(effects, Forget)


@pytest.mark.parametrize("leave", ["unload", "node"])
def test_who_leaves_or_names_its_nodes_asks_for_none(leave: str) -> None:
    control = begun()
    asked = on_gpu() if leave == "unload" else on_gpu(nodes=("head",))
    control.load(asked=asked)
    effects = control.look("small", GIB, view("head"), at=2.0)
    if leave == "node":
        assert none(effects, AskForNodes)
        assert isinstance(control.answers()["c1"].error, PlacementRefused)
        return
    effects = control.feed(UnloadAsked("small", "c2", 70.0))
    assert asked_of(effects) == {}


def test_a_restart_forgets_what_was_asked_and_asks_again() -> None:
    control = begun()
    control.load(asked=on_gpu())
    control.look("small", GIB, view("head"), at=2.0)
    record = [one.record for one in control.effects if isinstance(one, Remember)][-1]
    other = Sized(Restored((record,), {}, {"x": ServeState.STOPPING}, "life2", 50.0, node_types=TYPES))
    assert other.state.asked_nodes == {}
    assert asked_of(other.look("small", GIB, view("head"), at=51.0)) == {"amd": 1}


def test_a_plan_says_what_a_load_would_wait_for() -> None:
    control = begun()
    event = LookDone("", 0, facts("small", GIB), Fleet((view("head"),)), 2.0)
    decision = dry_run(on_gpu(), event, control.state)
    assert isinstance(decision, FleetRefusal)
    assert decision.message.endswith("It would wait for a node of the type amd.")
    pinned = dry_run(on_gpu(nodes=("head",)), event, control.state)
    assert isinstance(pinned, FleetRefusal)
    assert "would wait" not in pinned.message
