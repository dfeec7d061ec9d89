"""Several pools that serve one name: what routers, clients and the load on them make of it."""

from dataclasses import replace

import pytest

from tests.serving.builders import GIB, radeon, replica, request, view
from tests.serving.machine_builders import Control, only
from tests.serving.test_sizing import LOAD_S, RULE, SLEEPER, Sized
from xgen_ray.errors import BadModelFile, EngineFailed
from xgen_ray.placement import NodeDemand
from xgen_ray.schema import LoadRequest, Phase
from xgen_ray.serving.effects import Look, PrepareApp
from xgen_ray.serving.events import (
    AppPrepared,
    LookFailed,
    PacesReported,
    ReplicaReported,
    UnloadAsked,
    UseReported,
    WakeAsked,
)
from xgen_ray.serving.routes import routes_of
from xgen_ray.serving.state import Awaited


def wish(**changes: object) -> LoadRequest:
    return request("small", **changes)


def ready(control: Control, name: str, asked: LoadRequest, replica_id: str) -> None:
    control.load(name, f"caller-{name}", asked=asked)
    pool = control.place(name)
    control.feed(ReplicaReported(pool, replica(replica_id)))


@pytest.fixture
def control() -> Sized:
    return Sized()


def test_a_wish_is_known_by_name_and_pool() -> None:
    assert LoadRequest(model="/models/small.gguf", name="m").loaded_as == "m"
    assert LoadRequest(model="/models/small.gguf", name="m", pool="apu").loaded_as == "m@apu"
    assert LoadRequest(model="/models/small.gguf", pool="apu").loaded_as == "small@apu"


def test_the_name_reaches_every_pool_and_a_pool_its_own(control: Sized) -> None:
    ready(control, "m@a", wish(pool="a"), "in-a")
    ready(control, "m@b", wish(pool="b"), "in-b")
    assert control.urls("m") == ["http://127.0.0.1/in-a", "http://127.0.0.1/in-b"]
    assert control.urls("m@a") == ["http://127.0.0.1/in-a"]
    assert control.urls("m@b") == ["http://127.0.0.1/in-b"]
    assert control.urls("m@llama-server-cpu") == control.urls("m")
    routes = control.state.table.routes
    assert [name for name, route in routes.items() if route.listed] == ["m"], "clients see one model"
    assert [pool.name for pool in routes["m"].model.pools] == ["a", "b"]
    assert {engine.pool for engine in routes["m"].engines} == {"a", "b"}


def test_a_pool_without_a_name_beside_one_that_has_one(control: Sized) -> None:
    ready(control, "m", wish(), "plain")
    ready(control, "m@b", wish(pool="b"), "in-b")
    assert control.urls("m") == ["http://127.0.0.1/plain", "http://127.0.0.1/in-b"]
    assert {engine.pool for engine in control.state.table.routes["m"].engines} == {"llama-server-cpu", "b"}


def test_a_pool_that_fails_leaves_the_name_ready(control: Sized) -> None:
    ready(control, "m@a", wish(pool="a"), "in-a")
    control.load("m@b", "c2", asked=wish(pool="b"))
    attempt = control.state.models["m@b"].attempt
    control.feed(LookFailed("m@b", attempt, EngineFailed("broken"), 5.0))
    routes = control.state.table.routes
    assert routes["m"].phase is Phase.READY
    assert routes["m@b"].phase is Phase.FAILED
    assert routes["m"].model.ready


def test_of_pools_that_have_failed_one_that_is_tried_again_speaks_for_the_name(control: Sized) -> None:
    control.load("m@a", asked=wish(pool="a"))
    control.feed(LookFailed("m@a", control.state.models["m@a"].attempt, BadModelFile("no magic"), 5.0))
    ready(control, "m@b", wish(pool="b"), "in-b")
    control.die(control.state.models["m@b"].live[0].name, "canary_failed", replica_id="in-b")
    control.look("m@b")
    assert control.phase("m@a") is control.phase("m@b") is Phase.FAILED
    assert control.state.table.routes["m"].will_retry
    assert not control.state.table.routes["m@a"].will_retry


def test_a_pool_that_has_failed_does_not_keep_another_asleep(control: Sized) -> None:
    ready(control, "m@a", wish(pool="a"), "in-a")
    ready(control, "m@b", wish(pool="b", scaling=SLEEPER), "in-b")
    control.at(200.0, 0)
    assert control.phase("m@b") is Phase.SLEEPING
    control.die(control.state.models["m@a"].live[0].name, "bad_model_file", 201.0, "in-a")
    assert control.state.table.routes["m"].phase is Phase.SLEEPING
    effects = control.feed(WakeAsked(frozenset({"m"}), 210.0))
    assert only(effects, Look).name == "m@b"


