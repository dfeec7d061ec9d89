"""From a model's facts and the fleet to apps: the plan, the leases on their nodes, the start."""

from dataclasses import replace

from xgen_ray.errors import EngineFailed, NotReady, PlacementRefused, WrongState, XgenRayError
from xgen_ray.placement import (
    Exclusion,
    FleetPlan,
    FleetRefusal,
    IdleModel,
    claims_of,
    node_kind,
    plan_fleet,
    threads_of,
)
from xgen_ray.placement.types import EngineOptions
from xgen_ray.schema import LoadRequest, Origin, Phase
from xgen_ray.serving.awaiting import await_nodes, foreseen
from xgen_ray.serving.draining import without_drained
from xgen_ray.serving.effects import PrepareApp, StartApp, StopApp
from xgen_ray.serving.events import (
    AppPrepared,
    AppProgressed,
    AppRefused,
    AppStartFailed,
    LookDone,
    LookFailed,
    LookProgressed,
)
from xgen_ray.serving.sizing import can_sleep, doze
from xgen_ray.serving.state import App, AppPhase, ControlState, Model
from xgen_ray.serving.turn import Turn, fail, retry_pause
from xgen_ray.serving.wishes import leave, missing_replicas, new_model

# A model that nobody asked for this long may be unloaded to make room, if a load says so.
IDLE_S = 60.0
# Two loads may want the same memory at once: the one that comes second plans again.
MAX_REFUSED = 5
# A node that is starting, or has much to do, may answer the next time.
MAX_LOOKS = 4
LOOK_AGAIN_S = 3.0


def hear_progress(turn: Turn, event: LookProgressed) -> None:
    if model := turn.current(event.name, event.attempt):
        turn.put(replace(model, progress=event.progress, reason=event.progress.message))


def hear_look_failed(turn: Turn, event: LookFailed) -> None:
    model = turn.current(event.name, event.attempt)
    if model is None:
        return
    model = turn.put(replace(model, looking=False))
    if isinstance(event.error, NotReady) and model.setbacks < MAX_LOOKS:
        _look_later(turn, model, event.error, event.at)
    else:
        fall_short(turn, model, event.error, event.at)


def place(turn: Turn, event: LookDone) -> None:
    model = turn.current(event.name, event.attempt)
    if model is None:
        return
    model = turn.put(replace(model, looking=False, facts=event.facts))
    if missing_replicas(model) <= 0:
        turn.put(replace(model, awaited=None))
        return
    event = replace(event, fleet=without_drained(event.fleet, turn.drained))
    decision = _decide(turn, model, event, turn.exclusions)
    if isinstance(decision, FleetRefusal):
        _refused(turn, model, event, decision)
    elif decision.evict:
        _make_room(turn, model, decision, event.at)
    else:
        _start_preparing(turn, model, decision, event)


def _look_later(turn: Turn, model: Model, why: XgenRayError, at: float) -> None:
    """Ask the nodes once more in a moment. Who waits for the load goes on waiting."""
    turn.put(
        replace(
            model,
            reason=f"looking again in {LOOK_AGAIN_S:.0f} s: {why}",
            setbacks=model.setbacks + 1,
            retry_at=at + LOOK_AGAIN_S,
        )
    )


def _decide(
    turn: Turn, model: Model, event: LookDone, exclusions: tuple[Exclusion, ...], *, to_show: bool = False
) -> FleetPlan | FleetRefusal:
    request = model.request
    nodes = tuple(
        replace(view, idle_models=idle_models(turn, view.node_id, event.at, besides=model.name))
        for view in event.fleet.nodes
    )
    return plan_fleet(
        event.facts,
        options_of(model),
        nodes,
        replicas=missing_replicas(model),
        exclusions=exclusions,
        observations=turn.observations,
        policy=event.fleet.policy,
        on=request.nodes,
        partial=bool(model.live) or model.proven,
        evict_idle=request.evict == "idle",
        thorough=to_show,
        per_gpu=to_show,
    )


def options_of(model: Model) -> EngineOptions:
    """What was asked for, with what was learned by running out of memory."""
    options = model.request.options
    if model.context_limit is None:
        return options
    return options.model_copy(update={"context": model.context_limit})


