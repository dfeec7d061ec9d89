"""Control as a state machine: ``step(state, event) -> (state, effects)``, with no clock, no Ray, no I/O.

What it keeps true, in whatever order events arrive and after a restart between any two of them:
no model is lost, nothing runs that nobody asked for, every wish is met or refused with a reason, and
every caller is answered once.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from xgen_ray.errors import (
    EngineFailed,
    ModelNotFound,
    NameConflict,
    PlacementRefused,
    WrongState,
    XgenRayError,
)
from xgen_ray.placement import plan as make_plan
from xgen_ray.placement.types import Plan
from xgen_ray.process.types import FailureClass
from xgen_ray.schema import FailureReport, LoadRequest, Origin, Phase
from xgen_ray.serving.reservations import with_reservations
from xgen_ray.serving.routes import routes_of
from xgen_ray.serving.state import (
    Answer,
    CancelResolve,
    ControlState,
    Effect,
    Event,
    Forget,
    LoadAsked,
    Model,
    PoolsObserved,
    PoolStartFailed,
    PoolState,
    Publish,
    Record,
    Remember,
    ReplicaReported,
    Resolve,
    Restored,
    SourceFailed,
    SourceProgressed,
    SourceResolved,
    StartPool,
    StopPool,
    UnloadAsked,
)
from xgen_ray.serving.table import RoutingTable

POOL_PREFIX = "xgen-pool-"

# Starting the same engine on the same file again cannot end differently.
FATAL_FAILURES = frozenset(
    {
        FailureClass.BAD_MODEL_FILE,
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        FailureClass.OUT_OF_MEMORY,
        FailureClass.DEVICE_MISSING,
        FailureClass.DEVICE_PERMISSION,
        FailureClass.UNKNOWN_FLAG,
        FailureClass.MISSING_LIBRARY,
        FailureClass.MISSING_BINARY,
        FailureClass.ILLEGAL_INSTRUCTION,
        FailureClass.NOT_READY_IN_TIME,
    }
)
MAX_FAILED_STARTS = 3
KEPT_FAILURES = 10


def step(state: ControlState, event: Event) -> tuple[ControlState, tuple[Effect, ...]]:
    """The whole of control's judgement."""
    turn = _Turn(state)
    match event:
        case Restored():
            _restore(turn, event)
        case LoadAsked():
            _load(turn, event)
        case UnloadAsked():
            _unload(turn, event)
        case SourceProgressed():
            _hear_progress(turn, event)
        case SourceResolved():
            _place(turn, event)
        case SourceFailed():
            _hear_source_failed(turn, event)
        case ReplicaReported():
            _hear_replica(turn, event)
        case PoolsObserved():
            _observe(turn, event)
        case PoolStartFailed():
            _hear_start_failed(turn, event)
        case _:
            assert_never(event)
    return turn.finish()


