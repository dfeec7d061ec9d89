"""Control against a world that misbehaves: lost and late reports, crashes, restarts between any two steps.

The world is simulated, control's code is the real one. Every run is decided by its seed.
"""

import random
from dataclasses import dataclass, field

import pytest

from tests.serving.builders import GIB, facts, failure, inventory, replica, request
from xgen_ray.errors import BadModelFile
from xgen_ray.schema import Phase
from xgen_ray.serving.machine import step
from xgen_ray.serving.state import (
    Answer,
    CancelResolve,
    ControlState,
    Effect,
    Event,
    Forget,
    LoadAsked,
    PoolsObserved,
    PoolState,
    Publish,
    Record,
    Remember,
    ReplicaReported,
    Resolve,
    Restored,
    SourceFailed,
    SourceResolved,
    StartPool,
    StopPool,
    UnloadAsked,
)

NAMES = ("a", "b", "c")
SEEDS = 300
STEPS = 120
# Long enough for every start, stop and report that is under way to come to its end.
QUIET_STEPS = 400


@dataclass
class Pool:
    """A Serve application of the world. It keeps one replica alive until it is told to stop."""

    model: str
    state: PoolState = PoolState.STARTING
    replica_id: str = ""
    starts: int = 0
    fails_to_start: bool = False


@dataclass
class World:
    rng: random.Random
    state: ControlState = field(default_factory=ControlState)
    registry: dict[str, Record] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    resolving: list[Resolve] = field(default_factory=list)
    # Events on their way to control; a restart loses them.
    inbox: list[Event] = field(default_factory=list)
    now: float = 0.0
    lives: int = 0
    callers: int = 0
    open_calls: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    # Names by what the last acknowledged operation made of them.
    promised: dict[str, bool] = field(default_factory=dict)
    asked: dict[str, tuple[str, bool]] = field(default_factory=dict)
    faults: bool = True

    def begin_life(self) -> None:
        self.lives += 1
        self.inbox.clear()
        self.resolving.clear()
        for caller in self.open_calls:
            # Its connection broke: it cannot know, so nothing is promised about that name any more.
            self.promised.pop(self.asked[caller][0], None)
        self.open_calls.clear()
        self.state = ControlState()
        seen = {name: pool.state for name, pool in self.pools.items()}
        self.feed(Restored(tuple(self.registry.values()), {}, seen, f"life{self.lives}", self.now))

    def feed(self, event: Event) -> None:
        self.state, effects = step(self.state, event)
        for effect in effects:
            if self.faults and self.rng.random() < 0.005:
                # Control dies between two effects.
                self.begin_life()
                return
            self.carry_out(effect)

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case Remember(record=record):
                self.registry[record.name] = record
            case Forget(name=name):
                self.registry.pop(name, None)
            case Resolve():
                self.resolving.append(effect)
            case CancelResolve(name=name, attempt=attempt):
                self.resolving = [
                    other for other in self.resolving if (other.name, other.attempt) != (name, attempt)
                ]
            case StartPool(pool=pool, name=name):
                assert pool not in self.started, "a pool name is used once"
                self.started.add(pool)
                fails = self.faults and self.rng.random() < 0.2
                self.pools[pool] = Pool(name, fails_to_start=fails)
            case StopPool(pool=pool):
                lost = self.faults and self.rng.random() < 0.1
                if pool in self.pools and not lost:
                    self.pools[pool].state = PoolState.STOPPING
            case Answer(caller=caller, name=name, error=error):
                assert caller not in self.answered, "every caller is answered once"
                self.answered.add(caller)
                self.open_calls.discard(caller)
                _, is_load = self.asked[caller]
                if error is None:
                    self.promised[name] = is_load
                elif is_load:
                    self.promised.pop(name, None)
            case Publish():
                pass

    def act(self) -> None:
        """One thing happens."""
        self.now += self.rng.random()
        action = self.rng.choices(
            [self.deliver, self.observe, self.resolve, self.run_pool, self.ask, self.crash, self.restart],
            weights=[30, 10, 15, 25, 10, 4 if self.faults else 0, 1 if self.faults else 0],
        )[0]
        action()

    def deliver(self) -> None:
        if self.inbox:
            self.feed(self.inbox.pop(self.rng.randrange(len(self.inbox)) if self.faults else 0))

    def observe(self) -> None:
        # A look is a snapshot: it may be delivered after the world has moved on.
        alive = {
            name: frozenset({pool.replica_id} if pool.replica_id else ())
            for name, pool in self.pools.items()
            if not self.faults or self.rng.random() < 0.7
        }
        states = {name: pool.state for name, pool in self.pools.items()}
        for name, ids in alive.items():
            for replica_id in ids:
                self.inbox.append(ReplicaReported(name, replica(replica_id, since=self.now)))
        self.inbox.append(PoolsObserved(states, {}, alive, self.now))

    def resolve(self) -> None:
        if not self.resolving:
            return
        effect = self.resolving.pop(0)
        if self.faults and self.rng.random() < 0.1:
            error = BadModelFile("the file went away")
            self.inbox.append(SourceFailed(effect.name, effect.attempt, error, self.now))
            return
        size = 100 * GIB if self.faults and self.rng.random() < 0.1 else 100 * 2**20
        found = facts(effect.name, size)
        self.inbox.append(SourceResolved(effect.name, effect.attempt, found, inventory(), self.now))

    def run_pool(self) -> None:
        if not self.pools:
            return
        name = self.rng.choice(sorted(self.pools))
        pool = self.pools[name]
        if pool.state is PoolState.STOPPING:
            del self.pools[name]
            return
        if pool.replica_id:
            return
        pool.starts += 1
        if pool.fails_to_start and pool.starts < 3:
            self.report(
                ReplicaReported(name, replica(f"{name}-{pool.starts}", "failed"), failure(at=self.now))
            )
            return
        pool.state, pool.replica_id = PoolState.RUNNING, f"{name}-{pool.starts}"
        self.report(ReplicaReported(name, replica(pool.replica_id, since=self.now)))

    def report(self, event: ReplicaReported) -> None:
        lost = self.faults and self.rng.random() < 0.2
        twice = self.faults and self.rng.random() < 0.1
        self.inbox += [event] * (0 if lost else 2 if twice else 1)

    def ask(self) -> None:
        if not self.faults:
            return
        self.callers += 1
        caller, name = f"c{self.callers}", self.rng.choice(NAMES)
        is_load = self.rng.random() < 0.65
        self.asked[caller] = (name, is_load)
        self.open_calls.add(caller)
        if is_load:
            self.feed(LoadAsked(name, request(name), caller, self.now))
        else:
            self.feed(UnloadAsked(name, caller, self.now))

    def crash(self) -> None:
        alive = [name for name, pool in self.pools.items() if pool.replica_id]
        if alive:
            name = self.rng.choice(alive)
            pool = self.pools[name]
            self.report(ReplicaReported(name, replica(pool.replica_id, "failed"), failure(at=self.now)))
            pool.replica_id = ""
            if pool.state is not PoolState.STOPPING:
                pool.state = PoolState.UNHEALTHY

    def restart(self) -> None:
        self.begin_life()

    def settle(self) -> None:
        """The faults end; everything under way comes to its end."""
        self.faults = False
        for pool in self.pools.values():
            pool.fails_to_start = False
        for _ in range(QUIET_STEPS):
            self.act()
        for _ in range(5):
            self.observe()
            while self.inbox:
                self.deliver()
            for _ in range(20):
                self.resolve()
                self.run_pool()


