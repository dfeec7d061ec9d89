"""Nodes that an operator takes out of service: nothing new goes there, and what runs there moves away first.

A drained node is known by its name: one that starts again for its upgrade comes back under it, with another
id, and stays drained until that is lifted. Its apps are leaving: they count as no replicas, so others are
looked for, and each serves on until another one does in its place. What has no place elsewhere stays.
"""

from collections.abc import Mapping
from dataclasses import replace

from xgen_ray.errors import InvalidRequest, NotReady, XgenRayError
from xgen_ray.schema import Phase
from xgen_ray.serving.effects import Answer
from xgen_ray.serving.events import DrainAsked, DrainLifted
from xgen_ray.serving.sizing import shrink, use_of
from xgen_ray.serving.state import AppPhase, Fleet, Model
from xgen_ray.serving.turn import Turn
from xgen_ray.serving.wishes import missing_replicas


def why_closed(node: str, besides: str = "") -> str:
    """What a verdict says of a drained node. ``besides`` is what else it says against it."""
    told = f"drained by an operator; `xgen-ray drain {node} --lift` ends that"
    return f"{told}; {besides}" if besides else told


def without_drained(fleet: Fleet, drained: Mapping[str, float]) -> Fleet:
    """The fleet as a plan may use it. Nothing is hoped of a drained node that is silent."""
    if not drained:
        return fleet
    views = tuple(
        replace(view, schedulable=False, reason=why_closed(view.name, view.reason))
        if view.name in drained
        else view
        for view in fleet.nodes
    )
    closed = {view.node_id for view in views if view.name in drained}
    return replace(fleet, nodes=views, silent=fleet.silent - closed)


def drain(turn: Turn, event: DrainAsked) -> None:
    """Close the node. Asking again changes nothing."""
    named = _name_of(turn, event.node)
    if isinstance(named, XgenRayError):
        turn.effects.append(Answer(event.caller, event.node, named))
        return
    turn.effects.append(Answer(event.caller, named))
    if named in turn.drained:
        return
    turn.drained = {**turn.drained, named: event.at}
    for model in list(turn.models.values()):
        _move_away(turn, model, named, event.at)


def _name_of(turn: Turn, node: str) -> str | XgenRayError:
    """The name of the node that is called so, or has that id."""
    if turn.nodes is None:
        return NotReady("control has only just started and has not seen the nodes yet")
    if node in turn.drained:
        return node
    found = [name for node_id, name in turn.nodes.items() if node in (node_id, name)]
    if not found:
        names = ", ".join(sorted(turn.nodes.values())) or "none"
        return InvalidRequest(f"there is no node {node}; the nodes are: {names}", "node")
    alike = [name for name in turn.nodes.values() if name == found[0]]
    if len(alike) > 1:
        message = (
            f"{len(alike)} nodes are named {found[0]}, and a node is drained by its name: join them again "
            "with names of their own (`xgen-ray node --name`)"
        )
        return InvalidRequest(message, "node")
    return found[0]


def _move_away(turn: Turn, model: Model, node: str, at: float) -> None:
    """Its apps on ``node`` are leaving; what has only been promised room there is taken back."""
    here = [app for app in model.live if app.node == node]
    for app in here:
        if app.phase is AppPhase.PREPARING:
            model = turn.stop_app(model, app)
        else:
            model = turn.put_app(model, replace(app, leaving=True))
    if here and missing_replicas(model) > 0 and not model.evicting:
        reason = f"node {node} is drained; looking for another place"
        turn.seek(replace(model, setbacks=0), at, reason)


def end_drain(turn: Turn, event: DrainLifted) -> None:
    """Open the node again. What is still there stays, and what waits for room looks at once."""
    name = event.node if event.node in turn.drained else (turn.nodes or {}).get(event.node, event.node)
    if name not in turn.drained:
        others = ", ".join(sorted(turn.drained)) or "none"
        error = InvalidRequest(f"{event.node} is not drained; drained are: {others}", "node")
        turn.effects.append(Answer(event.caller, event.node, error))
        return
    turn.drained = {node: since for node, since in turn.drained.items() if node != name}
    turn.effects.append(Answer(event.caller, name))
    for model in list(turn.models.values()):
        _stay(turn, model, name, event.at)


def _stay(turn: Turn, model: Model, node: str, at: float) -> None:
    """Its apps on ``node`` count again; a successor that is one too many then goes."""
    back = {app.name: replace(app, leaving=False) for app in model.leaving if app.node == node}
    if back:
        shrink(turn, turn.put(replace(model, apps={**model.apps, **back})))
        model = turn.models[model.name]
    if model.retry_at is not None and model.phase is not Phase.UNLOADING:
        turn.seek(replace(model, setbacks=0), at, f"{node} takes models again; looking for a place")


def let_go(turn: Turn) -> None:
    """Stop what is leaving, as far as others are ready in its place. The end of every step."""
    for name in list(turn.models) if turn.drained else ():
        model = turn.models[name]
        leaving = sorted(model.leaving, key=use_of)
        spare = sum(app.ready for app in model.staying) + len(leaving) - model.wanted
        if leaving and spare > 0:
            for app in leaving[:spare]:
                model = turn.stop_app(model, app)
            turn.remember(model)