def pool_name(model: str, epoch: str, attempt: int) -> str:
    """A Serve application name for one load of ``model``; readable, and never used twice."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40]
    return f"{POOL_PREFIX}{slug}-{epoch}-{attempt}"


@dataclass
class _Turn:
    """One step in the making: the models as they change, and the effects in their order."""

    before: ControlState
    models: dict[str, Model] = field(init=False)
    strays: set[str] = field(init=False)
    attempts: int = field(init=False)
    epoch: str = field(init=False)
    effects: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models = dict(self.before.models)
        self.strays = set(self.before.stray_pools)
        self.attempts = self.before.attempts
        self.epoch = self.before.epoch

    def put(self, model: Model) -> Model:
        self.models[model.name] = model
        return model

    def current(self, name: str, attempt: int) -> Model | None:
        """The model, if this attempt to resolve its source is still the one that counts."""
        model = self.models.get(name)
        resolving = model is not None and model.phase is Phase.RESOLVING and model.attempt == attempt
        return model if resolving else None

    def owner(self, pool: str) -> Model | None:
        return next((model for model in self.models.values() if model.pool == pool), None)

    def answer(self, model: Model, error: XgenRayError | None) -> Model:
        """Answers everyone who waits for the load to end."""
        self.effects += [Answer(caller, model.name, error) for caller in sorted(model.callers)]
        return self.put(replace(model, callers=frozenset()))

    def remove(self, model: Model) -> None:
        self.effects += [Answer(caller, model.name) for caller in sorted(model.leavers)]
        del self.models[model.name]

    def begin(self, model: Model, at: float, reason: str) -> Model:
        """A new attempt, from the start."""
        self.attempts += 1
        fresh = self.put(
            replace(
                model,
                phase=Phase.RESOLVING,
                reason=reason,
                attempt=self.attempts,
                since=at,
                pool=None,
                pool_state=None,
                replicas={},
                plan=None,
                refusal=None,
                progress=None,
            )
        )
        self.effects.append(Remember(_record(fresh)))
        self.effects.append(Resolve(fresh.name, fresh.attempt, fresh.request))
        return fresh

    def finish(self) -> tuple[ControlState, tuple[Effect, ...]]:
        table = self.before.table
        routes = routes_of(self.models.values())
        if routes != table.routes or self.epoch != table.epoch:
            table = RoutingTable(self.epoch, table.version + 1, routes)
            # Routers learn first: nobody who was told of a change can meet a router that was not.
            answers = [effect for effect in self.effects if isinstance(effect, Answer)]
            others = [effect for effect in self.effects if not isinstance(effect, Answer)]
            self.effects = [*others, Publish(table), *answers]
        state = ControlState(self.epoch, self.attempts, self.models, frozenset(self.strays), table)
        return state, tuple(self.effects)


def _record(model: Model) -> Record:
    return Record(
        model.name, model.request, model.origin, model.created, model.proven, model.plan, model.pool
    )


def _new(name: str, request: LoadRequest, origin: Origin, at: float) -> Model:
    return Model(name, request, origin, Phase.RESOLVING, "", attempt=0, since=at, created=at)


def _restore(turn: _Turn, event: Restored) -> None:
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
    _stop_strays(turn, event.pools)


def _stop_strays(turn: _Turn, pools: Mapping[str, PoolState]) -> None:
    owned = {model.pool for model in turn.models.values()}
    turn.strays = {pool for pool in pools if pool not in owned}
    for pool in sorted(turn.strays):
        _insist(turn, pool, pools)


def _insist(turn: _Turn, pool: str | None, pools: Mapping[str, PoolState]) -> bool:
    """Whether the pool is still there. Its stop is asked for again while it does not look like stopping:
    the first one may have got lost.
    """
    if pool is None or pool not in pools:
        return False
    if pools[pool] is not PoolState.STOPPING:
        turn.effects.append(StopPool(pool))
    return True


def _load(turn: _Turn, event: LoadAsked) -> None:
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


def _unload(turn: _Turn, event: UnloadAsked) -> None:
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


def _hear_progress(turn: _Turn, event: SourceProgressed) -> None:
    if model := turn.current(event.name, event.attempt):
        turn.put(replace(model, progress=event.progress, reason=event.progress.message))


def _hear_source_failed(turn: _Turn, event: SourceFailed) -> None:
    if model := turn.current(event.name, event.attempt):
        _fail(turn, model, event.error, event.at)


def _hear_start_failed(turn: _Turn, event: PoolStartFailed) -> None:
    if model := turn.owner(event.pool):
        _fail(turn, replace(model, pool=None), EngineFailed(event.message), event.at)


def _place(turn: _Turn, event: SourceResolved) -> None:
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
        _fail(turn, model, PlacementRefused(decision.message, candidates), event.at)
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
    turn.effects.append(Remember(_record(model)))
    turn.effects.append(StartPool(pool, model.name, decision, model.request.replicas))


def _fail(turn: _Turn, model: Model, error: XgenRayError, at: float) -> None:
    """The load ends here. The wish is kept only if it has worked before."""
    if model.pool is not None:
        turn.effects.append(StopPool(model.pool))
    if not model.proven and model.origin is Origin.API:
        turn.effects.append(Forget(model.name))
    failed = replace(
        model, phase=Phase.FAILED, reason=str(error), since=at, progress=None, pool_state=PoolState.STOPPING
    )
    turn.answer(turn.put(failed), error)


def _hear_replica(turn: _Turn, event: ReplicaReported) -> None:
    model = turn.owner(event.pool)
    if model is None or model.phase in (Phase.UNLOADING, Phase.FAILED):
        return
    replicas = {**model.replicas, event.status.replica_id: event.status}
    failures = model.failures
    if event.failure is not None:
        failures = (event.failure, *failures)[:KEPT_FAILURES]
        del replicas[event.status.replica_id]
    model = turn.put(replace(model, replicas=replicas, failures=failures))
    if event.failure is not None and model.phase is Phase.LOADING:
        _hear_failed_start(turn, model, event.failure)
        return
    _settle(turn, model, event.status.since)


def _hear_failed_start(turn: _Turn, model: Model, failure: FailureReport) -> None:
    starts = sum(1 for past in model.failures if past.at >= model.since)
    if failure.failure in FATAL_FAILURES or starts >= MAX_FAILED_STARTS:
        advice = f" {failure.advice}" if failure.advice else ""
        error = EngineFailed(f"{failure.message}{advice}", failure.failure, failure.log_tail)
        _fail(turn, model, error, failure.at)
    else:
        turn.put(replace(model, reason=f"start {starts} of {MAX_FAILED_STARTS} failed: {failure.message}"))


def _settle(turn: _Turn, model: Model, at: float) -> None:
    """Brings the phase in line with the replicas that are there."""
    ready = sum(1 for status in model.replicas.values() if status.state == "ready")
    if ready:
        reason = f"{ready} of {model.request.replicas} replicas ready"
        if model.phase is not Phase.READY:
            model = replace(model, phase=Phase.READY, since=at, proven=True, progress=None)
            turn.effects.append(Remember(_record(model)))
        turn.answer(replace(model, reason=reason), None)
    elif model.phase is Phase.READY:
        last = model.failures[0].message if model.failures else "its replica is gone"
        turn.put(replace(model, phase=Phase.RECOVERING, reason=f"starting again: {last}", since=at))
    elif model.phase in (Phase.LOADING, Phase.RECOVERING):
        latest = max(model.replicas.values(), key=lambda status: status.since, default=None)
        if latest is not None and latest.progress is not None:
            turn.put(replace(model, progress=latest.progress))


def _observe(turn: _Turn, event: PoolsObserved) -> None:
    handlers: dict[Phase, Callable[[_Turn, Model, PoolsObserved], None]] = {
        Phase.UNLOADING: _observe_leaving,
        Phase.FAILED: _observe_failed,
        Phase.LOADING: _observe_running,
        Phase.READY: _observe_running,
        Phase.RECOVERING: _observe_running,
    }
    for model in list(turn.models.values()):
        if model.pool is not None and model.phase in handlers:
            handlers[model.phase](turn, model, event)
    _stop_strays(turn, event.pools)


def _observe_leaving(turn: _Turn, model: Model, event: PoolsObserved) -> None:
    if not _insist(turn, model.pool, event.pools):
        turn.remove(model)


def _observe_failed(turn: _Turn, model: Model, event: PoolsObserved) -> None:
    if not _insist(turn, model.pool, event.pools):
        turn.put(replace(model, pool=None, pool_state=None, replicas={}))


def _observe_running(turn: _Turn, model: Model, event: PoolsObserved) -> None:
    pool = model.pool
    if pool is None:
        return
    if pool not in event.pools:
        # A pool that was never seen may just not be there yet.
        if model.pool_state is not None:
            turn.begin(model, event.at, "its application disappeared; loading again")
        return
    pool_state = event.pools[pool]
    model = turn.put(replace(model, pool_state=pool_state))
    if pool_state is PoolState.FAILED and model.phase is Phase.LOADING:
        message = event.messages.get(pool) or "the application could not be started"
        _fail(turn, model, EngineFailed(message), event.at)
        return
    if pool_state is PoolState.STOPPING:
        return
    alive = event.replicas.get(pool)
    if alive is not None:
        kept = {
            key: status
            for key, status in model.replicas.items()
            if key in alive or status.state not in ("ready", "draining")
        }
        model = turn.put(replace(model, replicas=kept))
    _settle(turn, model, event.at)