def test_how_busy_engines_are_is_told_only_where_there_is_a_choice(control: Sized) -> None:
    ready(control, "m@a", wish(pool="a"), "in-a")
    version = control.state.table.version
    control.at(20.0, 3, "m@a")
    engine = control.state.table.routes["m"].engines[0]
    assert engine.load is None
    stamp = control.state.table.version
    control.at(22.0, 1, "m@a")
    assert control.state.table.version == stamp, f"no router is woken for it (first version: {version})"


def test_a_backend_is_a_name_as_long_as_a_pool_has_it(control: Sized) -> None:
    by_cpu = {"backend": "llama-server-cpu"}
    control.load("m@a", "c1", asked=wish(pool="a", options=by_cpu, scaling=SLEEPER))
    routes = control.state.table.routes
    assert routes["m@llama-server-cpu"].phase is Phase.RESOLVING
    control.load("m@b", "c2", asked=wish(pool="b"))
    app = control.place("m@b")
    assert control.state.table.routes["m@llama-server-cpu"].phase is Phase.LOADING
    control.feed(ReplicaReported(app, replica("in-b")))
    assert control.urls("m@llama-server-cpu") == ["http://127.0.0.1/in-b"]
    control.die(app, "crashed", 15.0, "in-b")
    restarting = control.state.table.routes["m@llama-server-cpu"]
    assert (restarting.phase, restarting.engines) == (Phase.RECOVERING, ())


def on_gpu(control: Sized) -> None:
    """A pool that serves by another backend than the CPU's."""
    control.load("m@b", "c2", asked=wish(pool="b", options={"backend": "llama-server-vulkan"}))
    app = control.place("m@b", 100 * 2**20, view("n1", gpus=[radeon()]))
    control.feed(ReplicaReported(app, replica("in-b")))


def test_a_backend_that_was_asked_for_is_a_name_in_its_sleep(control: Sized) -> None:
    by_cpu = {"backend": "llama-server-cpu"}
    control.load("m@a", "c1", asked=wish(pool="a", options=by_cpu, scaling=SLEEPER))
    control.grow("m@a", at=10.0)
    on_gpu(control)
    control.at(111.0, 0, "m@a")
    asleep = control.state.table.routes["m@llama-server-cpu"]
    assert (asleep.phase, asleep.wakes, asleep.listed) == (Phase.SLEEPING, True, False)
    assert control.state.table.routes["m"].model.pools[0].backends == ("llama-server-cpu",)
    assert wakes(control, 120.0, "m@llama-server-vulkan") == []
    assert wakes(control, 120.0, "m@llama-server-cpu") == ["m@a"], "though another pool serves"


def test_a_backend_that_nobody_knows_of_wakes_what_may_have_it(control: Sized) -> None:
    control.load("m@a", "c1", asked=wish(pool="a", scaling=SLEEPER))
    control.grow("m@a", at=10.0)
    on_gpu(control)
    control.at(111.0, 0, "m@a")
    assert "m@llama-server-cpu" not in control.state.table.routes
    assert wakes(control, 120.0, "m@llama-server-cpu") == ["m@a"]
    assert wakes(control, 120.2, "m@llama-server-cpu") == []


def test_the_pool_without_a_name_is_woken_by_itself(control: Sized) -> None:
    for name, asked in (("m", wish(scaling=SLEEPER)), ("m@b", wish(pool="b", scaling=SLEEPER))):
        control.load(name, f"caller-{name}", asked=asked)
        control.grow(name, at=10.0)
    control.at(111.0, 0, "m")
    assert wakes(control, 120.0, "m@b") == ["m@b"]
    assert wakes(control, 121.0) == [], "one is on its way"
    assert wakes(control, 122.0, "m@") == ["m"]


def grown(control: Sized, name: str) -> int:
    return control.state.models[name].wanted


def pools(control: Sized, cheap: dict[str, float], dear: dict[str, float]) -> None:
    for name, rule in (("m@cheap", cheap), ("m@dear", dear)):
        control.load(name, f"caller-{name}", asked=wish(pool=name[2:], scaling=rule))
        control.grow(name, at=10.0)
        assert control.phase(name) is Phase.READY


