"""What is seen of pools and replicas, and what follows from it."""

from collections.abc import Callable
from dataclasses import replace

from xgen_ray.errors import EngineFailed, UnknownOption, XgenRayError
from xgen_ray.process.types import FailureClass
from xgen_ray.schema import FailureReport, Phase
from xgen_ray.serving.state import Model, PoolsObserved, PoolState, Remember, ReplicaReported
from xgen_ray.serving.turn import Turn, fail, insist, record_of, stop_strays

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
# A replica says that it is ready a moment before Serve counts it as running.
SETTLING_S = 5.0


def hear_replica(turn: Turn, event: ReplicaReported) -> None:
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


def _hear_failed_start(turn: Turn, model: Model, failure: FailureReport) -> None:
    starts = sum(1 for past in model.failures if past.at >= model.since)
    if failure.failure in FATAL_FAILURES or starts >= MAX_FAILED_STARTS:
        advice = f" {failure.advice}" if failure.advice else ""
        message = f"{failure.message}{advice}"
        error: XgenRayError = EngineFailed(message, failure.failure, failure.log_tail)
        if failure.failure == FailureClass.UNKNOWN_FLAG:
            error = UnknownOption(message, "options.extra_args")
        fail(turn, model, error, failure.at)
    else:
        turn.put(replace(model, reason=f"start {starts} of {MAX_FAILED_STARTS} failed: {failure.message}"))


def _settle(turn: Turn, model: Model, at: float) -> None:
    """Brings the phase in line with the replicas that are there."""
    ready = sum(1 for status in model.replicas.values() if status.state == "ready")
    if ready:
        reason = f"{ready} of {model.request.replicas} replicas ready"
        if model.phase is not Phase.READY:
            model = replace(model, phase=Phase.READY, since=at, proven=True, progress=None, setbacks=0)
            turn.effects.append(Remember(record_of(model)))
        turn.answer(replace(model, reason=reason), None)
    elif model.phase is Phase.READY:
        last = model.failures[0].message if model.failures else "its replica is gone"
        turn.put(replace(model, phase=Phase.RECOVERING, reason=f"starting again: {last}", since=at))
    elif model.phase in (Phase.LOADING, Phase.RECOVERING):
        latest = max(model.replicas.values(), key=lambda status: status.since, default=None)
        if latest is not None and latest.progress is not None:
            turn.put(replace(model, progress=latest.progress))


def observe(turn: Turn, event: PoolsObserved) -> None:
    handlers: dict[Phase, Callable[[Turn, Model, PoolsObserved], None]] = {
        Phase.UNLOADING: _observe_leaving,
        Phase.FAILED: _observe_failed,
        Phase.LOADING: _observe_running,
        Phase.READY: _observe_running,
        Phase.RECOVERING: _observe_running,
    }
    for model in list(turn.models.values()):
        if model.pool is not None and model.phase in handlers:
            handlers[model.phase](turn, model, event)
        elif model.phase is Phase.FAILED and model.retry_at is not None and event.at >= model.retry_at:
            turn.begin(model, event.at, f"trying again after: {model.reason}")
    stop_strays(turn, event.pools)


def _observe_leaving(turn: Turn, model: Model, event: PoolsObserved) -> None:
    if not insist(turn, model.pool, event.pools):
        turn.remove(model)


def _observe_failed(turn: Turn, model: Model, event: PoolsObserved) -> None:
    if not insist(turn, model.pool, event.pools):
        turn.put(replace(model, pool=None, pool_state=None, replicas={}))


def _observe_running(turn: Turn, model: Model, event: PoolsObserved) -> None:
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
        fail(turn, model, EngineFailed(message), event.at)
        return
    if pool_state is PoolState.STOPPING:
        return
    alive = event.replicas.get(pool)
    if alive is not None:
        kept = {
            key: status
            for key, status in model.replicas.items()
            if key in alive
            or status.state not in ("ready", "draining")
            or status.since > event.at - SETTLING_S
        }
        model = turn.put(replace(model, replicas=kept))
    _settle(turn, model, event.at)
