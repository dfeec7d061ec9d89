"""A world for control that misbehaves, decided by its seed: nodes, owners, Serve, replicas, routers.

Control's code and the lease book are the real ones. What is simulated is everything that takes time: a
look, a download, a start. Every fault is drawn from the seed, and ``told`` says everything that happened.
"""

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from tests.serving.builders import GIB, MIB, facts, failure, radeon, replica, request
from tests.serving.simulated_callers import Callers
from tests.serving.simulated_nodes import NODE_TYPES, App, Node
from xgen_ray.errors import BadModelFile, DownloadFailed, NotReady
from xgen_ray.placement import (
    RAM,
    Claim,
    Exclusion,
    NodeType,
    Observation,
    observe,
)
from xgen_ray.schema import LoadRequest, Phase, Scaling
from xgen_ray.serving import leases
from xgen_ray.serving.chronicle import Chronicle, note
from xgen_ray.serving.effects import (
    Answer,
    AskForNodes,
    CancelLook,
    Effect,
    Forget,
    Look,
    PrepareApp,
    Publish,
    Remember,
    RememberDrained,
    RememberLessons,
    StartApp,
    StopApp,
)
from xgen_ray.serving.events import (
    AppPrepared,
    AppRefused,
    AppsObserved,
    DrainAsked,
    DrainLifted,
    Event,
    LoadAsked,
    LookDone,
    LookFailed,
    NodesObserved,
    PacesReported,
    ReplicaReported,
    RestartAsked,
    Restored,
    ScaleAsked,
    UnloadAsked,
    UseReported,
    WakeAsked,
)
from xgen_ray.serving.ladder import NO_LEASE
from xgen_ray.serving.leases import EngineUse, Holder, NoLease
from xgen_ray.serving.machine import step
from xgen_ray.serving.routes import routes_of
from xgen_ray.serving.state import ControlState, Fleet, Record, ServeState
from xgen_ray.serving.supply import nodes_at_rest

# What somebody loads under a name that others use for their model.
OTHER_FILE = "other"
TTL_S = 45.0
GRACE_S = 5.0
DEATHS = (
    "crashed",
    "gpu_page_fault",
    "out_of_memory",
    "killed",
    "canary_failed",
    "bad_model_file",
    "stopped",
)


