"""Control against a world that misbehaves: lost and late reports, crashes, lost nodes, restarts between any
two steps. A seed that fails prints what happened and can be run again:

    python -m tests.serving.test_simulation FIRST_SEED COUNT
"""

import random
import sys

import pytest

from tests.serving.builders import facts
from tests.serving.simulated_fleet import World
from xgen_ray.console import EventKind
from xgen_ray.placement import FleetRefusal
from xgen_ray.schema import Phase
from xgen_ray.serving.events import LookDone, WakeAsked
from xgen_ray.serving.leases import LeaseState
from xgen_ray.serving.placing import dry_run
from xgen_ray.serving.state import AppPhase, Fleet, Model
from xgen_ray.serving.wishes import missing_replicas

SEEDS = 2000
BLOCKS = 20
# Of so many fleets at rest one is drained and another is scaled; all of them are before, in the turmoil.
SHARE = 6


def made(seed: int) -> World:
    # Most fleets are small: that is where memory is scarce and everything meets everything.
    shape = random.Random(seed)
    nodes = shape.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 8)) if seed % 100 else shape.randrange(20, 101)
    return World.of(seed, nodes, names=shape.choice((2, 3, 4, 6)))


def run(seed: int) -> None:
    """One world from its beginning to its rest. Raises AssertionError with what happened in it."""
    world = made(seed)
    try:
        world.begin_life()
        for _ in range(120):
            world.act()
        world.settle(150)
        check(world)
        check_chronicle(world)
        check_names(world)
        check_waking(world)
        if seed % SHARE == 0:
            check_draining(world)
        if seed % SHARE == 1:
            check_scaling(world)
        if world.drained:
            check_reopened(world)
    except Exception as error:
        events = "\n".join(world.told())
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{events}") from error


def check_size(model: Model, told: str) -> None:
    """Nothing has to do anything any more: every model is as small as it may be."""
    scaling = model.request.scaling
    if model.phase is Phase.SLEEPING:
        assert scaling is not None, told
        assert (scaling.min_replicas, model.wanted, model.apps) == (0, 0, {}), told
    elif model.phase is Phase.READY:
        assert scaling is None or (scaling.min_replicas, model.wanted) == (1, 1), told
        assert scaling is not None or model.wanted == model.request.replicas, told
        assert missing_replicas(model) >= 0, f"more runs than is wanted; {told}"


# What an operator takes as the last word on a model.
LAST_WORDS = {
    Phase.READY: EventKind.READY,
    Phase.FAILED: EventKind.FAILED,
    Phase.SLEEPING: EventKind.SLEPT,
}


def check_chronicle(world: World) -> None:
    """What was told of each model last is how it is."""
    events = world.chronicle.events
    assert len({event.id for event in events}) == len(events), "an event's id is its own"
    said = {*LAST_WORDS.values(), EventKind.ASKED, EventKind.WOKE, EventKind.UNLOADED}
    for name, model in world.state.models.items():
        last = next((event for event in events if event.model == name and event.kind in said), None)
        assert last is None or last.kind is LAST_WORDS[model.phase], f"{name} is {model.phase}; told {last}"


def check(world: World) -> None:
    models = world.state.models
    told = ", ".join(f"{m.name} {m.phase.value} ({m.reason})" for m in models.values())
    assert world.callers.open == set(), f"nobody is left waiting; {told}"
    at_rest = (Phase.READY, Phase.FAILED, Phase.SLEEPING)
    assert all(model.phase in at_rest for model in models.values()), told
    for model in models.values():
        check_size(model, told)
    assert not any(model.looking for model in models.values()), told
    assert all(model.reason for model in models.values() if model.phase is Phase.FAILED), told
    for model in models.values():
        if model.phase is Phase.FAILED and model.is_kept:
            # The reasons of what time cannot mend, in this world.
            is_final = "file" in model.reason
            assert (model.retry_at is None) is is_final, f"{model.name}: {model.retry_at}; {told}"
    short = [model for model in models.values() if model.phase is Phase.READY and missing_replicas(model) > 0]
    assert all(model.shortfall and model.retry_at for model in short), (
        f"{told}; without a word on what is missing"
    )
    apps = {app.name: app for model in models.values() for app in model.live}
    assert set(world.apps) == set(apps), f"what runs is what was asked for; {told}; runs: {world.apps}"
    assert all(app.phase is AppPhase.SERVING for app in apps.values()), told
    routed = {engine.replica_id for route in world.state.table.routes.values() for engine in route.engines}
    assert routed == {key for app in world.apps.values() for key in app.replicas}, told
    held = {lease.app for node in world.nodes.values() for lease in node.book.leases.values()}
    assert held == set(apps), f"leases are of what runs; {told}"
    assert all(
        lease.state is LeaseState.SETTLED
        for node in world.nodes.values()
        for lease in node.book.leases.values()
    ), told
    assert not any(model.awaited for model in models.values()), told
    assert not world.wanted_nodes, f"{world.wanted_nodes} are still asked for; {told}"
    idle = [node.node_id for node in world.nodes.values() if node.kind and not node.engines]
    assert not idle, f"nobody needs {idle}, and the autoscaler may not take them back; {told}"
    remembered = set(world.registry)
    kept = (Phase.READY, Phase.SLEEPING)
    assert {name for name, model in models.items() if model.phase in kept} <= remembered, told
    assert remembered <= set(models), told
    check_declared(world, told)
    check_drained(world, told)
    for name, loaded in world.callers.promised.items():
        if loaded:
            # It may have made room for another since, if that one asked for it.
            evicted = name not in models and name in world.callers.evicted
            assert evicted or name in models, f"{name} was loaded and is lost; {told}"
            assert evicted or models[name].phase is Phase.READY or models[name].proven, told
        else:
            assert name not in models, f"{name} was unloaded and is back; {told}"