def dry_run(request: LoadRequest, event: LookDone, state: ControlState) -> FleetPlan | FleetRefusal:
    """What a load would do, with nothing done."""
    model = new_model("", request, event.at)
    turn = Turn(state)
    event = replace(event, fleet=without_drained(event.fleet, turn.drained))
    decision = _decide(turn, model, event, turn.exclusions, to_show=True)
    if isinstance(decision, FleetRefusal) and turn.node_types and request.nodes is None:
        told = decision.message + foreseen(turn, model, event, options_of(model))
        return replace(decision, message=told)
    return decision


def idle_models(turn: Turn, node_id: str, at: float, *, besides: str) -> tuple[IdleModel, ...]:
    """Loaded models with an engine on the node that nobody has asked for in a while. Declared ones stay, but
    for those that may sleep; so do those that are pinned.
    """
    found = []
    for model in turn.models.values():
        stays = model.origin is Origin.DECLARED and not can_sleep(model)
        if model.name == besides or model.phase is not Phase.READY or stays or model.request.pinned:
            continue
        busy = any(
            (replica.status.running or 0) + (replica.status.waiting or 0) > 0
            for app in model.live
            for replica in app.replicas.values()
        )
        idle_s = at - max(turn.used.get(model.name, 0.0), model.since)
        plans = [app.plan for app in model.live if app.node_id == node_id]
        if busy or idle_s < IDLE_S or not plans:
            continue
        claims = tuple(claim for plan in plans for claim in claims_of(plan))
        found.append(IdleModel(model.name, idle_s, claims, sum(threads_of(plan) for plan in plans)))
    return tuple(found)


def _refused(turn: Turn, model: Model, event: LookDone, refusal: FleetRefusal) -> None:
    model = turn.put(replace(model, refusal=refusal, verdicts=refusal.nodes))
    candidates = tuple(
        {"node": verdict.name, "backend": candidate.backend.value, "reasons": list(candidate.reasons)}
        for verdict in refusal.nodes
        for candidate in verdict.candidates
    )
    refused = PlacementRefused(refusal.message, candidates)
    error: XgenRayError = refused
    if event.fleet.silent and not model.setbacks and not model.live:
        _look_later(turn, model, error, event.at)
        return
    missing = missing_replicas(model)
    waits_not = await_nodes(turn, model, event, options_of(model), refused, missing=missing)
    if waits_not is None:
        return
    model, error = turn.models[model.name], waits_not
    if model.last_rung is not None and not model.live:
        # If only what just failed is left, to leave it out for good would leave the model with nothing.
        exclusion, cause = model.last_rung
        others = tuple(kept for kept in turn.exclusions if not kept.is_like(exclusion))
        if isinstance(_decide(turn, model, event, others), FleetPlan):
            turn.exclusions = others
            error = cause
        else:
            error = _with_ladder(cause, error)
        model = turn.put(replace(model, last_rung=None))
    fall_short(turn, model, error, event.at)


def _with_ladder(cause: XgenRayError, refusal: XgenRayError) -> XgenRayError:
    failure = cause.failure if isinstance(cause, EngineFailed) else None
    tail = cause.log_tail if isinstance(cause, EngineFailed) else ()
    return EngineFailed(f"{cause.message} No other backend is left: {refusal.message}", failure, tail)


def fall_short(turn: Turn, model: Model, error: XgenRayError, at: float) -> None:
    """Replicas have no place. What runs goes on, and the look is repeated; else the load fails."""
    if not model.live:
        fail(turn, model, error, at)
        return
    turn.put(
        replace(
            model,
            shortfall=str(error),
            awaited=None,
            setbacks=model.setbacks + 1,
            retry_at=at + retry_pause(model),
        )
    )


def _make_room(turn: Turn, model: Model, decision: FleetPlan, at: float) -> None:
    names = ", ".join(decision.evict)
    turn.put(replace(model, evicting=frozenset(decision.evict), reason=f"waiting for {names} to make room"))
    for name in decision.evict:
        if can_sleep(turn.models[name]):
            doze(turn, turn.models[name], at, f"asleep: {model.name} needs the room; a request wakes it")
            continue
        reason = f"unloading: idle, and {model.name} needs the room"
        leave(turn, turn.models[name], at, reason, WrongState(f"{name} makes room for {model.name}"))


