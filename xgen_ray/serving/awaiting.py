"""A model without a place waits for a node, if the autoscaler could start one that would do."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from xgen_ray.errors import PlacementRefused
from xgen_ray.placement import NodeDemand, NodeVerdict, node_demand
from xgen_ray.placement.types import EngineOptions
from xgen_ray.serving.events import LookDone
from xgen_ray.serving.state import Awaited, Model
from xgen_ray.serving.supply import asked_by_others, node_words, nodes_in_use
from xgen_ray.serving.turn import Turn

# A cloud may have none to give; a machine and its image take minutes.
NODE_PATIENCE_S: Final = 900.0
# A node that joins is seen at once; this is for what else may change meanwhile.
LOOK_EVERY_S: Final = 30.0
# A node that has joined answers once it has tried its engines.
JOINING_S: Final = 3.0


def await_nodes(
    turn: Turn,
    model: Model,
    event: LookDone,
    options: EngineOptions,
    error: PlacementRefused,
    *,
    missing: int,
    taken: Collection[str] = (),
) -> PlacementRefused | None:
    """Has the model wait for nodes that would hold the ``missing`` replicas. Where none would, or none has
    come for long, returns ``error`` with that in its words. ``taken`` are the nodes that have just got one.
    """
    if not turn.node_types:
        return error
    if model.request.nodes is not None:
        return error
    unfit = {**model.unfit, **_unfit(turn, model, event, taken)}
    demand = _demand(turn, model, event, options, missing, unfit)
    since = model.awaited.since if model.awaited is not None else event.at
    model = turn.put(replace(model, unfit=unfit, awaited=None))
    if not demand.counts:
        said = "; ".join(f"{name}: {reason}" for name, reason in sorted(demand.reasons.items()))
        return _with(error, f"No node that the autoscaler may start would do: {said}")
    kinds = node_words(demand.counts)
    if event.at - since > NODE_PATIENCE_S:
        return _with(error, f"{kinds} was asked for {event.at - since:.0f} s ago, and has not come.")
    waits = f"waiting for {kinds}: {error.message}"
    pause_s = JOINING_S if event.fleet.silent else LOOK_EVERY_S
    model = replace(model, awaited=Awaited(demand, since), retry_at=event.at + pause_s)
    turn.put(replace(model, shortfall=waits) if model.live else replace(model, reason=waits))
    return None


def foreseen(turn: Turn, model: Model, event: LookDone, options: EngineOptions) -> str:
    """What a load that has no place would wait for; empty where it would be refused."""
    demand = _demand(turn, model, event, options, model.wanted, {})
    return f" It would wait for {node_words(demand.counts)}." if demand.counts else ""


def _demand(
    turn: Turn,
    model: Model,
    event: LookDone,
    options: EngineOptions,
    missing: int,
    unfit: Mapping[str, str],
) -> NodeDemand:
    used = nodes_in_use(turn.models.values(), turn.node_kinds, turn.closed)
    return node_demand(
        event.facts,
        options,
        [(kind, kind.max_workers - used[kind.name]) for kind in turn.node_types.values()],
        replicas=missing,
        asked=asked_by_others(turn.models.values(), model.name),
        unfit=unfit,
        exclusions=turn.exclusions,
        observations=turn.observations,
        policy=event.fleet.policy,
    )


def _unfit(turn: Turn, model: Model, event: LookDone, taken: Collection[str]) -> Mapping[str, str]:
    """The types of which a node is here with nothing on it, and still it was not taken: whatever they
    declare, another one would not do either.
    """
    used = {app.node_id for other in turn.models.values() for app in other.apps.values()} | set(taken)
    verdicts = {verdict.node_id: verdict for verdict in model.verdicts}
    return {
        view.node_type: f"{view.name} is one, and does not do: {_said(verdicts.get(view.node_id))}"
        for view in event.fleet.nodes
        if view.node_type and view.schedulable and not view.leased and view.node_id not in used
        if not view.outstanding.claims
    }


def _said(verdict: NodeVerdict | None) -> str:
    if verdict is None:
        return "it was not weighed"
    return verdict.message or "; ".join(verdict.reasons)


def _with(error: PlacementRefused, more: str) -> PlacementRefused:
    return PlacementRefused(f"{error.message} {more}", error.candidates)
