"""Control's state machine without control: fed with events, it keeps what it would do."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from tests.serving.builders import facts, failure, fleet, replica, request
from xgen_ray.errors import XgenRayError
from xgen_ray.placement import NodeView
from xgen_ray.schema import LoadRequest, Phase
from xgen_ray.serving.effects import (
    Answer,
    Effect,
    PrepareApp,
    StartApp,
)
from xgen_ray.serving.events import (
    AppPrepared,
    AppsObserved,
    Event,
    LoadAsked,
    LookDone,
    LookFailed,
    ReplicaReported,
    Restored,
)
from xgen_ray.serving.machine import step
from xgen_ray.serving.state import ControlState, ServeState

E = TypeVar("E")


FIRST = Restored((), {}, {}, "life1", 0.0)


class Control:
    """Feeds events and keeps what came of them."""

    def __init__(self, first: Restored | None = FIRST) -> None:
        self.state = ControlState()
        self.effects: list[Effect] = []
        if first is not None:
            self.feed(first)

    def feed(self, event: Event) -> tuple[Effect, ...]:
        self.state, effects = step(self.state, event)
        self.effects += effects
        return effects

    def load(self, name: str = "small", caller: str = "c1", asked: LoadRequest | None = None) -> None:
        self.feed(LoadAsked(name, asked or request(name), caller, 1.0))

    def look(
        self, name: str = "small", weight_bytes: int = 100 * 2**20, *views: NodeView, at: float = 2.0
    ) -> tuple[Effect, ...]:
        attempt = self.state.models[name].attempt
        return self.feed(LookDone(name, attempt, facts(name, weight_bytes), fleet(*views), at))

    def place(self, name: str = "small", weight_bytes: int = 100 * 2**20, *views: NodeView) -> str:
        """Finds the model's place, prepares it, and returns the app that was started."""
        prepare = only(self.look(name, weight_bytes, *views), PrepareApp)
        effects = self.feed(AppPrepared(prepare.app, prepare.plan, 3.0))
        return only(effects, StartApp).app

    def fail_look(self, error: XgenRayError, name: str = "small", at: float = 3.0) -> tuple[Effect, ...]:
        return self.feed(LookFailed(name, self.state.models[name].attempt, error, at))

    def ready(self, name: str = "small", caller: str = "c1", *views: NodeView) -> str:
        self.load(name, caller)
        app = self.place(name, 100 * 2**20, *views)
        self.feed(ReplicaReported(app, replica()))
        return app

    def die(self, app: str, kind: str, at: float = 10.0, replica_id: str = "r1") -> tuple[Effect, ...]:
        return self.feed(ReplicaReported(app, replica(replica_id, "failed"), failure(kind, at)))

    def urls(self, name: str = "small") -> list[str]:
        """Where routers send requests."""
        return [engine.url for engine in self.state.table.routes[name].engines]

    def observe(
        self,
        apps: Mapping[str, ServeState],
        replicas: Mapping[str, Iterable[str]] | None = None,
        messages: Mapping[str, str] | None = None,
        at: float = 20.0,
    ) -> tuple[Effect, ...]:
        alive = {app: frozenset(ids) for app, ids in (replicas or {}).items()}
        return self.feed(AppsObserved(apps, messages or {}, alive, at))

    def phase(self, name: str = "small") -> Phase:
        return self.state.models[name].phase

    def answers(self) -> dict[str, Answer]:
        found = {effect.caller: effect for effect in self.effects if isinstance(effect, Answer)}
        assert len(found) == sum(isinstance(effect, Answer) for effect in self.effects), "answered twice"
        return found


def only(effects: Iterable[Effect], kind: type[E]) -> E:
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, found
    return found[0]


def none(effects: Iterable[Effect], kind: type) -> bool:
    return not any(isinstance(effect, kind) for effect in effects)
