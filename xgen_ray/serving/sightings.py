"""What is seen of replicas, pools and nodes, and what follows from it."""

from collections import Counter
from dataclasses import replace

from xgen_ray.errors import EngineFailed, UnknownOption, XgenRayError
from xgen_ray.models.types import ModelTask
from xgen_ray.placement import DEFAULT_POLICY, Exclusion, Observation, model_key
from xgen_ray.process.types import FailureClass
from xgen_ray.schema import FailureReport, Phase
from xgen_ray.serving.ladder import WINDOW_S, Step, next_step
from xgen_ray.serving.placing import fall_short
from xgen_ray.serving.state import (
    AppState,
    Model,
    NodesObserved,
    Pool,
    PoolPhase,
    PoolsObserved,
    ReplicaReported,
    StopPool,
    UseReported,
)
from xgen_ray.serving.turn import Turn, insist, remove, stop_strays

KEPT_FAILURES = 10
# Of each model, backend and kind of memory.
KEPT_OBSERVATIONS = 8
# A replica says that it is ready a moment before Serve counts it as running.
SETTLING_S = 5.0
# One that loads is there from its first moment; Serve may be slow to count it on a busy node.
STARTING_S = 60.0
_AT_WORK = (PoolPhase.STARTING, PoolPhase.SERVING, PoolPhase.RECOVERING)


def hear_replica(turn: Turn, event: ReplicaReported) -> None:
    if event.observations:
        turn.observations = learned(turn.observations, event.observations)
    found = turn.owner(event.pool)
    if found is None or found[1].phase not in _AT_WORK:
        return
    model, pool = found
    status = event.replica.status
    known = pool.replicas.get(status.replica_id)
    if known is not None and known.status.since > status.since:
        # An answer to a question that was overtaken by the replica's own word.
        return
    replicas = {**pool.replicas, status.replica_id: event.replica}
    if event.failure is not None or status.state == "failed":
        # Asked once more on its way out, it says again that it has failed.
        del replicas[status.replica_id]
    pool = _with_phase(replace(pool, replicas=replicas, progress=status.progress))
    model = turn.put_pool(model, pool)
    if event.failure is not None:
        _hear_death(turn, model, pool, event.failure)
    elif model.phase not in (Phase.UNLOADING, Phase.FAILED):
        settle(turn, model, status.since)


def _with_phase(pool: Pool) -> Pool:
    """The pool with the phase that its replicas give it."""
    if pool.ready:
        return replace(pool, phase=PoolPhase.SERVING, proven=True)
    return replace(pool, phase=PoolPhase.RECOVERING if pool.proven else PoolPhase.STARTING)


def _hear_death(turn: Turn, model: Model, pool: Pool, failure: FailureReport) -> None:
    failure = failure.model_copy(update={"backend": pool.backend, "node": pool.node})
    deaths = ((failure.at, failure.failure), *pool.deaths)
    pool = replace(pool, deaths=tuple(death for death in deaths if death[0] > failure.at - WINDOW_S))
    model = turn.put_pool(
        replace(model, failures=(failure, *model.failures)[:KEPT_FAILURES]),
        pool,
    )
    step, why = next_step(pool.deaths or deaths, can_shrink=_can_shrink(model, pool))
    if step is Step.RESTART:
        reason = f"{failure.message} On {pool.node}: {why}"
        if model.phase is Phase.LOADING:
            turn.put(replace(model, reason=reason))
        settle(turn, turn.models[model.name], failure.at)
        return
    error = _error_of(failure)
    model = turn.stop_pool(model, pool)
    if step is Step.GIVE_UP:
        fall_short(turn, model, error, failure.at)
    elif step is Step.MOVE:
        turn.seek(model, failure.at, f"{failure.message} Looking for another place")
    elif step is Step.SHRINK:
        half = pool.plans[0].options.context // 2
        model = turn.put(replace(model, context_limit=half))
        turn.seek(model, failure.at, f"{failure.message} Trying again with a context of {half}")
    else:
        _descend(turn, model, pool, error, failure.at)


def _can_shrink(model: Model, pool: Pool) -> bool:
    """Only what nobody asked for gives way."""
    options = pool.plans[0].options
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


