"""What is seen of replicas, apps and nodes, and what follows from it."""

from collections import Counter
from dataclasses import replace

from xgen_ray.errors import EngineFailed, UnknownOption, XgenRayError
from xgen_ray.models.types import ModelTask
from xgen_ray.placement import DEFAULT_POLICY, Exclusion, Observation, model_key
from xgen_ray.process.types import FailureClass
from xgen_ray.schema import FailureReport, Phase
from xgen_ray.serving.effects import StopApp
from xgen_ray.serving.events import AppsObserved, NodesObserved, ReplicaReported, UseReported
from xgen_ray.serving.ladder import WINDOW_S, Step, next_step
from xgen_ray.serving.placing import fall_short
from xgen_ray.serving.state import App, AppPhase, Model, ServeState
from xgen_ray.serving.turn import Turn, insist, remove, stop_strays

KEPT_FAILURES = 10
# More than can still have words of theirs on the way.
KEPT_ENDED = 16
# Of each model, backend and kind of memory.
KEPT_OBSERVATIONS = 8
# A replica says that it is ready a moment before Serve counts it as running.
SETTLING_S = 5.0
# One that loads is there from its first moment; Serve may be slow to count it on a busy node.
STARTING_S = 60.0
_AT_WORK = (AppPhase.STARTING, AppPhase.SERVING, AppPhase.RECOVERING)


def hear_replica(turn: Turn, event: ReplicaReported) -> None:
    if event.observations:
        turn.observations = learned(turn.observations, event.observations)
    found = turn.owner(event.app)
    if found is None or found[1].phase not in _AT_WORK:
        return
    model, app = found
    status = event.replica.status
    if status.replica_id in app.ended and event.failure is None:
        # What it said before its end, or asked once more on its way out. How it ended may still follow.
        return
    known = app.replicas.get(status.replica_id)
    if known is not None and known.status.since > status.since:
        # An answer to a question that was overtaken by the replica's own word.
        return
    replicas = {**app.replicas, status.replica_id: event.replica}
    if event.failure is not None or status.state == "failed":
        del replicas[status.replica_id]
        others = [key for key in app.ended if key != status.replica_id]
        app = replace(app, ended=(status.replica_id, *others)[:KEPT_ENDED])
    app = _with_phase(replace(app, replicas=replicas, progress=status.progress))
    model = turn.put_app(model, app)
    if event.failure is not None:
        failure = event.failure.model_copy(update={"replica_id": status.replica_id})
        _hear_death(turn, model, app, failure)
    elif model.phase not in (Phase.UNLOADING, Phase.FAILED):
        settle(turn, model, status.since)


def _with_phase(app: App) -> App:
    """The app with the phase that its replicas give it."""
    if app.ready:
        return replace(app, phase=AppPhase.SERVING, proven=True)
    return replace(app, phase=AppPhase.RECOVERING if app.proven else AppPhase.STARTING)


def _hear_death(turn: Turn, model: Model, app: App, failure: FailureReport) -> None:
    failure = failure.model_copy(update={"backend": app.backend, "node": app.node})
    deaths = ((failure.at, failure.failure), *app.deaths)
    app = replace(app, deaths=tuple(death for death in deaths if death[0] > failure.at - WINDOW_S))
    model = turn.put_app(
        replace(model, failures=(failure, *model.failures)[:KEPT_FAILURES]),
        app,
    )
    step, why = next_step(app.deaths or deaths, can_shrink=_can_shrink(model, app))
    if step is Step.RESTART:
        reason = f"{failure.message} On {app.node}: {why}"
        if model.phase is Phase.LOADING:
            turn.put(replace(model, reason=reason))
        settle(turn, turn.models[model.name], failure.at)
        return
    error = _error_of(failure)
    model = turn.stop_app(model, app)
    if step is Step.GIVE_UP:
        fall_short(turn, model, error, failure.at)
    elif step is Step.MOVE:
        turn.seek(model, failure.at, f"{failure.message} Looking for another place")
    elif step is Step.SHRINK:
        half = app.plan.options.context // 2
        model = turn.put(replace(model, context_limit=half))
        turn.seek(model, failure.at, f"{failure.message} Trying again with a context of {half}")
    else:
        _descend(turn, model, app, error, failure.at)


def _can_shrink(model: Model, app: App) -> bool:
    """Only what nobody asked for gives way."""
    options = app.plan.options
    return (
        model.request.options.context is None
        and options.task is ModelTask.GENERATE
        and options.context // 2 >= DEFAULT_POLICY.smallest_context
    )


def _error_of(failure: FailureReport) -> XgenRayError:
    message = f"{failure.message} {failure.advice}" if failure.advice else failure.message
    if failure.failure == FailureClass.UNKNOWN_FLAG:
        return UnknownOption(message, "options.extra_args")
    return EngineFailed(message, failure.failure, failure.log_tail)


def _descend(turn: Turn, model: Model, app: App, error: XgenRayError, at: float) -> None:
    """Leave the backend out for this model on this kind of node, and look for another place."""
    plan = app.plan
    exclusion = Exclusion(
        backend=plan.backend,
        node_kind=app.node_kind,
        model=model_key(plan.facts),
        reason=f"on {app.node}: {error.message}",
    )
    if not any(exclusion.is_like(known) for known in turn.exclusions):
        turn.exclusions = (*turn.exclusions, exclusion)
    model = turn.put(replace(model, last_rung=(exclusion, error)))
    if model.looking:
        turn.remember(model)
    turn.seek(
        model, at, f"{plan.backend.value} failed on {app.node}, trying what comes next: {error.message}"
    )


