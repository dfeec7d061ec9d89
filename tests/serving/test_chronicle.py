"""What is told of what happens, over the real state machine."""

from dataclasses import replace

from tests.serving.builders import GIB, radeon, replica, view
from tests.serving.machine_builders import FIRST, Control
from tests.serving.test_awaiting import TYPES, on_gpu
from xgen_ray.console import EventKind
from xgen_ray.placement.types import Backend
from xgen_ray.schema import Phase, Scaling
from xgen_ray.serving.chronicle import KEPT, Chronicle, note
from xgen_ray.serving.effects import Effect
from xgen_ray.serving.events import (
    Event,
    ExclusionsLifted,
    NodesObserved,
    ReplicaReported,
    RestartAsked,
    Restored,
    ScaleAsked,
    UnloadAsked,
    WakeAsked,
)
from xgen_ray.serving.machine import step
from xgen_ray.serving.state import ControlState


class Told(Control):
    """Control with its chronicle."""

    def __init__(self, first: Restored = FIRST, known: Chronicle | None = None) -> None:
        self.chronicle = known or Chronicle()
        super().__init__(first)

    def feed(self, event: Event) -> tuple[Effect, ...]:
        before = self.state
        self.state, effects = step(before, event)
        self.chronicle = note(self.chronicle, before, self.state, 100.0)
        self.effects += effects
        return effects

    def kinds(self) -> list[EventKind]:
        """What happened since the start, in its order."""
        told = [event.kind for event in reversed(self.chronicle.events)]
        assert told[0] is EventKind.STARTED
        return told[1:]

    def last(self, kind: EventKind) -> str:
        return next(event.message for event in self.chronicle.events if event.kind is kind)


def test_a_models_life_is_told_from_its_wish_to_its_end() -> None:
    control = Told()
    control.ready()
    control.feed(UnloadAsked("small", "c9", 30.0))
    control.observe({}, at=31.0)
    assert control.kinds() == [EventKind.ASKED, EventKind.READY, EventKind.UNLOADED]
    assert control.last(EventKind.READY) == "ready on node-n1 by llama-server-cpu"


def test_a_restart_is_told_with_its_end() -> None:
    control = Told()
    control.ready()
    control.feed(RestartAsked("small", "c9", 30.0))
    assert control.last(EventKind.ASKED) == "asked to load /models/small.gguf again"
    control.observe({}, at=31.0)
    control.feed(ReplicaReported(control.place(), replica("r2")))
    assert control.kinds() == [EventKind.ASKED, EventKind.READY, EventKind.ASKED, EventKind.READY]


def test_a_death_has_its_forensics_and_its_own_time() -> None:
    control = Told()
    app = control.ready()
    control.die(app, "crashed", 10.0)
    death = next(event for event in control.chronicle.events if event.kind is EventKind.DEATH)
    assert (death.level, death.model, death.node, death.at) == ("error", "small", "node-n1", 10.0)
    assert death.failure is not None
    assert death.failure.log_tail == ("last words",)
    control.feed(ReplicaReported(app, replica("r2")))
    assert control.last(EventKind.READY).startswith("ready again on")
    assert control.kinds().count(EventKind.DEATH) == 1


def test_a_demotion_is_told_and_what_it_leads_to_and_its_end() -> None:
    control = Told()
    there = view(gpus=(radeon(),))
    app = control.ready("small", "c1", there)
    assert control.state.models["small"].apps[app].backend is Backend.LLAMA_SERVER_VULKAN
    control.die(app, "device_missing")
    demoted = next(event for event in control.chronicle.events if event.kind is EventKind.DEMOTED)
    assert demoted.model == "small"
    assert "llama-server-vulkan is left out on gfx1100" in demoted.message
    control.observe({}, at=12.0)
    second = control.place("small", 100 * 2**20, there)
    control.feed(ReplicaReported(second, replica("r2")))
    assert control.last(EventKind.MOVED) == (
        "moved from node-n1 (llama-server-vulkan) to node-n1 (llama-server-rocm)"
    )
    control.feed(ExclusionsLifted("small", None, "c5", 40.0))
    assert control.last(EventKind.LIFTED) == "llama-server-vulkan may be used on gfx1100 again"


