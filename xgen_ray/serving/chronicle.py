"""What has happened to the fleet, told from one state of control to the next. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from xgen_ray.console import EventKind, EventReport
from xgen_ray.placement import Exclusion, model_key
from xgen_ray.placement.types import Backend
from xgen_ray.schema import FailureReport, Phase
from xgen_ray.serving.state import ControlState, Model
from xgen_ray.serving.supply import node_words

# So many are kept, the newest, each with so much of what an engine printed last: whoever opens the page gets
# all of it.
KEPT: Final = 300
KEPT_LINES: Final = 20

# After these a model is in another state.
_STATES: Final = frozenset(
    {
        EventKind.ASKED,
        EventKind.READY,
        EventKind.FAILED,
        EventKind.SLEPT,
        EventKind.WOKE,
        EventKind.UNLOADED,
    }
)

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Chronicle:
    """``events`` are newest first. ``told`` counts those of this life of control; ``homes`` are the places
    (node and backend) where each model was when last it was whole, which is how a move is seen.
    """

    events: tuple[EventReport, ...] = ()
    told: int = 0
    homes: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)


def note(chronicle: Chronicle, before: ControlState, after: ControlState, at: float) -> Chronicle:
    """The chronicle with what has happened between two states of one life of control."""
    homes = {name: home for name, home in chronicle.homes.items() if name in after.models}
    happened = [
        *_life(before, after),
        *_nodes(before, after),
        *_drains(before, after),
        *_lessons(before, after),
    ]
    for name, model in after.models.items():
        was = before.models.get(name)
        if was is model:
            continue
        if was is None and before.epoch != after.epoch:
            happened += _found(model, chronicle.events)
        else:
            happened += _model(was, model)
        if model.phase is Phase.READY and model.ready >= model.wanted:
            home = _home(model)
            happened += _move(model, homes.get(name, home), home)
            homes[name] = home
    happened += [
        _Happening(EventKind.UNLOADED, "info", "unloaded", model=name)
        for name in before.models.keys() - after.models.keys()
    ]
    if not happened and homes == chronicle.homes:
        return chronicle
    told = tuple(
        one.report(f"{after.epoch}.{chronicle.told + number}", at) for number, one in enumerate(happened, 1)
    )
    kept = (*reversed(told), *chronicle.events)[:KEPT]
    return replace(chronicle, events=kept, told=chronicle.told + len(told), homes=homes)


@dataclass(frozen=True, slots=True)
class _Happening:
    """An event before it has its number and its time. ``failure`` has a time of its own."""

    kind: EventKind
    level: Literal["info", "warning", "error"]
    message: str
    model: str | None = None
    node: str | None = None
    failure: FailureReport | None = None
    backend: Backend | None = None

    def report(self, number: str, at: float) -> EventReport:
        failure = self.failure
        if failure is not None:
            failure = failure.model_copy(update={"log_tail": failure.log_tail[-KEPT_LINES:]})
        return EventReport(
            id=number,
            at=failure.at if failure is not None else at,
            kind=self.kind,
            level=self.level,
            message=self.message,
            model=self.model,
            node=self.node if failure is None else failure.node,
            backend=failure.backend if failure is not None else self.backend,
            failure=failure,
        )


def _life(before: ControlState, after: ControlState) -> Iterator[_Happening]:
    if before.epoch != after.epoch:
        count = len(after.models)
        known = f"knowing {count} model{'' if count == 1 else 's'}"
        yield _Happening(EventKind.STARTED, "info", f"control has started, {known}")


def _nodes(before: ControlState, after: ControlState) -> Iterator[_Happening]:
    # The first look of a life finds nodes that have been there; nobody has joined.
    if before.nodes is None or after.nodes is None or before.nodes == after.nodes:
        return
    for node_id in after.nodes.keys() - before.nodes.keys():
        name = after.nodes[node_id]
        yield _Happening(EventKind.NODE_JOINED, "info", f"{name} has joined", node=name)
    for node_id in before.nodes.keys() - after.nodes.keys():
        name = before.nodes[node_id]
        models = sorted(
            model.name
            for model in before.models.values()
            if any(app.node_id == node_id for app in model.live)
        )
        had = f", and with it {', '.join(models)}" if models else ""
        level: Literal["warning", "info"] = "warning" if models else "info"
        yield _Happening(EventKind.NODE_LOST, level, f"{name} is gone{had}", node=name)


def _drains(before: ControlState, after: ControlState) -> Iterator[_Happening]:
    if before.epoch != after.epoch:
        return
    for name in after.drained.keys() - before.drained.keys():
        models = before.models_on(name)
        moves = f"; moving away: {', '.join(models)}" if models else " and is empty"
        yield _Happening(EventKind.NODE_DRAINED, "info", f"{name} takes nothing new{moves}", node=name)
    for name in before.drained.keys() - after.drained.keys():
        yield _Happening(EventKind.NODE_OPENED, "info", f"{name} takes models again", node=name)
    for name in before.drained.keys() & after.drained.keys():
        if before.models_on(name) and not after.models_on(name):
            yield _Happening(EventKind.NODE_EMPTY, "info", f"nothing runs on {name} any more", node=name)


def _lessons(before: ControlState, after: ControlState) -> Iterator[_Happening]:
    if before.epoch != after.epoch or before.exclusions == after.exclusions:
        return
    names = {model_key(model.facts): model.name for model in after.models.values() if model.facts}
    for one in after.exclusions:
        if one not in before.exclusions:
            yield _Happening(
                EventKind.DEMOTED,
                "warning",
                f"{one.backend} is left out on {one.node_kind} from now on: {one.reason}",
                model=names.get(one.model),
                backend=one.backend,
            )
    for one in before.exclusions:
        if one not in after.exclusions:
            yield _lifted(one, names.get(one.model))


def _lifted(one: Exclusion, model: str | None) -> _Happening:
    return _Happening(
        EventKind.LIFTED, "info", f"{one.backend} may be used on {one.node_kind} again", model=model
    )


def _found(model: Model, events: tuple[EventReport, ...]) -> Iterator[_Happening]:
    """Of a model that a life of control begins with: what nobody has been told, because control was away or
    its configuration has changed.
    """
    last = next((event.kind for event in events if event.model == model.name and event.kind in _STATES), None)
    if model.phase is Phase.SLEEPING and last is not EventKind.SLEPT:
        yield _Happening(EventKind.SLEPT, "info", f"asleep: {model.reason}", model=model.name)


def _model(was: Model | None, model: Model) -> Iterator[_Happening]:
    name = model.name
    if was is None:
        yield _Happening(EventKind.ASKED, "info", f"asked to load {model.request.model}", model=name)
        return
    known = was.failures
    for failure in reversed(model.failures):
        if failure not in known:
            yield _Happening(EventKind.DEATH, "error", failure.message, model=name, failure=failure)
    if model.wanted != was.wanted and Phase.SLEEPING not in (was.phase, model.phase):
        yield _Happening(
            EventKind.SCALED, "info", f"from {was.wanted} to {model.wanted} replicas", model=name
        )
    if name in model.evicting and name not in was.evicting:
        yield _Happening(EventKind.ASKED, "info", f"asked to load {model.request.model} again", model=name)
    if model.awaited is not None and was.awaited is None:
        told = f"waiting for {node_words(model.awaited.demand.counts)}"
        yield _Happening(EventKind.AWAITS, "warning", told, model=name)
    if model.phase is not was.phase:
        yield from _phase(was, model)


def _phase(was: Model, model: Model) -> Iterator[_Happening]:
    name = model.name
    if was.phase is Phase.SLEEPING and model.phase is not Phase.UNLOADING:
        yield _Happening(EventKind.WOKE, "info", f"woken: {model.reason}", model=name)
    match model.phase:
        case Phase.READY:
            again = " again" if was.phase is Phase.RECOVERING else ""
            where = ", ".join(f"{node} by {backend}" for node, backend in _home(model))
            yield _Happening(EventKind.READY, "info", f"ready{again} on {where}", model=name)
        case Phase.FAILED:
            yield _Happening(EventKind.FAILED, "error", model.reason, model=name)
        case Phase.SLEEPING:
            yield _Happening(EventKind.SLEPT, "info", f"asleep: {model.reason}", model=name)
        case _:
            return


def _home(model: Model) -> tuple[Place, ...]:
    return tuple(sorted((app.node, app.backend.value) for app in model.live if app.ready))


def _move(model: Model, old: tuple[Place, ...], new: tuple[Place, ...]) -> Iterator[_Happening]:
    left = [place for place in old if place not in new]
    come = [place for place in new if place not in old]
    if left and come:
        yield _Happening(
            EventKind.MOVED,
            "warning",
            f"moved from {_places(left)} to {_places(come)}",
            model=model.name,
            node=come[0][0],
        )


def _places(places: list[Place]) -> str:
    return ", ".join(f"{node} ({backend})" for node, backend in places)
