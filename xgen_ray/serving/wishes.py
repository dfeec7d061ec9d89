"""What operators ask for: loads, unloads, forgiveness, and the wishes of an earlier life."""

from dataclasses import replace

from xgen_ray.errors import ModelNotFound, NameConflict, WrongState
from xgen_ray.placement import model_key
from xgen_ray.schema import LoadRequest, Origin, Phase
from xgen_ray.serving.scaling import first_replicas
from xgen_ray.serving.state import (
    Answer,
    App,
    AppPhase,
    ExclusionsLifted,
    Forget,
    LoadAsked,
    Model,
    Record,
    Restored,
    ServeState,
    StopApp,
    UnloadAsked,
)
from xgen_ray.serving.turn import Turn, remove, stop_strays


def restore(turn: Turn, event: Restored) -> None:
    turn.epoch = event.epoch
    turn.exclusions = event.exclusions
    turn.observations = event.observations
    for record in event.records:
        undeclared = record.origin is Origin.DECLARED and record.name not in event.declared
        changed = record.name in event.declared and event.declared[record.name] != record.request
        if undeclared or changed:
            turn.effects.append(Forget(record.name))
        else:
            _take_up(turn, record, event)
    for name, request in event.declared.items():
        if name not in turn.models:
            turn.seek(new_model(name, request, Origin.DECLARED, event.at), event.at, "declared")
    stop_strays(turn, event.apps)


def _take_up(turn: Turn, record: Record, event: Restored) -> None:
    """A wish of an earlier life: the apps that run are adopted, what is missing is looked for."""
    model = replace(
        new_model(record.name, record.request, record.origin, event.at),
        created=record.created,
        proven=record.proven,
        context_limit=record.context_limit,
    )
    adopted: dict[str, App] = {}
    for kept in record.apps:
        seen = event.apps.get(kept.name)
        if seen is None or seen is ServeState.STOPPING:
            # Its lease, if it had come so far, is given back.
            turn.effects.append(StopApp(kept.name, kept.node_id))
            continue
        adopted[kept.name] = App(
            name=kept.name,
            node_id=kept.node_id,
            node=kept.node,
            node_kind=kept.node_kind,
            plan=kept.plan,
            phase=AppPhase.RECOVERING if record.proven else AppPhase.STARTING,
            since=event.at,
            seen=seen,
            proven=record.proven,
        )
    scaling = record.request.scaling
    if not adopted and record.proven and scaling is not None and scaling.min_replicas == 0:
        reason = "asleep since a restart; a request wakes it"
        turn.put(replace(model, phase=Phase.SLEEPING, wanted=0, reason=reason))
        return
    if not adopted:
        turn.seek(model, event.at, "loading again after a restart")
        return
    model = turn.put(
        replace(
            model,
            phase=Phase.RECOVERING if record.proven else Phase.LOADING,
            reason="control restarted; asking the running replicas",
            facts=next(iter(adopted.values())).plan.facts,
            apps=adopted,
            wanted=max(model.wanted, len(adopted)),
        )
    )
    if missing_replicas(model) > 0:
        turn.seek(model, event.at, "control restarted; looking for a place for what is missing")


def missing_replicas(model: Model) -> int:
    """How many replicas have no place yet."""
    return model.wanted - len(model.live)


def new_model(name: str, request: LoadRequest, origin: Origin, at: float) -> Model:
    """A wish of which nothing has been done yet."""
    return Model(
        name,
        request,
        origin,
        Phase.RESOLVING,
        "",
        attempt=0,
        since=at,
        created=at,
        wanted=first_replicas(request),
    )


def load(turn: Turn, event: LoadAsked) -> None:
    turn.used = {**turn.used, event.name: event.at}
    model = turn.models.get(event.name)
    if model is None or model.phase in (Phase.FAILED, Phase.SLEEPING):
        fresh = model or new_model(event.name, event.request, Origin.API, event.at)
        fresh = replace(
            fresh,
            request=event.request,
            callers=frozenset({event.caller}),
            refusal=None,
            verdicts=(),
            context_limit=None,
            last_rung=None,
            wanted=first_replicas(event.request),
        )
        turn.seek(fresh, event.at, "asked for")
    elif model.phase is Phase.UNLOADING:
        message = f"{event.name} is being unloaded; try again in a few seconds"
        turn.effects.append(Answer(event.caller, event.name, WrongState(message)))
    elif model.request != event.request:
        message = (
            f"{event.name} already serves {model.request.model}"
            f"{' with other options' if model.request.model == event.request.model else ''}; "
            "unload it first or give this one another name"
        )
        turn.effects.append(Answer(event.caller, event.name, NameConflict(message)))
    elif model.phase in (Phase.READY, Phase.RECOVERING):
        turn.effects.append(Answer(event.caller, event.name))
    else:
        turn.put(replace(model, callers=model.callers | {event.caller}))


def unload(turn: Turn, event: UnloadAsked) -> None:
    model = turn.models.get(event.name)
    if model is None:
        turn.answer_unknown(event.caller, event.name)
        return
    model = turn.put(replace(model, leavers=model.leavers | {event.caller}))
    if model.phase is not Phase.UNLOADING:
        reason = "unloading; running requests may finish"
        leave(turn, model, event.at, reason, WrongState(f"{event.name} was unloaded while it was loading"))


def leave(turn: Turn, model: Model, at: float, reason: str, error: WrongState) -> None:
    """The wish is forgotten first, then what runs of it is stopped. Who waits for its load gets ``error``."""
    model = turn.answer(model, error)
    turn.effects.append(Forget(model.name))
    model = turn.stop_all(model)
    model = turn.put(
        replace(
            model,
            phase=Phase.UNLOADING,
            reason=reason,
            since=at,
            shortfall=None,
            retry_at=None,
            progress=None,
        )
    )
    if not model.apps:
        remove(turn, model, at)


def lift(turn: Turn, event: ExclusionsLifted) -> None:
    """Forget what was learned against backends of a model. One that failed is tried again."""
    model = turn.models.get(event.name)
    key = model_key(model.facts) if model is not None and model.facts is not None else event.name
    kept = tuple(
        exclusion
        for exclusion in turn.exclusions
        if exclusion.model != key or event.backend not in (None, exclusion.backend)
    )
    if len(kept) == len(turn.exclusions):
        keys = {exclusion.model for exclusion in turn.exclusions}
        names = {
            model_key(other.facts): other.name for other in turn.models.values() if other.facts is not None
        }
        excluded = sorted(names.get(key, key) for key in keys)
        message = f"nothing is excluded for {event.name!r}; excluded: {', '.join(excluded) or 'nothing'}"
        turn.effects.append(Answer(event.caller, event.name, ModelNotFound(message)))
        return
    turn.exclusions = kept
    turn.effects.append(Answer(event.caller, event.name))
    if model is not None and model.phase is Phase.FAILED:
        turn.seek(model, event.at, "its exclusions were lifted")
