"""One step in the making: the models as they change, and the effects in their order."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from xgen_ray.errors import ModelNotFound, XgenRayError
from xgen_ray.placement import Exclusion, NodeType, Observation
from xgen_ray.schema import Phase
from xgen_ray.serving.effects import (
    Answer,
    AskForNodes,
    CancelLook,
    Effect,
    Forget,
    Look,
    Publish,
    Remember,
    RememberDrained,
    RememberLessons,
    StopApp,
)
from xgen_ray.serving.ladder import is_final
from xgen_ray.serving.pace import Pace, Place
from xgen_ray.serving.routes import changed_routes
from xgen_ray.serving.state import App, AppPhase, AppRecord, ControlState, Model, Record, ServeState
from xgen_ray.serving.supply import nodes_asked_for
from xgen_ray.serving.table import RoutingTable
from xgen_ray.serving.traffic import served_as

APP_PREFIX = "xgen-engine-"
# A declared model, and one that has served, are tried again after a failure: a hub or a disk comes back.
FIRST_RETRY_S = 15.0
LONGEST_RETRY_S = 600.0


def app_name(model: str, epoch: str, number: int) -> str:
    """A Serve application name for one app of ``model``; readable, and never used twice."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40]
    return f"{APP_PREFIX}{slug}-{epoch}-{number}"


@dataclass
class Turn:
    """One step in the making."""

    before: ControlState
    models: dict[str, Model] = field(init=False)
    strays: set[str] = field(init=False)
    attempts: int = field(init=False)
    apps_named: int = field(init=False)
    epoch: str = field(init=False)
    nodes: Mapping[str, str] | None = field(init=False)
    drained: Mapping[str, float] = field(init=False)
    exclusions: tuple[Exclusion, ...] = field(init=False)
    observations: tuple[Observation, ...] = field(init=False)
    used: Mapping[str, float] = field(init=False)
    paces: Mapping[Place, Pace] = field(init=False)
    costs: Mapping[str, float] = field(init=False)
    node_types: Mapping[str, NodeType] = field(init=False)
    node_kinds: Mapping[str, str] = field(init=False)
    effects: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models = dict(self.before.models)
        self.strays = set(self.before.stray_apps)
        self.attempts = self.before.attempts
        self.apps_named = self.before.apps_named
        self.epoch = self.before.epoch
        self.nodes = self.before.nodes
        self.drained = self.before.drained
        self.exclusions = self.before.exclusions
        self.observations = self.before.observations
        self.used = self.before.used
        self.paces = self.before.paces
        self.costs = self.before.costs
        self.node_types = self.before.node_types
        self.node_kinds = self.before.node_kinds

    @property
    def closed(self) -> frozenset[str]:
        """The ids of the drained nodes that are there."""
        return frozenset(node_id for node_id, name in (self.nodes or {}).items() if name in self.drained)

    def put(self, model: Model) -> Model:
        self.models[model.name] = model
        return model

    def put_app(self, model: Model, app: App) -> Model:
        return self.put(replace(model, apps={**model.apps, app.name: app}))

    def drop_app(self, model: Model, app: str) -> Model:
        """Forget an app that is gone, or was never started."""
        return self.put(replace(model, apps={name: kept for name, kept in model.apps.items() if name != app}))

    def stop_app(self, model: Model, app: App) -> Model:
        """Tell an app to stop. One that was never started is forgotten at once."""
        self.effects.append(StopApp(app.name, app.node_id))
        if app.phase is AppPhase.PREPARING:
            return self.drop_app(model, app.name)
        return self.put_app(model, replace(app, phase=AppPhase.STOPPING, replicas={}, progress=None))

    def stop_all(self, model: Model) -> Model:
        """Stop what runs of a model, and the look for a place."""
        if model.looking:
            self.effects.append(CancelLook(model.name, model.attempt))
        for app in model.live:
            model = self.stop_app(model, app)
        return self.put(replace(model, looking=False, evicting=frozenset(), awaited=None))

    def new_app_name(self, model: str) -> str:
        self.apps_named += 1
        return app_name(model, self.epoch, self.apps_named)

    def current(self, name: str, attempt: int) -> Model | None:
        """The model, if this look for a place is still the one that counts."""
        model = self.models.get(name)
        return model if model is not None and model.looking and model.attempt == attempt else None

    def owner(self, app: str) -> tuple[Model, App] | None:
        for model in self.models.values():
            if (found := model.apps.get(app)) is not None:
                return model, found
        return None

    def answer(self, model: Model, error: XgenRayError | None) -> Model:
        """Answers everyone who waits for the load to end."""
        self.effects += [Answer(caller, model.name, error) for caller in sorted(model.callers)]
        return self.put(replace(model, callers=frozenset()))

    def answer_unknown(self, caller: str, name: str) -> None:
        """Tells a caller that nothing has the name it spoke of."""
        names = ", ".join(sorted(self.models)) or "none"
        error = ModelNotFound(f"no model is loaded under the name {name!r}; loaded: {names}")
        self.effects.append(Answer(caller, name, error))

    def remember(self, model: Model) -> None:
        self.effects.append(Remember(record_of(model)))

    def seek(self, model: Model, at: float, reason: str) -> Model:
        """Look for a place for the replicas that are missing. One look at a time."""
        if not model.live:
            model = replace(model, phase=Phase.RESOLVING, since=at, progress=None)
        model = replace(model, reason=reason, retry_at=None)
        if model.looking:
            return self.put(model)
        self.attempts += 1
        model = self.put(replace(model, looking=True, attempt=self.attempts))
        self.remember(model)
        self.effects.append(Look(model.name, model.attempt, model.request))
        return model

    def _changed_names(self) -> frozenset[str]:
        """What those models are served as that are other than they were, or are new, or gone. One that was
        made anew and is equal is put back, so that nobody looks for what has changed in it: most observations
        find everything as it was.
        """
        before = self.before.models
        changed = {served_as(name) for name in before.keys() - self.models.keys()}
        for name, model in self.models.items():
            was = before.get(name)
            if was is not None and was is not model and was == model:
                self.models[name] = was
            elif was is not model:
                changed.add(model.served_as)
        return frozenset(changed)

    def finish(self) -> tuple[ControlState, tuple[Effect, ...]]:
        before = self.before
        lessons = (self.exclusions, self.observations)
        if lessons != (before.exclusions, before.observations):
            # A record may say which exclusion is to be taken back: it says so before that is written down,
            # and until it is written that it is gone.
            written = [number for number, one in enumerate(self.effects, 1) if isinstance(one, Remember)]
            is_more = len(self.exclusions) > len(before.exclusions)
            self.effects.insert(max(written, default=0) if is_more else 0, RememberLessons(*lessons))
        if self.drained != before.drained:
            self.effects.insert(0, RememberDrained(self.drained))
        asked = before.asked_nodes
        if self.node_types:
            asked = nodes_asked_for(self.models.values(), self.node_kinds, self.node_types, self.closed)
            if asked != before.asked_nodes:
                self.effects.append(AskForNodes(asked))
        table = before.table
        changed = self._changed_names()
        routes = changed_routes(table.routes, self.models.values(), changed) if changed else table.routes
        if routes != table.routes or self.epoch != table.epoch:
            table = RoutingTable(self.epoch, table.version + 1, routes)
            # Routers are told first: who hears the answer rarely meets a router that has not heard.
            answers = [effect for effect in self.effects if isinstance(effect, Answer)]
            others = [effect for effect in self.effects if not isinstance(effect, Answer)]
            self.effects = [*others, Publish(table), *answers]
        state = ControlState(
            epoch=self.epoch,
            attempts=self.attempts,
            apps_named=self.apps_named,
            models=self.models,
            stray_apps=frozenset(self.strays),
            nodes=self.nodes,
            drained=self.drained,
            exclusions=self.exclusions,
            observations=self.observations,
            used=self.used,
            paces=self.paces,
            costs=self.costs,
            node_types=self.node_types,
            node_kinds=self.node_kinds,
            asked_nodes=asked,
            table=table,
        )
        return state, tuple(self.effects)


