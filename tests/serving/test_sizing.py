"""Models that grow, shrink, sleep and wake: control's judgement, one event at a time."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from tests.serving.builders import GIB, facts, replica, request, view
from tests.serving.machine_builders import FIRST, Control, none, only
from xgen_ray.errors import ModelNotFound, NameConflict, NotReady, PlacementRefused, WrongState
from xgen_ray.schema import LoadRequest, Phase, Scaling
from xgen_ray.serving.effects import Answer, Forget, Look, PrepareApp, Remember, StopApp
from xgen_ray.serving.events import (
    AppPrepared,
    LoadAsked,
    LookDone,
    LookFailed,
    NodesObserved,
    ReplicaReported,
    Restored,
    ScaleAsked,
    UnloadAsked,
    UseReported,
    WakeAsked,
)
from xgen_ray.serving.placing import IDLE_S, MAX_LOOKS
from xgen_ray.serving.state import Fleet, ServeState

RULE = {"max_replicas": 3, "upscale_delay_s": 5.0, "downscale_delay_s": 60.0}
# Longer than it takes to shrink, as engines of large models do.
LOAD_S = 120.0
SLEEPER = {**RULE, "min_replicas": 0, "ttl_s": 100.0}


class Sized(Control):
    """A control whose engines all say how busy they are."""

    def __init__(self, first: Restored = FIRST) -> None:
        super().__init__(first)
        # When what takes its time to load began to.
        self.started: dict[str, float] = {}

    def at(
        self, moment: float, ongoing: int, name: str = "small", loading: Collection[str] = frozenset()
    ) -> None:
        """Everything is seen at ``moment``, with ``ongoing`` requests in the model's first engine. The apps
        in ``loading`` are not ready.
        """
        states, alive = {}, {}
        for model in list(self.state.models.values()):
            for number, app in enumerate(model.live):
                states[app.name] = ServeState.RUNNING
                alive[app.name] = [f"r-{app.name}"]
                state = "loading" if app.name in loading else "ready"
                told = replica(f"r-{app.name}", state, since=moment)
                busy = ongoing if (model.name, number) == (name, 0) else 0
                status = told.status.model_copy(update={"running": busy, "load_at": moment})
                self.feed(ReplicaReported(app.name, replace(told, status=status)))
        self.observe(states, alive, at=moment)

    def grow(self, name: str = "small", at: float = 30.0) -> None:
        """What is looked for is found and gets ready."""
        for effect in self.look(name, at=at):
            if isinstance(effect, PrepareApp):
                self.feed(AppPrepared(effect.app, effect.plan, at))
                self.feed(ReplicaReported(effect.app, replica(f"r-{effect.app}", since=at)))

    def passes(self, since: float, until: float, ongoing: int, name: str = "small") -> None:
        """The seconds from ``since`` on, while engines take ``LOAD_S`` to get ready."""
        for second in range(int(since), int(until)):
            for model in list(self.state.models.values()):
                if model.looking:
                    self.start(model.name, second)
            late = {app for app, at in self.started.items() if second < at + LOAD_S}
            self.at(second, ongoing, name, late)

    def start(self, name: str, at: float) -> None:
        """What is looked for is found, and begins to load."""
        for effect in self.look(name, at=at):
            if isinstance(effect, PrepareApp):
                self.started[effect.app] = at
                self.feed(AppPrepared(effect.app, effect.plan, at))

    def loaded(self, rule: dict[str, float], name: str = "small") -> None:
        self.load(name, f"caller-{name}", asked=request(name, scaling=rule))
        self.grow(name, at=10.0)
        assert self.phase(name) is Phase.READY

    def silent(self, name: str, attempt: int, weight_bytes: int) -> None:
        """A look at two nodes, of which one gave no answer."""
        views = (view("n1"), view("n2", schedulable=False, reason="no answer"))
        found = Fleet(views, silent=frozenset({"n2"}))
        self.feed(LookDone(name, attempt, facts(name, weight_bytes), found, 3.0))

    def sizes(self, name: str = "small") -> tuple[int, int]:
        """Wanted, and running."""
        model = self.state.models[name]
        return model.wanted, len(model.live)


@pytest.fixture
def control() -> Sized:
    return Sized()


def test_it_grows_with_its_load_and_shrinks_after_it(control: Sized) -> None:
    control.loaded(RULE)
    slots = control.state.models["small"].live[0].plan.options.slots
    control.at(20.0, 3 * slots)
    assert control.sizes() == (1, 1), "not for a spike"
    control.at(25.0, 3 * slots)
    assert control.state.models["small"].looking
    control.grow(at=26.0)
    assert control.sizes() == (3, 3)
    control.at(30.0, 1)
    control.at(89.0, 1)
    assert control.sizes() == (3, 3)
    control.at(90.0, 1)
    assert control.sizes() == (1, 1)
    busy = control.state.models["small"].live[0]
    assert any(one.status.running for one in busy.replicas.values()), "the one at work stays"


def test_what_has_grown_lives_to_serve(control: Sized) -> None:
    """Its load is over before the new engine is ready."""
    control.loaded(RULE)
    slots = control.state.models["small"].live[0].plan.options.slots
    control.passes(20.0, 30.0, slots + 1)
    assert control.sizes() == (2, 2)
    control.passes(30.0, 140.0, 0)
    assert len(control.started) == 1
    assert control.state.models["small"].ready == 1
    assert control.sizes() == (2, 2), "it still loads"
    (began,) = control.started.values()
    control.passes(140.0, began + LOAD_S + 60.0, 0)
    assert control.sizes() == (2, 2), "time for its load to come"
    control.passes(began + LOAD_S + 60.0, began + LOAD_S + 62.0, 0)
    assert control.sizes() == (1, 1)


def test_what_has_no_room_to_grow_serves_on_and_says_so(control: Sized) -> None:
    control.loaded(RULE)
    control.at(20.0, 99)
    control.at(25.0, 99)
    control.look("small", 100 * 2**20, view("n1", available_bytes=10 * 2**20), at=26.0)
    model = control.state.models["small"]
    assert model.phase is Phase.READY
    assert model.shortfall is not None
    assert control.sizes() == (3, 1)
    # When nobody needs more any longer, nothing is missing either.
    control.at(30.0, 0)
    control.at(91.0, 0)
    assert control.sizes() == (1, 1)
    assert control.state.models["small"].shortfall is None
    assert control.state.models["small"].retry_at is None


def test_unused_it_sleeps_and_a_request_wakes_it_once(control: Sized) -> None:
    control.loaded(SLEEPER)
    control.at(109.0, 0)
    assert control.phase() is Phase.READY
    control.feed(UseReported({"small": 60.0}))
    control.at(159.0, 0)
    assert control.phase() is Phase.READY, "it was used at 60"
    control.at(160.0, 0)
    assert control.phase() is Phase.SLEEPING
    assert control.urls() == []
    assert only(control.effects, StopApp).node_id == "n1"
    assert none(control.effects, Forget), "the wish stays"
    control.observe({}, at=161.0)
    assert control.state.models["small"].apps == {}
    looks = [
        effect
        for _ in range(100)
        for effect in control.feed(WakeAsked(frozenset({"small"}), 200.0))
        if isinstance(effect, Look)
    ]
    assert len(looks) == 1
    control.grow(at=201.0)
    assert control.phase() is Phase.READY
    control.at(202.0, 0)
    assert control.phase() is Phase.READY


def test_a_load_wakes_it_as_well(control: Sized) -> None:
    control.loaded(SLEEPER)
    control.at(110.0, 0)
    control.load("small", "again", asked=request("small", scaling=SLEEPER))
    assert "again" not in control.answers()
    control.grow(at=111.0)
    assert control.answers()["again"].error is None


def test_the_name_of_what_sleeps_is_refused_to_others(control: Sized) -> None:
    control.loaded(SLEEPER)
    control.at(110.0, 0)
    before = control.state.models
    others = [request("other"), request("small", evict="idle", scaling=SLEEPER)]
    for number, other in enumerate(others):
        effects = control.feed(LoadAsked("small", other, f"c{number}", 120.0))
        error = only(effects, Answer).error
        assert isinstance(error, NameConflict)
        assert "sleeps" in str(error)
        assert "unload it first" in str(error)
        assert len(effects) == 1, "nothing is forgotten or looked for"
    assert control.state.models == before
    control.feed(UnloadAsked("small", "u1", 130.0))
    control.observe({}, at=131.0)
    control.load("small", "c9", request("other"))
    assert control.phase() is Phase.RESOLVING


def test_it_sleeps_on_over_a_restart(control: Sized) -> None:
    control.loaded(SLEEPER)
    control.at(110.0, 0)
    record = [effect for effect in control.effects if isinstance(effect, Remember)][-1].record
    other = Sized(Restored((record,), {}, {}, "life2", 300.0))
    assert other.phase() is Phase.SLEEPING
    assert none(other.effects, Look)
    assert other.state.table.routes["small"].phase is Phase.SLEEPING, "routers know of it"


def test_more_than_the_least_survive_a_restart(control: Sized) -> None:
    control.loaded(RULE)
    control.at(20.0, 99)
    control.at(25.0, 99)
    control.grow(at=26.0)
    record = [effect for effect in control.effects if isinstance(effect, Remember)][-1].record
    running = {app.name: ServeState.RUNNING for app in record.apps}
    other = Sized(Restored((record,), {}, running, "life2", 300.0))
    assert other.sizes() == (3, 3)


def test_an_operator_changes_the_number_and_nothing_else(control: Sized) -> None:
    control.ready()
    before = control.state.models["small"].live
    control.feed(ScaleAsked("small", 3, None, "c9", 50.0))
    assert control.answers()["c9"].error is None
    control.grow(at=51.0)
    assert control.sizes() == (3, 3)
    assert before[0] in control.state.models["small"].live
    control.feed(ScaleAsked("small", 1, None, "c10", 60.0))
    assert control.sizes() == (1, 1)
    record = [effect for effect in control.effects if isinstance(effect, Remember)][-1].record
    assert (record.request.replicas, len(record.apps)) == (1, 1)


def test_a_rule_instead_of_a_number(control: Sized) -> None:
    control.ready()
    control.feed(ScaleAsked("small", None, Scaling(min_replicas=2, max_replicas=3), "c9", 50.0))
    control.grow(at=51.0)
    assert control.sizes() == (2, 2)
    # The same load again is no other one.
    wish = LoadRequest(model="/models/small.gguf", scaling=Scaling(min_replicas=2, max_replicas=3))
    control.load("small", "c10", asked=wish)
    assert control.answers()["c10"].error is None


def test_scaling_what_is_not_there_or_on_its_way_out(control: Sized) -> None:
    control.feed(ScaleAsked("ghost", 2, None, "c1", 1.0))
    assert isinstance(control.answers()["c1"].error, ModelNotFound)
    control.ready(caller="c2")
    control.feed(UnloadAsked("small", "c3", 20.0))
    control.feed(ScaleAsked("small", 2, None, "c4", 21.0))
    assert isinstance(control.answers()["c4"].error, WrongState)


def test_scaling_what_has_failed_is_refused_with_what_to_do_instead(control: Sized) -> None:
    app = control.ready()
    control.observe({app: ServeState.RUNNING})
    control.observe({})
    control.look("small", 100 * GIB)
    control.feed(ScaleAsked("small", 2, None, "c2", 30.0))
    error = control.answers()["c2"].error
    assert isinstance(error, WrongState)
    assert "unload it first" in str(error), "its name is refused to a load with another scale"


def test_a_model_that_may_sleep_makes_room_without_being_forgotten(control: Sized) -> None:
    control.load("old", "c1", asked=request("old", scaling=SLEEPER))
    prepare = only(control.look("old", 9 * GIB, view("n1", available_bytes=11 * GIB)), PrepareApp)
    control.feed(AppPrepared(prepare.app, prepare.plan, 3.0))
    control.feed(ReplicaReported(prepare.app, replica("r-old", since=3.0)))
    control.load("new", "c2", asked=request("new", evict="idle"))
    full = view("n1", available_bytes=2 * GIB)
    effects = control.look("new", 9 * GIB, full, at=10.0 + IDLE_S)
    assert none(effects, Forget)
    assert control.phase("old") is Phase.SLEEPING
    assert control.state.models["new"].evicting == {"old"}
    effects = control.observe({}, at=75.0)
    assert only(effects, Look).name == "new"


def test_what_waits_for_room_grows_once_there_is_some(control: Sized) -> None:
    control.load("old", "c1", asked=request("old", scaling=SLEEPER))
    prepare = only(control.look("old", 9 * GIB, view("n1", available_bytes=11 * GIB)), PrepareApp)
    control.feed(AppPrepared(prepare.app, prepare.plan, 3.0))
    control.feed(ReplicaReported(prepare.app, replica("r-old", since=3.0)))
    control.load("new", "c2", asked=request("new", evict="idle"))
    control.look("new", 9 * GIB, view("n1", available_bytes=2 * GIB), at=10.0 + IDLE_S)
    assert none(control.feed(ScaleAsked("new", 2, None, "c3", 72.0)), Look), "there is no room yet"
    assert control.state.models["new"].wanted == 2
    assert only(control.observe({}, at=75.0), Look).request.replicas == 2


def test_what_shrinks_to_what_it_has_has_no_setbacks(control: Sized) -> None:
    control.ready()
    control.feed(ScaleAsked("small", 2, None, "c2", 20.0))
    control.look("small", 100 * GIB, at=21.0)
    assert control.state.models["small"].setbacks == 1
    control.feed(ScaleAsked("small", 1, None, "c3", 22.0))
    assert control.state.models["small"].setbacks == 0


def test_nodes_that_do_not_answer_are_asked_again_before_anybody_is_refused(control: Sized) -> None:
    control.load()
    for _ in range(MAX_LOOKS):
        attempt = control.state.models["small"].attempt
        control.feed(LookFailed("small", attempt, NotReady("no node of the cluster answers"), 5.0))
        assert not control.answers()
        effects = control.observe({}, at=20.0)
        assert only(effects, Look).name == "small"
    attempt = control.state.models["small"].attempt
    control.feed(LookFailed("small", attempt, NotReady("no node of the cluster answers"), 25.0))
    assert isinstance(control.answers()["c1"].error, NotReady)


def test_a_refusal_waits_for_the_nodes_that_were_silent(control: Sized) -> None:
    control.feed(NodesObserved({"n1": "one", "n2": "two"}, 1.0))
    control.load()
    attempt = control.state.models["small"].attempt
    refused = control.look("small", 100 * GIB, view("n1"))
    assert only(refused, Answer).error is not None, "all have answered: this is the end"
    other = Sized()
    other.load()
    attempt = other.state.models["small"].attempt
    other.silent("small", attempt, 100 * GIB)
    assert not other.answers()
    other.observe({}, at=30.0)
    other.silent("small", other.state.models["small"].attempt, 100 * GIB)
    assert isinstance(other.answers()["c1"].error, PlacementRefused)


def test_what_is_kept_warm_is_there_beyond_the_load_and_not_beyond_the_most(control: Sized) -> None:
    control.loaded({**RULE, "keep_warm": 1})
    slots = control.state.models["small"].live[0].plan.options.slots
    assert control.sizes() == (2, 2), "one for the load, one in hand"
    control.at(20.0, slots + 1)
    control.at(25.0, slots + 1)
    control.grow(at=26.0)
    assert control.sizes() == (3, 3), "two for the load, one in hand"
    control.at(30.0, 9 * slots)
    control.at(35.0, 9 * slots)
    assert control.sizes() == (3, 3), "more it may not have"


def test_what_is_pinned_does_not_make_room(control: Sized) -> None:
    control.load("old", "c1", asked=request("old", pinned=True))
    prepare = only(control.look("old", 9 * GIB, view("n1", available_bytes=11 * GIB)), PrepareApp)
    control.feed(AppPrepared(prepare.app, prepare.plan, 3.0))
    control.feed(ReplicaReported(prepare.app, replica("r-old", since=3.0)))
    control.load("new", "c2", asked=request("new", evict="idle"))
    full = view("n1", available_bytes=2 * GIB)
    control.look("new", 9 * GIB, full, at=10.0 + IDLE_S)
    assert control.phase("old") is Phase.READY
    assert isinstance(control.answers()["c2"].error, PlacementRefused)


def test_what_a_smaller_number_leaves_over_is_stopped_by_the_next_life(control: Sized) -> None:
    """Control may die after it has written the number down, and before it has stopped anything."""
    control.ready()
    control.feed(ScaleAsked("small", 3, None, "c9", 50.0))
    control.grow(at=51.0)
    control.effects.clear()
    control.feed(ScaleAsked("small", 1, None, "c10", 60.0))
    record = next(effect for effect in control.effects if isinstance(effect, Remember)).record
    running = {app.name: ServeState.RUNNING for app in record.apps}
    other = Sized(Restored((record,), {}, running, "life2", 300.0))
    assert len(running) == 3
    assert other.sizes() == (1, 1)
    assert len([effect for effect in other.effects if isinstance(effect, StopApp)]) == 2