def test_the_cheapest_pool_grows_first_and_the_next_when_that_is_full(control: Sized) -> None:
    pools(control, {**RULE, "max_replicas": 2, "cost": 1.0}, {**RULE, "cost": 5.0})
    control.at(20.0, 99, "m@dear")
    control.at(25.0, 99, "m@dear")
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (2, 2), "one more there, the rest here"
    control.grow("m@cheap", at=26.0)
    control.grow("m@dear", at=26.0)
    control.at(30.0, 99, "m@dear")
    control.at(35.0, 99, "m@dear")
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (2, 3)


def test_what_is_on_its_way_in_another_pool_is_not_asked_for_again(control: Sized) -> None:
    pools(control, {**RULE, "cost": 1.0}, {**RULE, "cost": 5.0})
    slots = control.state.models["m@dear"].live[0].plan.options.slots
    control.passes(20.0, 140.0, slots + 1, "m@dear")
    assert len(control.started) == 1
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (2, 1)
    assert control.state.models["m@cheap"].ready == 1, "it still loads"
    (began,) = control.started.values()
    control.passes(140.0, began + LOAD_S + 1.0, slots + 1, "m@dear")
    assert control.state.models["m@cheap"].ready == 2
    # It takes its share now.
    control.passes(began + LOAD_S + 1.0, began + LOAD_S + 60.0, 1, "m@dear")
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (2, 1)
    assert len(control.started) == 1
    control.passes(began + LOAD_S + 60.0, began + LOAD_S + 62.0, 1, "m@dear")
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (1, 1), "nobody needs it any more"


def test_a_sleeper_that_a_load_wakes_counts_as_on_its_way(control: Sized) -> None:
    pools(control, {**SLEEPER, "cost": 1.0}, {**RULE, "cost": 5.0})
    control.at(111.0, 0, "m@cheap")
    slots = control.state.models["m@dear"].live[0].plan.options.slots
    control.passes(120.0, 240.0, slots + 1, "m@dear")
    assert len(control.started) == 1
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (1, 1)
    (began,) = control.started.values()
    control.passes(240.0, began + LOAD_S + 1.0, slots + 1, "m@dear")
    assert control.phase("m@cheap") is Phase.READY
    control.passes(began + LOAD_S + 1.0, began + LOAD_S + 60.0, slots, "m@dear")
    assert len(control.started) == 1


def test_more_than_is_on_its_way_is_asked_for(control: Sized) -> None:
    pools(control, {**RULE, "cost": 1.0}, {**RULE, "cost": 5.0})
    slots = control.state.models["m@dear"].live[0].plan.options.slots
    control.passes(20.0, 40.0, slots + 1, "m@dear")
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (2, 1)
    control.passes(40.0, 60.0, 2 * slots + 1, "m@dear")
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (3, 1)
    assert len(control.started) == 2


def test_a_node_is_waited_for_while_the_load_on_another_pool_asks_for_it(control: Sized) -> None:
    pools(control, {**RULE, "cost": 1.0}, {**RULE, "cost": 5.0})
    slots = control.state.models["m@dear"].live[0].plan.options.slots
    control.at(20.0, slots + 1, "m@dear")
    control.at(25.0, slots + 1, "m@dear")
    waits = replace(
        control.state.models["m@cheap"],
        looking=False,
        shortfall="waiting for a node",
        awaited=Awaited(NodeDemand({}), 26.0),
        retry_at=9999.0,
    )
    control.state = replace(control.state, models={**control.state.models, "m@cheap": waits})
    for second in range(27, 200):
        control.at(second, slots + 1, "m@dear")
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (2, 1)
    control.at(200.0, 1, "m@dear")
    control.at(260.0, 1, "m@dear")
    assert (grown(control, "m@cheap"), grown(control, "m@dear")) == (1, 1), "nobody asks for it any more"
    assert control.state.models["m@cheap"].awaited is None


def test_what_found_no_place_is_not_on_its_way(control: Sized) -> None:
    pools(control, {**RULE, "cost": 1.0}, {**RULE, "cost": 5.0})
    slots = control.state.models["m@dear"].live[0].plan.options.slots
    control.at(20.0, slots + 1, "m@dear")
    control.at(25.0, slots + 1, "m@dear")
    control.look("m@cheap", 100 * GIB, at=26.0)
    assert control.state.models["m@cheap"].shortfall
    control.at(27.0, slots + 1, "m@dear")
    control.at(32.0, slots + 1, "m@dear")
    assert grown(control, "m@dear") == 2, "the next one takes it"