def _descend(turn: Turn, model: Model, pool: Pool, error: XgenRayError, at: float) -> None:
    """Leave the backend out for this model on this kind of node, and look for another place."""
    plan = pool.plans[0]
    exclusion = Exclusion(
        backend=plan.backend,
        node_kind=pool.node_kind,
        model=model_key(plan.facts),
        reason=f"on {pool.node}: {error.message}",
    )
    if exclusion not in turn.exclusions:
        turn.exclusions = (*turn.exclusions, exclusion)
    model = turn.put(replace(model, last_rung=(exclusion, error)))
    turn.seek(
        model, at, f"{plan.backend.value} failed on {pool.node}, trying what comes next: {error.message}"
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
        turn.answer(replace(model, reason=reason), None)
        return
    if model.phase is Phase.READY:
        last = model.failures[0].message if model.failures else "its replica is gone"
        turn.put(replace(model, phase=Phase.RECOVERING, reason=f"starting again: {last}", since=at))
    elif model.phase in (Phase.LOADING, Phase.RECOVERING):
        progress = [pool.progress for pool in model.live if pool.progress is not None]
        if progress:
            turn.put(replace(model, progress=progress[-1]))


def observe(turn: Turn, event: PoolsObserved) -> None:
    for name in list(turn.models):
        # Earlier models of this turn may have removed or changed later ones.
        if name not in turn.models:
            continue
        for pool in list(turn.models[name].pools.values()):
            if pool.pool not in turn.models[name].pools:
                continue
            if pool.phase is PoolPhase.STOPPING:
                if pool.pool in event.pools:
                    insist(turn, [pool.pool], event.pools)
                else:
                    turn.drop_pool(turn.models[name], pool.pool)
            elif pool.phase in _AT_WORK:
                _observe_at_work(turn, turn.models[name], pool, event)
        model = turn.models[name]
        if model.phase is Phase.UNLOADING:
            if not model.pools:
                remove(turn, model, event.at)
        elif model.retry_at is not None and event.at >= model.retry_at:
            turn.seek(model, event.at, f"trying again after: {model.shortfall or model.reason}")
    stop_strays(turn, event.pools)
    _use_room(turn, event.at)


def _use_room(turn: Turn, at: float) -> None:
    """Who waited for others to make room looks again once nothing of them is left."""
    for model in list(turn.models.values()):
        if model.evicting and not any(_leaves(turn.models.get(name)) for name in model.evicting):
            names = ", ".join(sorted(model.evicting))
            turn.seek(replace(model, evicting=frozenset()), at, f"{names} made room")


def _leaves(model: Model | None) -> bool:
    return model is not None and model.phase in (Phase.UNLOADING, Phase.SLEEPING) and bool(model.pools)


def _observe_at_work(turn: Turn, model: Model, pool: Pool, event: PoolsObserved) -> None:
    app = event.pools.get(pool.pool)
    if app is None:
        # One that was never seen may just not be there yet.
        if pool.app is not None:
            turn.effects.append(StopPool(pool.pool, pool.node_id))
            model = turn.drop_pool(model, pool.pool)
            turn.seek(model, event.at, "its application disappeared; loading again")
        return
    if app is AppState.FAILED and not pool.ready:
        message = event.messages.get(pool.pool) or "the application could not be started"
        fall_short(turn, turn.stop_pool(model, pool), EngineFailed(message), event.at)
        return
    pool = replace(pool, app=app)
    alive = event.replicas.get(pool.pool)
    if alive is not None and app is not AppState.STOPPING:
        kept = {
            key: replica
            for key, replica in pool.replicas.items()
            if key in alive or replica.status.since > event.at - _unseen_s(replica.status.state)
        }
        pool = _with_phase(replace(pool, replicas=kept))
    model = turn.put_pool(model, pool)
    if model.phase not in (Phase.UNLOADING, Phase.FAILED):
        settle(turn, model, event.at)


def _unseen_s(state: str) -> float:
    """How old a replica may be that Serve does not count as running."""
    return SETTLING_S if state in ("ready", "draining") else STARTING_S


def observe_nodes(turn: Turn, event: NodesObserved) -> None:
    before, turn.nodes = turn.nodes, event.nodes
    joined = before is not None and not event.nodes.keys() <= before.keys()
    for name in list(turn.models):
        model = turn.models[name]
        if model.phase is Phase.UNLOADING:
            continue
        lost = [pool for pool in model.live if pool.node_id not in event.nodes]
        for pool in lost:
            model = turn.stop_pool(model, pool)
        if lost:
            names = ", ".join(sorted({pool.node for pool in lost}))
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