@pytest.mark.parametrize("block", range(6))
def test_whatever_happens_control_comes_to_rest_with_its_promises_kept(block: int) -> None:
    for seed in range(block * SEEDS // 6, (block + 1) * SEEDS // 6):
        world = World(random.Random(seed))
        world.begin_life()
        for _ in range(STEPS):
            world.act()
        world.settle()
        check(world, seed)


def check(world: World, seed: int) -> None:
    models = world.state.models
    told = f"seed {seed}: " + ", ".join(f"{m.name} {m.phase.value} ({m.reason})" for m in models.values())
    assert world.open_calls == set(), f"nobody is left waiting; {told}"
    at_rest = {Phase.READY, Phase.FAILED}
    assert all(model.phase in at_rest for model in models.values()), told
    assert all(model.reason for model in models.values() if model.phase is Phase.FAILED), told
    owned = {model.pool for model in models.values() if model.phase is Phase.READY}
    assert set(world.pools) == owned, f"what runs is what was asked for; {told}; runs: {world.pools}"
    remembered = set(world.registry)
    assert {name for name, model in models.items() if model.phase is Phase.READY} <= remembered, told
    assert remembered <= set(models), told
    for name, loaded in world.promised.items():
        if loaded:
            assert name in models, f"{name} was loaded and is lost; {told}"
            assert models[name].phase is Phase.READY or models[name].proven, told
        else:
            assert name not in models, f"{name} was unloaded and is back; {told}"
