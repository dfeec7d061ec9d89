"""Control as a state machine: ``step(state, event) -> (state, effects)``, with no clock, no Ray, no I/O.

What it keeps true, in whatever order events arrive and after a restart between any two of them:
no model is lost, nothing runs that nobody asked for, every wish is met or refused with a reason, and
every caller is answered once.
"""

from typing import assert_never

from xgen_ray.serving.sightings import hear_replica, observe
from xgen_ray.serving.state import (
    ControlState,
    Effect,
    Event,
    LoadAsked,
    PoolsObserved,
    PoolStartFailed,
    ReplicaReported,
    Restored,
    SourceFailed,
    SourceProgressed,
    SourceResolved,
    UnloadAsked,
)
from xgen_ray.serving.turn import Turn
from xgen_ray.serving.wishes import (
    hear_progress,
    hear_source_failed,
    hear_start_failed,
    load,
    place,
    restore,
    unload,
)


def step(state: ControlState, event: Event) -> tuple[ControlState, tuple[Effect, ...]]:
    """The whole of control's judgement."""
    turn = Turn(state)
    match event:
        case Restored():
            restore(turn, event)
        case LoadAsked():
            load(turn, event)
        case UnloadAsked():
            unload(turn, event)
        case SourceProgressed():
            hear_progress(turn, event)
        case SourceResolved():
            place(turn, event)
        case SourceFailed():
            hear_source_failed(turn, event)
        case ReplicaReported():
            hear_replica(turn, event)
        case PoolsObserved():
            observe(turn, event)
        case PoolStartFailed():
            hear_start_failed(turn, event)
        case _:
            assert_never(event)
    return turn.finish()