def test_a_first_load_beside_it_keeps_no_pool_from_growing(control: Sized) -> None:
    """It may download for an hour, and may never have worked."""
    ready(control, "m@old", wish(pool="old", scaling=RULE), "in-old")
    control.load("m@new", "c2", asked=wish(pool="new", replicas=2))
    slots = control.state.models["m@old"].live[0].plan.options.slots
    control.at(20.0, slots + 1, "m@old")
    control.at(25.0, slots + 1, "m@old")
    assert grown(control, "m@old") == 2


def test_a_cheap_pool_that_sleeps_is_woken_before_a_dear_one_grows(control: Sized) -> None:
    pools(control, {**SLEEPER, "cost": 1.0}, {**RULE, "cost": 5.0})
    control.at(111.0, 0, "m@cheap")
    assert control.phase("m@cheap") is Phase.SLEEPING
    control.at(120.0, 99, "m@dear")
    effects_before = len(control.effects)
    control.at(125.0, 99, "m@dear")
    looks = [effect for effect in control.effects[effects_before:] if isinstance(effect, Look)]
    assert {look.name for look in looks} == {"m@cheap"}


def test_a_request_for_the_name_wakes_one_pool(control: Sized) -> None:
    pools(control, {**SLEEPER, "cost": 1.0}, {**SLEEPER, "cost": 5.0})
    control.at(111.0, 0, "m@cheap")
    control.at(111.0, 0, "m@dear")
    assert {control.phase("m@cheap"), control.phase("m@dear")} == {Phase.SLEEPING}
    assert only(control.feed(WakeAsked(frozenset({"m"}), 120.0)), Look).name == "m@cheap"
    assert only(control.feed(WakeAsked(frozenset({"m@dear"}), 121.0)), Look).name == "m@dear"


def asleep(control: Sized, cheap: dict[str, float] | None = None) -> None:
    """Two pools of a name that both sleep."""
    pools(control, {**SLEEPER, "cost": 1.0, **(cheap or {})}, {**SLEEPER, "cost": 5.0})
    control.at(111.0, 0, "m@cheap")
    assert {control.phase("m@cheap"), control.phase("m@dear")} == {Phase.SLEEPING}


def wakes(control: Sized, at: float, *names: str) -> list[str]:
    """What requests for ``names`` (else the name itself) have control look for a place for."""
    effects = control.feed(WakeAsked(frozenset(names or {"m"}), at))
    return [effect.name for effect in effects if isinstance(effect, Look)]


def fail_look(control: Sized, name: str, at: float) -> None:
    attempt = control.state.models[name].attempt
    control.feed(LookFailed(name, attempt, EngineFailed("no room"), at))


def test_a_pool_that_fails_to_wake_leaves_it_to_the_next(control: Sized) -> None:
    asleep(control)
    assert wakes(control, 120.0) == ["m@cheap"]
    assert not control.state.table.routes["m"].wakes, "one is on its way"
    fail_look(control, "m@cheap", 121.0)
    assert control.phase("m@cheap") is Phase.FAILED
    assert control.state.table.routes["m"].wakes
    assert wakes(control, 121.2) == ["m@dear"]


def test_however_often_a_request_asks_one_pool_is_on_its_way(control: Sized) -> None:
    asleep(control)
    assert wakes(control, 120.0) == ["m@cheap"]
    for tick in range(50):
        assert wakes(control, 120.2 + 0.2 * tick) == []
    prepare = only(control.look("m@cheap", at=131.0), PrepareApp)
    assert wakes(control, 132.0) == []
    control.feed(AppPrepared(prepare.app, prepare.plan, 133.0))
    assert control.phase("m@cheap") is Phase.RECOVERING
    assert wakes(control, 134.0) == []
    control.feed(ReplicaReported(prepare.app, replica("woken", since=135.0)))
    assert control.phase("m@cheap") is Phase.READY
    assert wakes(control, 136.0) == []
    assert control.phase("m@dear") is Phase.SLEEPING


def test_a_pool_that_is_unloaded_does_not_keep_another_from_waking(control: Sized) -> None:
    pools(control, {**SLEEPER, "cost": 1.0}, {**RULE, "cost": 5.0})
    control.at(111.0, 0, "m@dear")
    assert control.phase("m@cheap") is Phase.SLEEPING
    control.feed(UnloadAsked("m@dear", "c9", 120.0))
    assert control.phase("m@dear") is Phase.UNLOADING
    assert control.state.table.routes["m"].wakes
    assert wakes(control, 121.0) == ["m@cheap"]