def test_nodes_join_and_are_lost_with_what_they_had() -> None:
    control = Told()
    control.feed(NodesObserved({"n1": "node-n1"}, 1.0))
    assert control.kinds() == [], "who is there at the first look has not joined"
    control.ready()
    control.feed(NodesObserved({"n1": "node-n1", "n2": "node-n2"}, 5.0))
    assert control.last(EventKind.NODE_JOINED) == "node-n2 has joined"
    control.feed(NodesObserved({"n2": "node-n2"}, 6.0))
    lost = next(event for event in control.chronicle.events if event.kind is EventKind.NODE_LOST)
    assert (lost.level, lost.node) == ("warning", "node-n1")
    assert lost.message == "node-n1 is gone, and with it small"
    app = control.place("small", 100 * 2**20, view("n2"))
    control.feed(ReplicaReported(app, replica("r2")))
    assert control.last(EventKind.MOVED) == (
        "moved from node-n1 (llama-server-cpu) to node-n2 (llama-server-cpu)"
    )


def test_another_size_is_told() -> None:
    control = Told()
    control.ready()
    control.feed(ScaleAsked("small", 3, None, "c2", 5.0))
    assert control.last(EventKind.SCALED) == "from 1 to 3 replicas"
    assert EventKind.MOVED not in control.kinds()


def test_sleep_and_waking_are_told_and_are_no_change_of_size() -> None:
    control = Told()
    app = control.ready()
    rule = Scaling(min_replicas=0, max_replicas=1, ttl_s=5.0)
    control.feed(ScaleAsked("small", None, rule, "c2", 5.0))
    for at in (100.0, 200.0, 300.0):
        state = control.state.models["small"].apps.get(app)
        seen = {} if state is None else {app: state.seen}
        control.observe({name: one for name, one in seen.items() if one is not None}, {app: ["r1"]}, at=at)
    assert EventKind.SLEPT in control.kinds()
    control.feed(WakeAsked(frozenset({"small"}), 400.0))
    assert control.kinds()[-1] is EventKind.WOKE
    assert EventKind.SCALED not in control.kinds()


def test_a_life_that_takes_over_tells_that_it_began_and_goes_on() -> None:
    first = Told()
    first.ready()
    second = Told(replace(FIRST, epoch="life2"), Chronicle(first.chronicle.events))
    events = second.chronicle.events
    assert [event.kind for event in events] == [
        EventKind.STARTED,
        EventKind.READY,
        EventKind.ASKED,
        EventKind.STARTED,
    ]
    assert len({event.id for event in events}) == 4


def test_a_model_that_a_life_finds_asleep_is_told_of_once() -> None:
    """While control was away, its configuration was changed so that the model may sleep."""
    first = Told()
    first.ready()
    asleep = replace(first.state.models["small"], phase=Phase.SLEEPING, reason="a request wakes it")
    second = note(first.chronicle, ControlState(), ControlState("life2", models={"small": asleep}), 5.0)
    assert [event.kind for event in second.events[:3]] == [
        EventKind.SLEPT,
        EventKind.STARTED,
        EventKind.READY,
    ]
    third = note(second, ControlState(), ControlState("life3", models={"small": asleep}), 6.0)
    assert [event.kind for event in third.events[:2]] == [EventKind.STARTED, EventKind.SLEPT]


def test_no_more_are_kept_than_that() -> None:
    chronicle = Chronicle()
    here, there = ControlState("e", nodes={"n1": "one"}), ControlState("e", nodes={"n2": "two"})
    for _ in range(KEPT):
        chronicle = note(note(chronicle, here, there, 1.0), there, here, 2.0)
    assert len(chronicle.events) == KEPT
    assert chronicle.told == 4 * KEPT
    assert chronicle.events[0].id == f"e.{chronicle.told}"


def test_where_nothing_happens_nothing_is_told() -> None:
    state = ControlState("e", nodes={"n1": "one"})
    chronicle = Chronicle()
    assert note(chronicle, state, replace(state, attempts=3), 1.0) is chronicle


def test_a_wait_for_a_node_is_told_once() -> None:
    control = Told(replace(FIRST, node_types=TYPES))
    control.load(asked=on_gpu())
    for at in (2.0, 40.0):
        control.look("small", GIB, view("n1"), at=at)
        control.observe({}, at=at + 31.0)
    assert control.kinds() == [EventKind.ASKED, EventKind.AWAITS]
    assert control.last(EventKind.AWAITS) == "waiting for a node of the type amd"
