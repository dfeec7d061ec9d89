"""What operators ask for: loads, unloads, forgiveness."""

from dataclasses import replace

from xgen_ray.errors import ModelNotFound, NameConflict, WrongState
from xgen_ray.placement import model_key
from xgen_ray.schema import LoadRequest, Phase
from xgen_ray.serving.effects import Answer, Forget
from xgen_ray.serving.events import ExclusionsLifted, LoadAsked, RestartAsked, UnloadAsked
from xgen_ray.serving.scaling import STEADY, first_replicas
from xgen_ray.serving.state import Model
from xgen_ray.serving.turn import Turn, remove


def missing_replicas(model: Model) -> int:
    """How many replicas have no place yet. Where they are leaving a drained node is none."""
    return model.wanted - len(model.staying)


def new_model(name: str, request: LoadRequest, at: float, declared: LoadRequest | None = None) -> Model:
    """A wish of which nothing has been done yet."""
    return Model(
        name,
        request,
        Phase.RESOLVING,
        "",
        attempt=0,
        since=at,
        created=at,
        declared=declared,
        wanted=first_replicas(request),
    )


def asked_anew(model: Model, request: LoadRequest) -> Model:
    """The model as it begins once more, with nothing held against it that was learned of another request."""
    return replace(
        model,
        request=request,
        refusal=None,
        verdicts=(),
        context_limit=None,
        last_rung=None,
        setbacks=0,
        unfit={},
        wanted=first_replicas(request),
    )


def load(turn: Turn, event: LoadAsked) -> None:
    turn.used = {**turn.used, event.name: event.at}
    model = turn.models.get(event.name)
    if model is not None and model.declared is not None and model.request != event.request:
        message = f"the configuration declares {event.name} otherwise: change it there, or take another name"
        turn.effects.append(Answer(event.caller, event.name, NameConflict(message)))
    elif model is not None and model.phase is Phase.UNLOADING:
        message = f"{event.name} is being unloaded; try again in a few seconds"
        turn.effects.append(Answer(event.caller, event.name, WrongState(message)))
    elif model is None or (model.phase is Phase.FAILED and not model.is_kept):
        _begin(turn, _in_place_of(model, event), event)
    elif model.request != event.request:
        turn.effects.append(Answer(event.caller, event.name, _name_taken(model, event.request)))
    elif model.phase in (Phase.FAILED, Phase.SLEEPING):
        _begin(turn, asked_anew(model, event.request), event)
    elif model.phase in (Phase.READY, Phase.RECOVERING):
        turn.effects.append(Answer(event.caller, event.name))
    else:
        turn.put(replace(model, callers=model.callers | {event.caller}))


def _begin(turn: Turn, model: Model, event: LoadAsked) -> None:
    turn.seek(replace(model, callers=frozenset({event.caller})), event.at, "asked for")


def _in_place_of(failed: Model | None, event: LoadAsked) -> Model:
    """The model that a load makes where its name is free, or has that of a load that never worked."""
    if failed is not None and failed.request == event.request:
        return asked_anew(failed, event.request)
    fresh = new_model(event.name, event.request, event.at)
    # Another model: nothing that was learned is of it. What is still stopping is seen to its end.
    return fresh if failed is None else replace(fresh, apps=failed.apps)


def _name_taken(holder: Model, request: LoadRequest) -> NameConflict:
    states = {Phase.SLEEPING: "sleeps, and wakes to serve", Phase.FAILED: "has failed, and is kept for"}
    options = " with other options" if holder.request.model == request.model else ""
    return NameConflict(
        f"{holder.name} {states.get(holder.phase, 'already serves')} {holder.request.model}{options}; "
        "unload it first or give this one another name"
    )


def unload(turn: Turn, event: UnloadAsked) -> None:
    model = turn.models.get(event.name)
    if model is None:
        turn.answer_unknown(event.caller, event.name)
        return
    model = turn.put(replace(model, leavers=model.leavers | {event.caller}))
    if model.phase is not Phase.UNLOADING:
        reason = "unloading; running requests may finish"
        leave(turn, model, event.at, reason, WrongState(f"{event.name} was unloaded while it was loading"))


def restart(turn: Turn, event: RestartAsked) -> None:
    """All pools of the name begin again as they are wished for now. None of the wishes is ever forgotten."""
    pools = [model for model in turn.models.values() if model.served_as == event.name]
    if not pools and event.name in turn.models:
        pools = [turn.models[event.name]]
    staying = [model for model in pools if model.phase is not Phase.UNLOADING]
    if not pools:
        turn.answer_unknown(event.caller, event.name)
        return
    if not staying:
        message = f"{event.name} is being unloaded: load it once it is gone"
        turn.effects.append(Answer(event.caller, event.name, WrongState(message)))
        return
    for model in staying:
        turn.used = {**turn.used, model.name: event.at}
        # The request is the same, and so is what its ladder may take back.
        fresh = replace(asked_anew(model, model.request), last_rung=model.last_rung)
        begin_again(turn, fresh, event.at, "restarting: an operator asks for it")
    turn.effects.append(Answer(event.caller, event.name))


def begin_again(turn: Turn, model: Model, at: float, reason: str) -> None:
    """Its engines end before a place is looked for, since there may be no room for both. Requests wait."""
    model = replace(turn.stop_all(model), trend=STEADY, shortfall=None, retry_at=None)
    if not model.apps:
        turn.seek(model, at, reason)
        return
    leaving = frozenset({model.name})
    model = replace(model, phase=Phase.RESOLVING, reason=reason, since=at, progress=None, evicting=leaving)
    turn.remember(turn.put(model))


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
        turn.seek(replace(model, unfit={}), event.at, "its exclusions were lifted")
