"""How a loaded engine is watched, and what is reported of one that has failed."""

import asyncio
import time
from typing import Final

from xgen_ray.backends import EngineAdapter
from xgen_ray.errors import EngineFailed, InvalidRequest, NotReady, WrongState, XgenRayError
from xgen_ray.process.types import Failure, FailureClass
from xgen_ray.schema import FailureReport
from xgen_ray.serving.ladder import NO_LEASE

# An engine that hangs answers nothing; one under full load may be late for once.
HEALTH_INTERVAL_S: Final = 2.0
HEALTH_MISSES: Final = 3
# So many answers in a row that are no result, and an engine that was doubted is given up. One that gives no
# answer in this time may have much to do: that proves nothing.
PROOFS: Final = 2
PROOF_PATIENCE_S: Final = 30.0
PROOF_PAUSE_S: Final = 1.0
# An engine that could not be started has ended by the time that is said, or is still there.
_ENDED_S: Final = 0.1
_AGAIN: Final = "It is killed and started again. If it happens again, the next backend takes over."


async def end_of_life(adapter: EngineAdapter, doubted: asyncio.Event) -> Failure:
    """Returns once the engine has ended, or must be: it hangs, or was ``doubted`` and computes no more."""
    ways = [adapter.wait(), _hang(adapter), _cannot_compute(adapter, doubted)]
    watched = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in watched:
            task.cancel()
    # Of several, its end explains most.
    return next(task.result() for task in watched if task.done() and not task.cancelled())


async def _hang(adapter: EngineAdapter) -> Failure:
    """Returns once the engine has not answered its health check for several times in a row."""
    misses = 0
    while misses < HEALTH_MISSES:
        await asyncio.sleep(HEALTH_INTERVAL_S)
        # One that has ended does not hang: its end is told once all that it has started is gone.
        well = not adapter.is_loaded or await adapter.health()
        misses = 0 if well else misses + 1
    return Failure(
        FailureClass.WEDGED,
        f"The engine hangs: it did not answer {HEALTH_MISSES} health checks in a row.",
        _AGAIN,
        log_tail=adapter.logs().tail(),
    )


async def _cannot_compute(adapter: EngineAdapter, doubted: asyncio.Event) -> Failure:
    """Returns once an engine that was doubted has given answers that are no result, several in a row.

    Its health check says nothing of that: the server answers it while the device behind it is gone.
    """
    while True:
        await doubted.wait()
        doubted.clear()
        for _ in range(PROOFS):
            trouble = await adapter.trouble(PROOF_PATIENCE_S)
            # Between two proofs, and as a bound for what somebody costs whose requests all fail.
            await asyncio.sleep(PROOF_PAUSE_S)
            if trouble is None:
                break
        else:
            return Failure(
                FailureClass.WEDGED,
                f"The engine answers its health check and does not compute any more: it {trouble}.",
                _AGAIN,
                log_tail=adapter.logs().tail(),
            )


def report_of(failure: Failure) -> FailureReport:
    """A diagnosis, as of now."""
    return FailureReport(
        failure=failure.failure.value,
        message=failure.message,
        advice=failure.advice,
        exit_code=failure.exit_code,
        evidence=failure.evidence,
        log_tail=failure.log_tail,
        at=time.time(),
    )


async def report_of_start(error: XgenRayError, adapter: EngineAdapter | None) -> FailureReport:
    """An engine that could not be started, in the words of a failure; of its own end, if that is why."""
    log_tail: tuple[str, ...] = ()
    if isinstance(error, EngineFailed):
        end = await _end_of(adapter)
        if end is not None and end.failure == error.failure:
            return report_of(end)
        failure, log_tail = error.failure or FailureClass.CRASHED.value, error.log_tail
    elif isinstance(error, NotReady):
        failure = NO_LEASE
    elif isinstance(error, InvalidRequest):
        failure = FailureClass.UNKNOWN_FLAG.value
    else:
        failure = FailureClass.CRASHED.value
    return FailureReport(failure=failure, message=error.message, log_tail=log_tail, at=time.time())


async def _end_of(adapter: EngineAdapter | None) -> Failure | None:
    """Why the engine's process has ended; None if it has not, or there was none."""
    if adapter is None:
        return None
    try:
        async with asyncio.timeout(_ENDED_S):
            return await adapter.wait()
    except (TimeoutError, WrongState):
        return None