def _start_preparing(turn: Turn, model: Model, decision: FleetPlan, event: LookDone) -> None:
    at = event.at
    snapshots = {view.node_id: view.snapshot for view in event.fleet.nodes}
    # One for each replica: an application is stopped as a whole, and what has grown must be able to shrink.
    apps = [
        App(
            name=turn.new_app_name(model.name),
            node_id=one.node_id,
            node=one.node,
            node_kind=node_kind(snapshots[one.node_id], one.plan.backend),
            plan=one.plan,
            phase=AppPhase.PREPARING,
            since=at,
            why=one.why,
        )
        for one in decision.assignments
    ]
    words = "; ".join(f"{app.backend.value} on {app.node}: {app.why}" for app in apps)
    short = decision.missing > 0
    model = replace(
        model,
        apps={**model.apps, **{app.name: app for app in apps}},
        verdicts=decision.nodes,
        refusal=None,
        last_rung=None,
        awaited=model.awaited if short else None,
        shortfall=decision.message if short else None,
        retry_at=at + retry_pause(model) if short else None,
    )
    if model.phase is Phase.RESOLVING:
        model = replace(model, reason=f"preparing {words}", progress=None)
    turn.put(model)
    turn.remember(model)
    if short:
        refused = PlacementRefused(decision.message)
        taken = {app.node_id for app in apps}
        waits_not = await_nodes(
            turn, model, event, options_of(model), refused, missing=decision.missing, taken=taken
        )
        if waits_not is not None:
            turn.put(replace(turn.models[model.name], shortfall=waits_not.message))
    turn.effects += [PrepareApp(app.name, model.name, app.node_id, model.request, app.plan) for app in apps]


def hear_app_progress(turn: Turn, event: AppProgressed) -> None:
    found = turn.owner(event.app)
    if found is not None and found[1].phase is AppPhase.PREPARING:
        model = turn.put_app(found[0], replace(found[1], progress=event.progress))
        if model.phase is not Phase.READY:
            turn.put(replace(model, progress=event.progress, reason=event.progress.message))


def hear_prepared(turn: Turn, event: AppPrepared) -> None:
    found = turn.owner(event.app)
    if found is None:
        # Stopped in the meantime: the stop gives the lease back.
        return
    model, app = found
    if app.phase is not AppPhase.PREPARING:
        return
    app = replace(app, plan=event.plan, phase=AppPhase.STARTING, since=event.at, progress=None)
    model = turn.put_app(model, app)
    if model.phase is Phase.RESOLVING:
        phase = Phase.RECOVERING if model.proven else Phase.LOADING
        model = replace(model, phase=phase, since=event.at, progress=None)
    if model.phase in (Phase.LOADING, Phase.RECOVERING):
        reason = f"starting {app.backend.value} on {app.node}: {app.why}"
        model = turn.put(replace(model, reason=reason))
    turn.remember(model)
    turn.effects.append(StartApp(app.name, model.name, app.node_id, app.node))


def hear_refused(turn: Turn, event: AppRefused) -> None:
    found = turn.owner(event.app)
    if found is None or found[1].phase is not AppPhase.PREPARING:
        return
    model, app = found
    turn.effects.append(StopApp(app.name, app.node_id))
    model = turn.drop_app(model, app.name)
    if event.again and model.setbacks < MAX_REFUSED:
        model = turn.put(replace(model, setbacks=model.setbacks + 1))
        turn.seek(model, event.at, f"planning again: {event.error}")
    else:
        fall_short(turn, model, event.error, event.at)


def hear_start_failed(turn: Turn, event: AppStartFailed) -> None:
    found = turn.owner(event.app)
    if found is None or found[1].phase is AppPhase.STOPPING:
        return
    model, app = found
    turn.effects.append(StopApp(app.name, app.node_id))
    fall_short(turn, turn.drop_app(model, app.name), EngineFailed(event.message), event.at)