def test_a_pool_that_waits_for_a_node_does_not_keep_another_from_waking(control: Sized) -> None:
    asleep(control)
    assert wakes(control, 120.0, "m@dear") == ["m@dear"]
    assert not control.state.table.routes["m"].wakes
    model = control.state.models["m@dear"]
    awaiting = replace(model, looking=False, awaited=Awaited(NodeDemand({}), 121.0))
    control.state = replace(control.state, models={**control.state.models, "m@dear": awaiting})
    assert routes_of(control.state.models.values())["m"].wakes, "a node takes minutes"
    assert not routes_of(control.state.models.values())["m@dear"].wakes
    assert wakes(control, 122.0) == ["m@cheap"]


def test_the_pool_without_a_name_is_one_of_them(control: Sized) -> None:
    for name, asked in (("m", wish(scaling=SLEEPER)), ("m@b", wish(pool="b", scaling=SLEEPER))):
        control.load(name, f"caller-{name}", asked=asked)
        control.grow(name, at=10.0)
    control.at(111.0, 0, "m")
    assert wakes(control, 120.0) == ["m"]
    fail_look(control, "m", 121.0)
    assert wakes(control, 122.0) == ["m@b"]


def test_a_pool_that_others_spare_may_sleep(control: Sized) -> None:
    pools(control, {**SLEEPER, "cost": 1.0}, {**SLEEPER, "cost": 5.0})
    control.feed(UseReported({"m@cheap": 110.0}))
    control.at(111.0, 0)
    assert control.phase("m@cheap") is Phase.READY
    assert control.phase("m@dear") is Phase.SLEEPING


def told(control: Sized, at: float, **paces: float) -> None:
    """A router has measured the engines of these pools."""
    figures = {
        key: paces[model.pool_name]
        for model in control.state.models.values()
        for app in model.live
        for key in app.replicas
        if model.pool_name in paces
    }
    control.feed(PacesReported(figures, at))


def grow_by_load(control: Sized, at: float) -> dict[str, int]:
    before = {name: model.wanted for name, model in control.state.models.items()}
    control.at(at, 99, "m@dear")
    control.at(at + 5.0, 99, "m@dear")
    return {name: model.wanted - before[name] for name, model in control.state.models.items()}


def test_what_is_worth_more_grows_first_once_all_pools_are_measured(control: Sized) -> None:
    pools(control, {**RULE, "max_replicas": 8, "cost": 1.0}, {**RULE, "max_replicas": 2, "cost": 5.0})
    told(control, 15.0, dear=50.0)
    cheapest = grow_by_load(control, 20.0)
    assert cheapest["m@cheap"] > 0, "of the cheap one nothing is known yet"
    assert cheapest["m@dear"] == 0


def test_speed_per_cost_decides_where_it_is_known(control: Sized) -> None:
    pools(control, {**RULE, "max_replicas": 8, "cost": 1.0}, {**RULE, "max_replicas": 3, "cost": 5.0})
    told(control, 15.0, dear=50.0, cheap=1.0)
    assert grow_by_load(control, 20.0)["m@dear"] == 2, "ten times the worth, at five times the cost"


def test_a_fast_pool_that_costs_too_much_waits(control: Sized) -> None:
    pools(control, {**RULE, "max_replicas": 3, "cost": 1.0}, {**RULE, "max_replicas": 3, "cost": 60.0})
    told(control, 15.0, dear=50.0, cheap=1.0)
    assert grow_by_load(control, 20.0) == {"m@cheap": 2, "m@dear": 0}


def test_of_two_that_sleep_the_one_that_was_worth_more_wakes(control: Sized) -> None:
    pools(control, {**SLEEPER, "cost": 1.0}, {**SLEEPER, "cost": 5.0})
    told(control, 15.0, dear=50.0, cheap=1.0)
    control.at(120.0, 0)
    assert {control.phase("m@cheap"), control.phase("m@dear")} == {Phase.SLEEPING}
    assert only(control.feed(WakeAsked(frozenset({"m"}), 130.0)), Look).name == "m@dear"


def test_what_an_unloaded_model_was_worth_is_forgotten(control: Sized) -> None:
    pools(control, {**RULE}, {**RULE})
    told(control, 15.0, dear=50.0, cheap=1.0)
    assert {place.model for place in control.state.paces} == {"m@cheap", "m@dear"}
    control.feed(UnloadAsked("m@dear", "c9", 30.0))
    control.observe({}, at=40.0)
    told(control, 41.0, cheap=1.0)
    assert {place.model for place in control.state.paces} == {"m@cheap"}
