"""Routes are made anew for what has changed alone, and are what they would be if all of them were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.builders import failure, replica, request
from tests.serving.machine_builders import Control
from xgen_ray.schema import LoadRequest
from xgen_ray.serving.effects import PrepareApp
from xgen_ray.serving.events import AppPrepared, LoadAsked, ReplicaReported, RestartAsked, UnloadAsked
from xgen_ray.serving.routes import routes_of
from xgen_ray.serving.traffic import served_as

NAMES = ("m", "m@a", "m@b", "n@a", "o")
DEEDS = ("load", "place", "ready", "ready", "die", "restart", "unload", "gone")


def wish(name: str) -> LoadRequest:
    pool = name.partition("@")[2] or None
    options = {"backend": "llama-server-cpu"} if pool == "b" else {}
    return LoadRequest(model="/models/small.gguf", name=served_as(name), pool=pool, options=options)


class Fleet(Control):
    """Does what it is told to a model, if that makes sense of it."""

    def do(self, deed: str, name: str, number: int) -> None:
        model = self.state.models.get(name)
        if deed == "load":
            self.feed(LoadAsked(name, wish(name), f"c{number}", number))
        elif deed == "restart":
            self.feed(RestartAsked(served_as(name), f"c{number}", number))
        elif deed == "unload":
            self.feed(UnloadAsked(name, f"c{number}", number))
        elif deed == "gone":
            self.observe({}, at=number)
        elif model is not None and deed == "place" and model.looking:
            for effect in self.look(name):
                if isinstance(effect, PrepareApp):
                    self.feed(AppPrepared(effect.app, effect.plan, number))
        elif model is not None and model.live:
            key = f"{model.live[0].name}-{number}"
            dead = failure("crashed", number) if deed == "die" else None
            state = "failed" if deed == "die" else "ready"
            self.feed(ReplicaReported(model.live[0].name, replica(key, state, number), dead))


@given(st.lists(st.tuples(st.sampled_from(DEEDS), st.sampled_from(NAMES)), max_size=60))
def test_they_are_what_all_of_them_made_anew_would_be(deeds: list[tuple[str, str]]) -> None:
    fleet = Fleet()
    for number, (deed, name) in enumerate(deeds, 10):
        before = fleet.state.table.routes
        fleet.do(deed, name, number)
        routes = fleet.state.table.routes
        assert routes == routes_of(fleet.state.models.values())
        if deed not in ("gone", "restart"):
            others = {key for key in routes if served_as(key) != served_as(name)}
            assert all(routes[key] is before[key] for key in others)


@pytest.mark.parametrize(("args", "caches"), [((), True), (("--no-cache-prompt",), False)])
def test_routers_are_told_whether_an_engine_keeps_the_beginnings_of_prompts(
    args: tuple[str, ...], caches: bool
) -> None:
    fleet = Fleet()
    fleet.load("m", asked=request("m", options={"extra_args": args}))
    fleet.feed(ReplicaReported(fleet.place("m"), replica()))
    (engine,) = fleet.state.table.routes["m"].engines
    assert engine.caches_prefixes is caches


def test_a_name_keeps_its_place_in_the_list() -> None:
    fleet = Fleet()
    for name in ("m", "n@a", "o"):
        fleet.ready(name, f"c-{name}")
    fleet.do("die", "m", 20)
    listed = [name for name, route in fleet.state.table.routes.items() if route.listed]
    assert listed == ["m", "n", "o"]
