"""The first step of a life of control: the wishes of an earlier one, and what the configuration says now."""

from dataclasses import replace

from xgen_ray.errors import EngineFailed
from xgen_ray.schema import Phase
from xgen_ray.serving.declaring import declare
from xgen_ray.serving.effects import StopApp
from xgen_ray.serving.events import Restored
from xgen_ray.serving.sizing import shrink
from xgen_ray.serving.state import App, AppPhase, Model, Record, ServeState
from xgen_ray.serving.turn import Turn, stop_strays
from xgen_ray.serving.wishes import missing_replicas, new_model


def restore(turn: Turn, event: Restored) -> None:
    turn.epoch = event.epoch
    turn.exclusions = event.exclusions
    turn.observations = event.observations
    turn.costs = event.costs
    turn.node_types = event.node_types
    turn.drained = event.drained
    for record in event.records:
        _take_up(turn, record, event)
    declare(turn, event.declared, event.at)
    for record in event.records:
        if record.name in turn.models:
            _look_for_the_rest(turn, turn.models[record.name], event.at)
    stop_strays(turn, event.apps)


def _take_up(turn: Turn, record: Record, event: Restored) -> None:
    """A wish of an earlier life: the apps that run are adopted."""
    model = replace(
        new_model(record.name, record.request, event.at, record.declared),
        created=record.created,
        proven=record.proven,
        context_limit=record.context_limit,
        last_rung=(rung, EngineFailed(rung.reason)) if (rung := record.last_rung) is not None else None,
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
            leaving=kept.node in turn.drained,
        )
    scaling = record.request.scaling
    if not adopted and record.proven and scaling is not None and scaling.min_replicas == 0:
        reason = "asleep since a restart; a request wakes it"
        turn.put(replace(model, phase=Phase.SLEEPING, wanted=0, reason=reason))
        return
    if adopted:
        leaving = sum(app.leaving for app in adopted.values())
        model = replace(
            model,
            phase=Phase.RECOVERING if record.proven else Phase.LOADING,
            reason="control restarted; asking the running replicas",
            facts=next(iter(adopted.values())).plan.facts,
            apps=adopted,
            # A rule finds out again how many its load needs; a number is what was asked for. What leaves a
            # drained node and what is to follow it are the same replicas.
            wanted=model.wanted if scaling is None else max(model.wanted, leaving, len(adopted) - leaving),
        )
    turn.put(model)


def _look_for_the_rest(turn: Turn, model: Model, at: float) -> None:
    if model.phase in (Phase.UNLOADING, Phase.SLEEPING) or model.evicting or model.looking:
        return
    if not model.live:
        turn.seek(model, at, "loading again after a restart")
    elif missing_replicas(model) > 0:
        turn.seek(model, at, "control restarted; looking for a place for what is missing")
    elif missing_replicas(model) < 0:
        # The life before was told of a smaller number, and ended before it had stopped anything.
        shrink(turn, model)
