"""The decision over all nodes: which of them gets each replica, with which plan, or why none does."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.choose import model_name
from xgen_ray.placement.estimates import Observation
from xgen_ray.placement.evict import eviction
from xgen_ray.placement.exclusions import Exclusion
from xgen_ray.placement.field import Field
from xgen_ray.placement.policy import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.placement.scale import Scale
from xgen_ray.placement.types import EngineOptions, Plan
from xgen_ray.placement.verdicts import (
    Assignment,
    FleetPlan,
    FleetRefusal,
    NodeVerdict,
    refusal_message,
)
from xgen_ray.placement.views import NodeView


def plan_fleet(
    facts: ModelFacts,
    options: EngineOptions,
    nodes: Sequence[NodeView],
    *,
    replicas: int = 1,
    exclusions: Sequence[Exclusion] = (),
    policy: PlacementPolicy = DEFAULT_POLICY,
    spread: bool | None = None,
    on: Collection[str] | None = None,
    partial: bool = False,
    evict_idle: bool = False,
    thorough: bool = False,
    per_gpu: bool = False,
    observations: Sequence[Observation] = (),
) -> FleetPlan | FleetRefusal:
    """A node and a plan for each of ``replicas``, or why there is none. The order of ``nodes`` is nothing.

    Replicas are placed one after another, each with what the ones before it take gone from the figures;
    they may use different backends. All get a place or none does, unless ``partial``. ``spread`` holds
    where the options do not say, and the policy's word where neither does. ``on`` are names or ids of the
    only nodes to use. With ``evict_idle`` idle models may be named for unloading. ``thorough`` weighs
    every node of a large fleet too, to show them all; with ``per_gpu`` each candidate tells of every GPU.
    """
    unknown = _unknown(on, nodes)
    if unknown:
        return _no_such_node(unknown, nodes)
    wish = options.spread if options.spread is not None else spread
    scale = Scale(
        facts,
        options,
        policy,
        tuple(exclusions),
        tuple(observations),
        policy.spread if wish is None else wish,
        per_gpu,
    )
    most = max(1, len(nodes) if thorough else policy.nodes_weighed)

    field = Field(scale, nodes, on=on, most=most)
    placing = _place(scale, field, replicas, evict=False)
    if placing.missing == 0:
        return FleetPlan(placing.assignments, placing.nodes)
    evicting = placing
    if any(view.idle_models for view in nodes):
        # An attempt that has placed nothing leaves the field as it was.
        again = Field(scale, nodes, on=on, most=most) if placing.assignments else field
        evicting = _place(scale, again, replicas, evict=True)
    evict = evicting.evict if evicting.missing == 0 else ()
    if evict and evict_idle:
        return FleetPlan(evicting.assignments, evicting.nodes, evict)
    message = refusal_message(scale, placing.nodes, len(placing.assignments), replicas, evict, on)
    if partial and placing.assignments:
        return FleetPlan(placing.assignments, placing.nodes, missing=placing.missing, message=message)
    return FleetRefusal(message, placing.nodes, evict)


@dataclass(frozen=True, slots=True)
class _Placing:
    """How far an attempt came; ``nodes`` are the verdicts when the last replica was up."""

    assignments: tuple[Assignment, ...]
    missing: int
    nodes: tuple[NodeVerdict, ...]
    evict: tuple[str, ...] = ()


def _place(scale: Scale, field: Field, replicas: int, *, evict: bool) -> _Placing:
    assignments: list[Assignment] = []
    evicted: list[str] = []
    verdicts: tuple[NodeVerdict, ...] = ()
    while len(assignments) < replicas:
        best = field.best()
        if best is None and evict:
            room = eviction(scale, field)
            if room is not None:
                names = [model.name for model in room.models]
                evicted += names
                field.unload(names)
                best = field.best()
        if best is None:
            return _Placing(tuple(assignments), replicas - len(assignments), field.verdicts(), tuple(evicted))
        view, scored, second = best
        made = scale.plan_on(view, field.placed[view.node_id])
        if not isinstance(made, Plan):
            message = f"{view.name} was weighed as able to run {model_name(scale.facts)}: {made.message}"
            raise RuntimeError(message)
        why = (
            scored.text
            if second is None
            else f"{scored.text}. Next best is {second.name}: {second.reasons[0]}"
        )
        assignments.append(Assignment(view.node_id, view.name, made, why))
        if len(assignments) == replicas:
            verdicts = field.verdicts()
        field.place(view, made)
    return _Placing(tuple(assignments), 0, verdicts, tuple(evicted))


def _unknown(on: Collection[str] | None, nodes: Sequence[NodeView]) -> tuple[str, ...]:
    known = {view.name for view in nodes} | {view.node_id for view in nodes}
    return tuple(sorted(name for name in on or () if name not in known))


def _no_such_node(unknown: Sequence[str], nodes: Sequence[NodeView]) -> FleetRefusal:
    views = sorted(nodes, key=lambda view: (view.name, view.node_id))
    names = ", ".join(view.name for view in views) or "none"
    message = f"there is no node {' or '.join(unknown)}; the nodes are: {names}. Name one of these, or none."
    reason = (f"not asked: the request names {', '.join(unknown)}, which is no node",)
    verdicts = tuple(NodeVerdict(view.node_id, view.name, False, reason) for view in views)
    return FleetRefusal(message, verdicts)