def settle(turn: Turn, model: Model, at: float) -> None:
    """Brings the phase in line with the replicas that are there."""
    ready, wanted = model.ready, model.wanted
    if ready:
        reason = f"{ready} of {wanted} replicas ready"
        if model.shortfall:
            reason += f"; {model.shortfall}"
        if model.phase is not Phase.READY:
            model = replace(model, phase=Phase.READY, since=at, proven=True, progress=None, setbacks=0)
            turn.remember(turn.put(model))
        if sum(app.ready for app in model.staying) >= wanted:
            model = replace(model, setbacks=0)
        turn.answer(replace(model, reason=reason), None)
        return
    if model.phase is Phase.READY:
        last = model.failures[0].message if model.failures else "its replica is gone"
        turn.put(replace(model, phase=Phase.RECOVERING, reason=f"starting again: {last}", since=at))
    elif model.phase in (Phase.LOADING, Phase.RECOVERING):
        progress = [app.progress for app in model.live if app.progress is not None]
        if progress:
            turn.put(replace(model, progress=progress[-1]))


def observe(turn: Turn, event: AppsObserved) -> None:
    for name in list(turn.models):
        # Earlier models of this turn may have removed or changed later ones.
        if name not in turn.models:
            continue
        for app in list(turn.models[name].apps.values()):
            if app.name not in turn.models[name].apps:
                continue
            if app.phase is AppPhase.STOPPING:
                if app.name in event.apps:
                    insist(turn, [app.name], event.apps)
                else:
                    turn.drop_app(turn.models[name], app.name)
            elif app.phase in _AT_WORK:
                _observe_at_work(turn, turn.models[name], app, event)
        model = turn.models[name]
        if model.phase is Phase.UNLOADING:
            if not model.apps:
                remove(turn, model, event.at)
        elif model.retry_at is not None and event.at >= model.retry_at:
            turn.seek(model, event.at, f"trying again after: {model.shortfall or model.reason}")
    stop_strays(turn, event.apps)
    _use_room(turn, event.at)


def _use_room(turn: Turn, at: float) -> None:
    """Who waited for others to make room looks again once nothing of them is left."""
    for model in list(turn.models.values()):
        if model.evicting and not any(_leaves(turn.models.get(name)) for name in model.evicting):
            names = ", ".join(sorted(model.evicting))
            turn.seek(replace(model, evicting=frozenset()), at, f"{names} made room")


def _leaves(model: Model | None) -> bool:
    return model is not None and any(app.phase is AppPhase.STOPPING for app in model.apps.values())


def _observe_at_work(turn: Turn, model: Model, app: App, event: AppsObserved) -> None:
    seen = event.apps.get(app.name)
    if seen is None:
        # One that was never seen may just not be there yet.
        if app.seen is not None:
            turn.effects.append(StopApp(app.name, app.node_id))
            model = turn.drop_app(model, app.name)
            turn.seek(model, event.at, "its application disappeared; loading again")
        return
    if seen is ServeState.FAILED and not app.ready:
        message = event.messages.get(app.name) or "the application could not be started"
        fall_short(turn, turn.stop_app(model, app), EngineFailed(message), event.at)
        return
    app = replace(app, seen=seen)
    alive = event.replicas.get(app.name)
    if alive is not None and seen is not ServeState.STOPPING:
        kept = {
            key: replica
            for key, replica in app.replicas.items()
            if key in alive or replica.status.since > event.at - _unseen_s(replica.status.state)
        }
        app = _with_phase(replace(app, replicas=kept))
    model = turn.put_app(model, app)
    if model.phase not in (Phase.UNLOADING, Phase.FAILED):
        settle(turn, model, event.at)


def _unseen_s(state: str) -> float:
    """How old a replica may be that Serve does not count as running."""
    return SETTLING_S if state in ("ready", "draining") else STARTING_S


def observe_nodes(turn: Turn, event: NodesObserved) -> None:
    before, turn.nodes = turn.nodes, event.nodes
    turn.node_kinds = event.kinds
    joined = before is not None and not event.nodes.keys() <= before.keys()
    for name in list(turn.models):
        model = turn.models[name]
        if model.phase is Phase.UNLOADING:
            continue
        lost = [app for app in model.live if app.node_id not in event.nodes]
        for app in lost:
            model = turn.stop_app(model, app)
        if lost:
            names = ", ".join(sorted({app.node for app in lost}))
            settle(turn, model, event.at)
            turn.seek(turn.models[name], event.at, f"node {names} is gone; looking for another place")
        elif joined and model.retry_at is not None:
            # It answers only once it has tried its engines: the next tries come soon, whatever was before.
            fresh = replace(model, setbacks=0)
            turn.seek(fresh, event.at, "a node has joined; looking for a place again")


def learned(known: tuple[Observation, ...], fresh: tuple[Observation, ...]) -> tuple[Observation, ...]:
    """All observations, oldest first, and of each kind the latest only."""
    kept: list[Observation] = []
    counts: Counter[tuple[str, str, str]] = Counter()
    for item in reversed((*known, *fresh)):
        kind = (item.model, item.backend, item.memory)
        counts[kind] += 1
        if counts[kind] <= KEPT_OBSERVATIONS:
            kept.append(item)
    return tuple(reversed(kept))


def hear_use(turn: Turn, event: UseReported) -> None:
    latest = {
        name: max(moment, turn.used.get(name, 0.0))
        for name, moment in event.used.items()
        if name in turn.models
    }
    kept = {name: moment for name, moment in turn.used.items() if name in turn.models}
    turn.used = {**kept, **latest}