def check_drained(world: World, told: str) -> None:
    """A drained node is empty, but for what has no other place: and that says so, and goes on serving."""
    state = world.state
    assert state.drained == world.drained, "what is drained is in the registry"
    for node, is_closed in world.callers.closed.items():
        assert (node in state.drained) is is_closed, f"{node}: {is_closed} was answered; {state.drained}"
    fleet = Fleet(tuple(node.view() for node in world.nodes.values()))
    for model in state.models.values():
        assert all(app.leaving is (app.node in state.drained) for app in model.live), told
        if model.leaving:
            assert missing_replicas(model) >= len(model.leaving), f"{model.name} might let go; {told}"
            looked = LookDone("", 0, facts(model.name, world.size_of(model.name)), fleet, world.now)
            place = dry_run(model.request.model_copy(update={"replicas": 1, "scaling": None}), looked, state)
            # The dry run is of a model without a name: it may propose to make room by this very one. And
            # nobody has to leave for a part of what is missing.
            stays = (
                isinstance(place, FleetRefusal)
                or model.name in place.evict
                or (place.evict and missing_replicas(model) > 1)
            )
            assert stays, f"{model.name} could go to {place}; {told}"


def check_draining(world: World) -> None:
    """Of a fleet at rest one node after another is drained, while control dies now and then."""
    for name in world.names:
        world.load(name)
    world.rest(1, pause_s=1.0)
    for _ in range(2):
        busy = sorted({app.node for model in world.state.models.values() for app in model.staying})
        if busy:
            world.order(world.rng.choice(busy), is_closing=True)
            world.mortality = 0.05
            for _ in range(40):
                world.act()
            world.mortality = 0.0
            world.rest(6, pause_s=700.0)
            check(world)


def check_scaling(world: World) -> None:
    """Of a fleet at rest each model gets another number of replicas, while control dies now and then."""
    for name in sorted(world.state.models):
        world.mortality = 0.2
        world.resize(name, None)
        world.mortality = 0.0
    world.rest(6, pause_s=700.0)
    check(world)


def check_reopened(world: World) -> None:
    """Every drain ends, and nothing is left of it."""
    for node in sorted(world.drained):
        world.order(node, is_closing=False)
    world.rest(6, pause_s=700.0)
    assert world.drained == {}, "nothing is drained any more"
    check(world)


def check_declared(world: World, told: str) -> None:
    """What the configuration says is there, as it says it, and nothing that it no longer says."""
    models = world.state.models
    assert {name for name, model in models.items() if model.declared is not None} == set(world.declared), told
    for name, declared in world.declared.items():
        assert models[name].declared == declared, told
        assert models[name].request.options == declared.options, told
        assert name in world.scaled or models[name].request == declared, told
        contexts = {app.plan.options.context for app in models[name].live}
        assert contexts <= {declared.options.context}, f"{name} runs with {contexts}; {told}"


def check_names(world: World) -> None:
    """No model gives its name away, whatever it has come to."""
    for name, model in world.state.models.items():
        if model.is_kept:
            world.load(name, "somebody else's")
            assert world.state.models[name] == model, f"{name} has noticed that its name was asked for"


def check_waking(world: World) -> None:
    """Whatever sleeps comes back for a request, or says why it cannot."""
    asleep = [name for name, model in world.state.models.items() if model.phase is Phase.SLEEPING]
    world.feed(WakeAsked(frozenset(asleep), world.now))
    world.rest(10, pause_s=5.0)
    for name in asleep:
        model = world.state.models[name]
        told = f"{name} is {model.phase.value}: {model.reason}"
        assert model.phase is Phase.READY or (model.phase is Phase.FAILED and model.reason), told


@pytest.mark.simulation
@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_happens_control_comes_to_rest_with_its_promises_kept(block: int) -> None:
    for seed in range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS):
        run(seed)


if __name__ == "__main__":
    first, count = int(sys.argv[1]), int(sys.argv[2])
    for number in range(first, first + count):
        run(number)
    print(f"{count} seeds from {first} on: every promise kept")