def record_of(model: Model) -> Record:
    return Record(
        name=model.name,
        request=model.request,
        created=model.created,
        declared=model.declared,
        proven=model.proven,
        context_limit=model.context_limit,
        last_rung=model.last_rung[0] if model.last_rung is not None else None,
        apps=tuple(AppRecord(app.name, app.node_id, app.node, app.node_kind, app.plan) for app in model.live),
    )


def fail(turn: Turn, model: Model, error: XgenRayError, at: float) -> None:
    """The load ends here. The wish is kept only if it has worked before, or was declared; it is tried again
    where a later try may end otherwise.
    """
    for app in model.live:
        model = turn.stop_app(model, app)
    # What has served has a good file: it may lie on a share that is away.
    again = model.is_kept and (model.proven or not is_final(error))
    failed = replace(
        model,
        phase=Phase.FAILED,
        reason=str(error),
        since=at,
        looking=False,
        progress=None,
        shortfall=None,
        awaited=None,
        evicting=frozenset(),
        setbacks=model.setbacks + 1,
        retry_at=at + retry_pause(model) if again else None,
    )
    if model.is_kept:
        turn.remember(failed)
    else:
        turn.effects.append(Forget(model.name))
    turn.answer(turn.put(failed), error)


def retry_pause(model: Model) -> float:
    """How long to wait before the next try, longer after each setback."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(model.setbacks, 16))


def remove(turn: Turn, model: Model, at: float) -> None:
    """The model is gone. Those who waited for its room look again."""
    turn.effects += [Answer(caller, model.name) for caller in sorted(model.leavers)]
    del turn.models[model.name]
    for other in list(turn.models.values()):
        if model.name in other.evicting:
            left = turn.put(replace(other, evicting=other.evicting - {model.name}))
            if not left.evicting:
                turn.seek(left, at, f"{model.name} has made room")


def stop_strays(turn: Turn, apps: Mapping[str, ServeState]) -> None:
    owned = {app for model in turn.models.values() for app in model.apps}
    turn.strays = {app for app in apps if app not in owned}
    insist(turn, sorted(turn.strays), apps)


def insist(turn: Turn, names: Iterable[str], apps: Mapping[str, ServeState]) -> None:
    """Asks for the stop of each again while it does not look like stopping: the first may have got lost."""
    for name in names:
        if name in apps and apps[name] is not ServeState.STOPPING:
            owner = turn.owner(name)
            turn.effects.append(StopApp(name, owner[1].node_id if owner else None))