@dataclass
class World:
    """One run. ``act`` makes one thing happen; ``settle`` ends the faults and lets all come to rest."""

    rng: random.Random
    nodes: dict[str, Node] = field(default_factory=dict)
    state: ControlState = field(default_factory=ControlState)
    chronicle: Chronicle = field(default_factory=Chronicle)
    registry: dict[str, Record] = field(default_factory=dict)
    callers: Callers = field(default_factory=Callers)
    # Which nodes are drained, as the registry has it.
    drained: dict[str, float] = field(default_factory=dict)
    lessons: tuple[tuple[Exclusion, ...], tuple[Observation, ...]] = ((), ())
    apps: dict[str, App] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    preparing: list[PrepareApp] = field(default_factory=list)
    # Events on their way to control; a restart loses them.
    inbox: list[Event] = field(default_factory=list)
    now: float = 1000.0
    lives: int = 0
    started: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    # What the autoscaler may start, and what it was last told.
    types: dict[str, NodeType] = field(default_factory=dict)
    wanted_nodes: dict[str, int] = field(default_factory=dict)
    # When what happened: a sentence, or an event or effect with what comes before it.
    log: list[tuple[float, str, Event | Effect | None]] = field(default_factory=list)
    faults: bool = True
    # How often control dies between two effects.
    mortality: float = 0.003
    names: tuple[str, ...] = ("a", "b", "c")
    # What the configuration says, under names of its own.
    declared: dict[str, LoadRequest] = field(default_factory=dict)
    # Those of them that were scaled by hand since the configuration changed.
    scaled: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, seed: int, nodes: int, names: int) -> "World":
        world = cls(random.Random(seed), names=tuple(f"m{number}" for number in range(names)))
        if world.rng.random() < 0.5:
            world.types, nodes = NODE_TYPES, 1
        for _ in range(nodes):
            world.join()
        return world

    def note(self, text: str, item: Event | Effect | None = None) -> None:
        # Only a seed that fails needs the words, and those of all seeds would take a tenth of the time.
        self.log.append((self.now, text, item))

    def told(self) -> list[str]:
        """Everything that happened, a line each."""
        return [f"{at:9.1f} {text}{'' if item is None else _short(item)}" for at, text, item in self.log]

    def join(self, kind: str = "", name: str = "") -> None:
        node_id = f"n{len(self.nodes)}.{self.rng.randrange(10**6)}"
        gpus = tuple(
            radeon(self.rng.choice((8, 16, 24)) * GIB, number)
            for number in range(self.rng.choice((0, 0, 1, 1, 2)))
        )
        ram = self.rng.choice((8, 16, 32)) * GIB
        # Now and then a node is not what its type declares.
        if kind and self.rng.random() < 0.8:
            gpus = (radeon(48 * GIB, 0),) if kind == "amd" else ()
            ram = 64 * GIB
        self.nodes[node_id] = Node(
            node_id, ram, gpus, self.rng.random() < 0.5, name or f"node-{node_id}", kind
        )
        self.note(f"node {node_id} joins as {self.nodes[node_id].name}: {ram // GIB} GiB, {len(gpus)} GPUs")

    # ---- control -------------------------------------------------------------------------------

    def begin_life(self) -> None:
        self.lives += 1
        self.note(f"control begins life {self.lives}")
        self.inbox.clear()
        self.looks.clear()
        self.preparing.clear()
        self.callers.hang_up()
        self.state = ControlState()
        self.chronicle = Chronicle(self.chronicle.events)
        seen = {name: app.state for name, app in self.apps.items()}
        records = tuple(self.registry.values())
        life = f"life{self.lives}"
        declared = dict(self.declared)
        self.feed(
            Restored(
                records,
                declared,
                seen,
                life,
                self.now,
                *self.lessons,
                node_types=dict(self.types),
                drained=dict(self.drained),
            )
        )

    def feed(self, event: Event) -> None:
        self.note("-> ", event)
        before = self.state
        self.state, effects = step(before, event)
        assert self.state.table.routes == routes_of(self.state.models.values()), f"routes after {event}"
        self.chronicle = note(self.chronicle, before, self.state, self.now)
        self.check_make_before_break(before, event)
        self.check_wishes(before, event, effects)
        for effect in effects:
            if self.rng.random() < self.mortality:
                self.note("control dies between two effects")
                self.begin_life()
                return
            self.carry_out(effect)

    def carry_out(self, effect: Effect) -> None:  # noqa: C901  # one line a kind of effect
        if not isinstance(effect, Publish | Remember | RememberLessons):
            self.note("   ", effect)
        match effect:
            case Remember(record=record):
                self.registry[record.name] = record
            case Forget(name=name):
                self.registry.pop(name, None)
                model = self.state.models.get(name)
                if model is not None and not model.leavers:
                    self.callers.evicted.add(name)
            case RememberLessons(exclusions=exclusions, observations=observations):
                self.lessons = (exclusions, observations)
            case Look():
                self.looks.append(effect)
            case CancelLook(name=name, attempt=attempt):
                self.looks = [other for other in self.looks if (other.name, other.attempt) != (name, attempt)]
            case RememberDrained(drained=drained):
                self.drained = dict(drained)
            case PrepareApp(node_id=node_id):
                at = self.nodes.get(node_id)
                assert at is None or at.name not in self.state.drained, "nothing new goes to a drained node"
                self.preparing.append(effect)
            case StartApp(app=app, name=name, node_id=node_id):
                assert app not in self.started, "an app name is used once"
                self.started.add(app)
                self.apps[app] = App(name, node_id)
            case StopApp():
                self.stop(effect)
            case Answer():
                self.callers.hear(effect)
            case AskForNodes(counts=counts):
                self.wanted_nodes = dict(counts)
            case Publish():
                pass

    def stop(self, effect: StopApp) -> None:
        self.preparing = [one for one in self.preparing if one.app != effect.app]
        if self.faults and self.rng.random() < 0.1:
            self.note("   (lost)")
            return
        if effect.app in self.apps:
            self.apps[effect.app].state = ServeState.STOPPING
        node = self.nodes.get(effect.node_id or "")
        if node is not None:
            node.book = leases.release(node.book, effect.app)

    # ---- what happens --------------------------------------------------------------------------

    def act(self) -> None:
        """One thing happens."""
        self.now += self.rng.random() * 3
        fault = 1 if self.faults else 0
        weights = {
            self.deliver: 30,
            self.observe: 10,
            self.look: 15,
            self.prepare: 15,
            self.run_any: 25,
            self.ask: 10 * fault,
            self.crash: 5 * fault,
            self.restart: 2 * fault,
            self.restart_control: fault,
            self.restart_owner: fault,
            self.lose_node: fault,
            self.gain_node: fault,
            self.use: 2,
            self.wake: 2 * fault,
            self.scale: fault,
            self.autoscale: 4,
            self.apply_configuration: 3 * fault,
            self.drain: 6 * fault,
            self.upgrade_node: fault,
        }
        (action,) = self.rng.choices(list(weights), list(weights.values()))
        action()
        self.tend_books()

    def autoscale(self) -> None:
        """The autoscaler starts what is asked for and not there, and takes back what is idle."""
        there = Counter(node.kind for node in self.nodes.values() if node.kind)
        for kind, count in self.wanted_nodes.items():
            assert count <= self.types[kind].max_workers, "a demand that cannot be met is ignored as a whole"
            if there[kind] < count and not (self.faults and self.rng.random() < 0.3):
                self.join(kind)
                return
        resting = nodes_at_rest(self.state)
        for node in list(self.nodes.values()):
            over = there[node.kind] > self.wanted_nodes.get(node.kind, 0)
            if node.kind and over and node.node_id in resting and self.rng.random() < 0.5:
                assert not node.engines, "a node in use is never idle"
                self.note(f"the autoscaler takes back {node.node_id}")
                self.drop_node(node.node_id)
                return

    def deliver(self) -> None:
        if self.inbox:
            self.feed(self.inbox.pop(self.rng.randrange(len(self.inbox)) if self.faults else 0))

    def observe(self) -> None:
        # A look is a snapshot: it may be delivered after the world has moved on.
        self.inbox.append(NodesObserved(*self.listed()))
        alive = {
            name: frozenset(app.replicas)
            for name, app in self.apps.items()
            if not self.faults or self.rng.random() < 0.7
        }
        for name, ids in alive.items():
            for replica_id in ids:
                told = replica(replica_id, since=self.now)
                busy = self.rng.choice((0, 0, 1, 9)) if self.faults else 0
                status = told.status.model_copy(update={"running": busy})
                self.inbox.append(ReplicaReported(name, replace(told, status=status)))
        states = {name: app.state for name, app in self.apps.items()}
        self.inbox.append(AppsObserved(states, {}, alive, self.now))
        for model in self.state.models.values():
            for app in model.live:
                node = self.nodes.get(app.node_id)
                if node is not None and not (self.faults and self.rng.random() < 0.1):
                    node.book = leases.renew(node.book, (app.name,), self.now + TTL_S)

    def look(self) -> None:
        if not self.looks:
            return
        effect = self.looks.pop(self.rng.randrange(len(self.looks)))
        is_other = effect.request.model == request(OTHER_FILE).model
        if self.faults and self.rng.random() < (0.5 if is_other else 0.08):
            error = self.rng.choice((BadModelFile("the file is torn"), NotReady("no node answers")))
            self.inbox.append(LookFailed(effect.name, effect.attempt, error, self.now))
            return
        found = facts(effect.name, self.size_of(effect.name))
        silent = frozenset(key for key in self.nodes if self.faults and self.rng.random() < 0.05)
        views = [
            replace(node.view(), schedulable=key not in silent, reason="no answer" if key in silent else "")
            for key, node in self.nodes.items()
        ]
        fleet = Fleet(tuple(views), silent=silent)
        self.inbox.append(LookDone(effect.name, effect.attempt, found, fleet, self.now))

    def listed(self) -> tuple[dict[str, str], float, dict[str, str]]:
        names = {key: node.name for key, node in self.nodes.items()}
        return names, self.now, {key: node.kind for key, node in self.nodes.items() if node.kind}

    def size_of(self, name: str) -> int:
        if name not in self.sizes or (self.faults and self.rng.random() < 0.05):
            self.sizes[name] = self.rng.choice((100 * MIB, 3 * GIB, 7 * GIB, 7 * GIB, 14 * GIB, 100 * GIB))
        return self.sizes[name]

    def prepare(self) -> None:
        if not self.preparing:
            return
        effect = self.preparing.pop(self.rng.randrange(len(self.preparing)))
        node = self.nodes.get(effect.node_id)
        if node is None:
            error = NotReady("the node's owner cannot be reached")
            self.inbox.append(AppRefused(effect.app, error, again=True, at=self.now))
            return
        answer = leases.reserve(
            node.book,
            node.ground(),
            effect.app,
            effect.name,
            (effect.plan,),
            now=self.now,
            expires_at=self.now + TTL_S,
        )
        if isinstance(answer, NoLease):
            self.note(f"   no lease for {effect.app}: {answer.message}")
            self.inbox.append(AppRefused(effect.app, NotReady(answer.message), again=True, at=self.now))
            return
        node.book = answer
        if self.faults and self.rng.random() < 0.1:
            # The fetch takes long, or its end is not heard of: control dies or stops it before it is over.
            self.preparing.append(effect)
            return
        if self.faults and self.rng.random() < 0.05:
            gone = DownloadFailed("the hub is away")
            self.inbox.append(AppRefused(effect.app, gone, again=False, at=self.now))
            return
        self.inbox.append(AppPrepared(effect.app, effect.plan, self.now))

    def run_any(self) -> None:
        if self.apps:
            self.run_app(self.rng.choice(sorted(self.apps)))

    def run_app(self, name: str) -> None:
        """Serve takes one step towards what was asked of it."""
        app = self.apps[name]
        node = self.nodes.get(app.node_id)
        if app.state is ServeState.STOPPING:
            for replica_id in list(app.replicas):
                self.end_replica(app, replica_id)
            del self.apps[name]
            return
        if node is None or app.replicas:
            return
        app.starts += 1
        replica_id = f"{name}/{app.starts}"
        answer = leases.claim(node.book, name, Holder(replica_id, app.starts, self.now))
        if isinstance(answer, NoLease):
            self.report(
                ReplicaReported(name, replica(replica_id, "failed", self.now), failure(NO_LEASE, self.now))
            )
            return
        node.book, lease = answer
        app.replicas[replica_id] = lease.lease_id
        node.engines[lease.lease_id] = lease.claims
        if self.faults and self.rng.random() < 0.25:
            self.kill(name, app, replica_id, self.rng.choice(DEATHS))
            return
        app.state = ServeState.RUNNING
        # A model takes the same every time it is started by the same plan.
        factor = (0.8, 0.9, 1.0)[hash_of(app.model) % 3]
        use = tuple(Claim(one.device, int(one.size_bytes * factor)) for one in lease.claims)
        ram = next((one.size_bytes for one in use if one.device == RAM), 0)
        node.measured[lease.lease_id] = use
        node.book = leases.settle(node.book, lease.lease_id, EngineUse(use, ram))
        seen = (observe(lease.plan, "ram", ram),)
        self.report(ReplicaReported(name, replica(replica_id, since=self.now), observations=seen))

    def kill(self, name: str, app: App, replica_id: str, kind: str) -> None:
        self.note(f"   {replica_id} dies: {kind}")
        self.end_replica(app, replica_id)
        if app.state is not ServeState.STOPPING:
            app.state = ServeState.UNHEALTHY
        self.report(ReplicaReported(name, replica(replica_id, "failed", self.now), failure(kind, self.now)))

    def end_replica(self, app: App, replica_id: str) -> None:
        lease_id = app.replicas.pop(replica_id)
        node = self.nodes.get(app.node_id)
        if node is not None:
            node.engines.pop(lease_id, None)
            node.book = leases.holder_died(node.book, lease_id, self.now, GRACE_S)

    def report(self, event: ReplicaReported) -> None:
        lost = self.faults and self.rng.random() < 0.2
        twice = self.faults and self.rng.random() < 0.1
        self.inbox += [event] * (0 if lost else 2 if twice else 1)

    def ask(self) -> None:
        name = self.rng.choice(self.names)
        if self.rng.random() < 0.65:
            # Now and then for another model than the others mean, often one of which the file is torn.
            self.load(name, OTHER_FILE if self.rng.random() < 0.2 else None)
        else:
            self.feed(UnloadAsked(name, self.callers.ask(name, is_load=False), self.now))

    def load(self, name: str, file: str | None = None) -> None:
        evict = "idle" if hash_of(name) % 3 == 0 else "never"
        wish = request(file or name, **scale_of(name), evict=evict)
        self.feed(LoadAsked(name, wish, self.callers.ask(name, is_load=True), self.now))

    def restart(self) -> None:
        """An operator has a model's engines started anew, whatever it is doing."""
        name = self.rng.choice((*self.names, *sorted(self.declared)))
        # A load that has failed is shown, and not kept.
        is_kept = name in self.registry
        before = self.state.models.get(name)
        self.feed(RestartAsked(name, self.callers.ask(name, is_load=None), self.now))
        is_leaving = before is not None and before.phase is Phase.UNLOADING
        assert name in self.state.models or is_leaving or not is_kept, f"{name} is lost by a restart"

    def wake(self) -> None:
        self.inbox.append(WakeAsked(frozenset({self.rng.choice(self.names)}), self.now))

    def scale(self) -> None:
        names = (*self.names, *sorted(self.declared))
        running = tuple(name for name, model in self.state.models.items() if model.live)
        scaling = self.rng.choice((None, Scaling(max_replicas=2), Scaling(min_replicas=0, max_replicas=3)))
        self.resize(self.rng.choice(running if running and self.rng.random() < 0.8 else names), scaling)

    def resize(self, name: str, scaling: Scaling | None) -> None:
        """Somebody asks for a rule, or for a number."""
        self.scaled.add(name)
        replicas = self.rng.randrange(1, 4) if scaling is None else None
        self.feed(ScaleAsked(name, replicas, scaling, self.callers.ask(name, is_load=None), self.now))

    def apply_configuration(self) -> None:
        """A changed configuration, for which Serve starts control again."""
        name = self.rng.choice(("d0", "d1"))
        before = self.declared.pop(name, None)
        if before is None or self.rng.random() < 0.7:
            options = {"context": self.rng.choice((256, 512))}
            self.declared[name] = request(name, **scale_of(self.rng.choice("abcd")), options=options)
        if self.declared.get(name) != before:
            self.scaled.discard(name)
        self.note(f"the configuration declares {', '.join(sorted(self.declared)) or 'nothing'}")
        self.begin_life()

    def drain(self) -> None:
        """An operator closes a node, or opens one; some are not there, some are as asked already."""
        names = {node.name for node in self.nodes.values()} | self.drained.keys() | {"nowhere"}
        busy = {app.node for model in self.state.models.values() for app in model.live}
        name = self.rng.choice(sorted(busy if busy and self.rng.random() < 0.7 else names))
        self.order(name, is_closing=self.rng.random() < (0.3 if name in self.drained else 0.9))

    def order(self, node: str, *, is_closing: bool) -> None:
        kind = DrainAsked if is_closing else DrainLifted
        self.feed(kind(node, self.callers.order(node, is_closing=is_closing), self.now))

    def upgrade_node(self) -> None:
        """A node starts again: it comes back under its name, with another id."""
        if self.nodes:
            node = self.nodes[self.rng.choice(sorted(self.nodes))]
            self.note(f"node {node.node_id} starts again")
            self.drop_node(node.node_id)
            self.join(node.kind, node.name)

    def check_make_before_break(self, before: ControlState, event: Event) -> None:
        """A step that stops what is leaving does not leave a model with less that serves than before."""
        for name, model in before.models.items():
            after = self.state.models.get(name)
            if after is None or after.wanted != model.wanted or after.request != model.request:
                continue
            moved = [app for app in model.leaving if app.name not in {one.name for one in after.live}]
            # Of those it was told that they are gone, or that their engines failed.
            orders = isinstance(event, DrainAsked | DrainLifted | AppPrepared | LookDone)
            told = isinstance(event, ReplicaReported) and event.failure is None
            if moved and (orders or told) and after.phase is not Phase.UNLOADING and after.apps:
                assert after.ready >= min(model.ready, model.wanted), f"{name} lost what served; {event}"

    def check_wishes(self, before: ControlState, event: Event, effects: tuple[Effect, ...]) -> None:
        """A wish that is kept is neither lost nor replaced by a load: it ends by an unload, of an operator,
        of the configuration, or for the room.
        """
        for name, model in before.models.items():
            after = self.state.models.get(name)
            if after is None:
                is_over = model.phase is Phase.UNLOADING or isinstance(event, UnloadAsked)
                assert is_over or not model.is_kept, f"{name} is lost by {event}"
            elif model.is_kept and isinstance(event, LoadAsked) and event.name == name:
                is_same = (after.request, after.is_kept) == (model.request, True)
                assert is_same, f"{name} is replaced by {event}"
                assert not any(isinstance(one, Forget) for one in effects), f"{name} is forgotten by {event}"
        if isinstance(event, Restored):
            kept = {one.name for one in event.records if one.declared is None and one.proven}
            assert kept <= self.state.models.keys(), "a restart keeps what is kept"

    def crash(self) -> None:
        alive = [(name, key) for name, app in sorted(self.apps.items()) for key in sorted(app.replicas)]
        if alive:
            name, replica_id = self.rng.choice(alive)
            self.kill(name, self.apps[name], replica_id, self.rng.choice(DEATHS))

    def restart_control(self) -> None:
        self.begin_life()

    def restart_owner(self) -> None:
        """The book comes back as the journal has it: what nobody holds is reserved."""
        if self.nodes:
            node = self.nodes[self.rng.choice(sorted(self.nodes))]
            self.note(f"the owner of {node.node_id} starts anew")
            for lease_id, lease in node.book.leases.items():
                if lease.holder is not None and lease_id not in node.engines:
                    node.book = leases.holder_died(node.book, lease_id, self.now, GRACE_S)

    def lose_node(self) -> None:
        if len(self.nodes) > 1:
            node_id = self.rng.choice(sorted(self.nodes))
            self.note(f"node {node_id} is lost")
            self.drop_node(node_id)

    def drop_node(self, node_id: str) -> None:
        del self.nodes[node_id]
        for app in self.apps.values():
            if app.node_id == node_id:
                app.replicas.clear()
                app.state = ServeState.UNHEALTHY if app.state is not ServeState.STOPPING else app.state

    def gain_node(self) -> None:
        self.join()

    def use(self) -> None:
        name = self.rng.choice(self.names)
        self.inbox.append(UseReported({name: self.now}))
        # Some of the replicas that a router has measured are long gone.
        known = [key for app in self.apps.values() for key in app.replicas] + ["gone/1"]
        paces = {key: self.rng.choice((0.1, 1.0, 9.0)) for key in known if self.rng.random() < 0.5}
        self.inbox.append(PacesReported(paces, self.now))

    def tend_books(self) -> None:
        for node in self.nodes.values():
            if node.book.leases or node.engines:
                node.book = leases.expire(node.book, self.now)
                node.check()

    def settle(self, steps: int) -> None:
        """The faults end; everything under way comes to its end, and every pause passes."""
        self.faults, self.mortality = False, 0.0
        for _ in range(steps):
            self.act()
        self.rest(12, pause_s=700.0)

    def rest(self, pauses: int, *, pause_s: float) -> None:
        """Everything under way comes to its end, ``pauses`` times, with time passing before each."""
        for _ in range(pauses):
            self.now += pause_s
            self.observe()
            for _ in range(40):
                before = self.traces()
                while self.inbox:
                    self.deliver()
                self.look()
                self.prepare()
                for name in sorted(self.apps):
                    self.run_app(name)
                self.autoscale()
                self.tend_books()
                if self.traces() == before:
                    # Nothing moved and nothing was drawn, so the rounds that are left would be the same.
                    break

    def traces(self) -> tuple[object, ...]:
        """What every change leaves something in."""
        under_way = (len(self.inbox), len(self.looks), len(self.preparing), len(self.apps))
        books = [node.book for node in self.nodes.values()]
        return self.rng.getstate(), len(self.log), under_way, books


def scale_of(name: str) -> dict[str, object]:
    """Some models have a fixed number of replicas, some grow and shrink, and of those some may sleep."""
    kind = hash_of(name) % 4
    if kind < 2:
        return {"replicas": 1 + kind}
    quick = {"upscale_delay_s": 2.0, "downscale_delay_s": 10.0, "ttl_s": 60.0}
    return {"scaling": {"min_replicas": kind - 2, "max_replicas": 3, **quick}}


def hash_of(name: str) -> int:
    """The same in every process."""
    return sum(map(ord, name))


def _short(item: object) -> str:
    text = repr(item)
    return text if len(text) < 160 else text[:157] + "..."
