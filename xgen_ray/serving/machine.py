"""Control as a state machine: ``step(state, event) -> (state, effects)``, with no clock, no Ray, no I/O.

What it keeps true, in whatever order events arrive and after a restart between any two of them:
no model is lost, nothing runs that nobody asked for, every wish is met or refused with a reason, and
every caller is answered once.
"""

from typing import assert_never

from xgen_ray.serving.draining import drain, end_drain, let_go
from xgen_ray.serving.effects import Effect
from xgen_ray.serving.events import (
    AppPrepared,
    AppProgressed,
    AppRefused,
    AppsObserved,
    AppStartFailed,
    DrainAsked,
    DrainLifted,
    Event,
    ExclusionsLifted,
    LoadAsked,
    LookDone,
    LookFailed,
    LookProgressed,
    NodesObserved,
    PacesReported,
    ReplicaReported,
    RestartAsked,
    Restored,
    ScaleAsked,
    UnloadAsked,
    UseReported,
    WakeAsked,
)
from xgen_ray.serving.placing import (
    hear_app_progress,
    hear_look_failed,
    hear_prepared,
    hear_progress,
    hear_refused,
    hear_start_failed,
    place,
)
from xgen_ray.serving.restoring import restore
from xgen_ray.serving.sightings import hear_replica, hear_use, observe, observe_nodes
from xgen_ray.serving.sizing import follow_load, hear_paces, hear_scale, hear_wake
from xgen_ray.serving.state import ControlState
from xgen_ray.serving.turn import Turn
from xgen_ray.serving.wishes import lift, load, restart, unload


def step(state: ControlState, event: Event) -> tuple[ControlState, tuple[Effect, ...]]:
    """The whole of control's judgement."""
    turn = Turn(state)
    _apply(turn, event)
    let_go(turn)
    return turn.finish()


def _apply(turn: Turn, event: Event) -> None:  # noqa: C901  # one line a kind of event
    match event:
        case Restored():
            restore(turn, event)
        case LoadAsked():
            load(turn, event)
        case UnloadAsked():
            unload(turn, event)
        case RestartAsked():
            restart(turn, event)
        case ExclusionsLifted():
            lift(turn, event)
        case DrainAsked():
            drain(turn, event)
        case DrainLifted():
            end_drain(turn, event)
        case LookProgressed():
            hear_progress(turn, event)
        case LookDone():
            place(turn, event)
        case LookFailed():
            hear_look_failed(turn, event)
        case AppProgressed():
            hear_app_progress(turn, event)
        case AppPrepared():
            hear_prepared(turn, event)
        case AppRefused():
            hear_refused(turn, event)
        case AppStartFailed():
            hear_start_failed(turn, event)
        case ReplicaReported():
            hear_replica(turn, event)
        case AppsObserved():
            observe(turn, event)
            follow_load(turn, event.at)
        case NodesObserved():
            observe_nodes(turn, event)
        case UseReported():
            hear_use(turn, event)
        case PacesReported():
            hear_paces(turn, event)
        case WakeAsked():
            hear_wake(turn, event)
        case ScaleAsked():
            hear_scale(turn, event)
        case _:
            assert_never(event)
