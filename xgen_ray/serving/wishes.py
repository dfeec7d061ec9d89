"""What happens to a wish until its pool is started: loads, unloads, restarts, sources, plans."""

from dataclasses import replace

from xgen_ray.errors import EngineFailed, ModelNotFound, NameConflict, PlacementRefused, WrongState
from xgen_ray.placement import plan as make_plan
from xgen_ray.placement.types import Plan
from xgen_ray.schema import LoadRequest, Origin, Phase
from xgen_ray.serving.reservations import with_reservations
from xgen_ray.serving.state import (
    Answer,
    CancelResolve,
    Forget,
    LoadAsked,
    Model,
    PoolStartFailed,
    PoolState,
    Remember,
    Restored,
    SourceFailed,
    SourceProgressed,
    SourceResolved,
    StartPool,
    StopPool,
    UnloadAsked,
)
from xgen_ray.serving.turn import Turn, fail, pool_name, record_of, stop_strays


def restore(turn: Turn, event: Restored) -> None:
    turn.epoch = event.epoch
    for record in event.records:
        undeclared = record.origin is Origin.DECLARED and record.name not in event.declared
        changed = record.name in event.declared and event.declared[record.name] != record.request
        if undeclared or changed:
            turn.effects.append(Forget(record.name))
            continue
        model = replace(
            _new(record.name, record.request, record.origin, event.at),
            created=record.created,
            proven=record.proven,
        )
        runs = event.pools.get(record.pool or "")
        if runs is not None and runs is not PoolState.STOPPING:
            turn.put(
                replace(
                    model,
                    phase=Phase.RECOVERING if record.proven else Phase.LOADING,
                    reason="control restarted; asking the running replicas",
                    plan=record.plan,
                    facts=record.plan.facts if record.plan else None,
                    pool=record.pool,
                    pool_state=runs,
                )
            )
        else:
            turn.begin(model, event.at, "loading again after a restart")
    for name, request in event.declared.items():
        if name not in turn.models:
            turn.begin(_new(name, request, Origin.DECLARED, event.at), event.at, "declared")
    stop_strays(turn, event.pools)


def _new(name: str, request: LoadRequest, origin: Origin, at: float) -> Model:
    return Model(name, request, origin, Phase.RESOLVING, "", attempt=0, since=at, created=at)


def load(turn: Turn, event: LoadAsked) -> None:
    model = turn.models.get(event.name)
    if model is None or model.phase is Phase.FAILED:
        fresh = model or _new(event.name, event.request, Origin.API, event.at)
        fresh = replace(fresh, request=event.request, callers=frozenset({event.caller}))
        turn.begin(fresh, event.at, "asked for")
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
        names = ", ".join(sorted(turn.models)) or "none"
        error = ModelNotFound(f"no model is loaded under the name {event.name!r}; loaded: {names}")
        turn.effects.append(Answer(event.caller, event.name, error))
        return
    model = turn.put(replace(model, leavers=model.leavers | {event.caller}))
    if model.phase is Phase.UNLOADING:
        return
    model = turn.answer(model, WrongState(f"{event.name} was unloaded while it was loading"))
    turn.effects.append(Forget(model.name))
    if model.phase is Phase.RESOLVING:
        turn.effects.append(CancelResolve(model.name, model.attempt))
    if model.pool is None:
        turn.remove(model)
        return
    if model.phase is not Phase.FAILED:
        turn.effects.append(StopPool(model.pool))
    turn.put(
        replace(
            model,
            phase=Phase.UNLOADING,
            reason="unloading; running requests may finish",
            since=event.at,
            progress=None,
        )
    )


def hear_progress(turn: Turn, event: SourceProgressed) -> None:
    if model := turn.current(event.name, event.attempt):
        turn.put(replace(model, progress=event.progress, reason=event.progress.message))


def hear_source_failed(turn: Turn, event: SourceFailed) -> None:
    if model := turn.current(event.name, event.attempt):
        fail(turn, model, event.error, event.at)


def hear_start_failed(turn: Turn, event: PoolStartFailed) -> None:
    if model := turn.owner(event.pool):
        fail(turn, replace(model, pool=None), EngineFailed(event.message), event.at)


def place(turn: Turn, event: SourceResolved) -> None:
    model = turn.current(event.name, event.attempt)
    if model is None:
        return
    loading = [other.plan for other in turn.models.values() if other.phase is Phase.LOADING and other.plan]
    inventory = with_reservations(event.inventory, loading)
    decision = make_plan(
        event.facts,
        model.request.options,
        inventory.snapshot,
        inventory.statuses,
        usage=inventory.usage,
        policy=inventory.policy,
    )
    if not isinstance(decision, Plan):
        candidates = tuple(
            {"backend": candidate.backend.value, "reasons": list(candidate.reasons)}
            for candidate in decision.candidates
        )
        model = replace(model, facts=event.facts, refusal=decision)
        fail(turn, model, PlacementRefused(decision.message, candidates), event.at)
        return
    pool = pool_name(model.name, turn.epoch, model.attempt)
    model = turn.put(
        replace(
            model,
            phase=Phase.LOADING,
            reason=f"starting {decision.backend.value}: {decision.why}",
            since=event.at,
            facts=event.facts,
            plan=decision,
            pool=pool,
            progress=None,
        )
    )
    turn.effects.append(Remember(record_of(model)))
    turn.effects.append(StartPool(pool, model.name, decision, model.request.replicas))
