"""What the cluster's autoscaler is told: which nodes are wanted, and which may go. Pure.

Control places models itself, on nodes that exist, and Ray never sees a demand. So the demand is said out
loud: so many nodes of a type, each taken whole by one bundle of its resources. Ray keeps to it until it is
told otherwise, and takes back what is idle and not asked for.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from xgen_ray.placement import AskedNode, NodeType
from xgen_ray.serving.state import ControlState, Model


def nodes_in_use(
    models: Iterable[Model], kinds: Mapping[str, str], closed: Collection[str] = ()
) -> Counter[str]:
    """How many nodes of each type have an engine of a model, had one that is not gone yet, or are drained
    (``closed`` has their ids): none of them is to be had.
    """
    used = {app.node_id for model in models for app in model.apps.values()} | set(closed)
    return Counter(kinds[node_id] for node_id in used if node_id in kinds)


def nodes_asked_for(
    models: Iterable[Model],
    kinds: Mapping[str, str],
    types: Mapping[str, NodeType],
    closed: Collection[str] = (),
) -> Mapping[str, int]:
    """How many nodes of each type there must be, for what waits for nodes. Empty when nothing does.

    A node that is in use or drained counts as well: what waits needs one beside it.
    """
    found = list(models)
    awaited = Counter(
        node.kind for model in found if model.awaited is not None for node in model.awaited.demand.fresh
    )
    used = nodes_in_use(found, kinds, closed)
    # More than there may be would have the whole demand ignored.
    return {
        name: min(types[name].max_workers, count + used[name])
        for name, count in sorted(awaited.items())
        if name in types
    }


def asked_by_others(models: Iterable[Model], name: str) -> tuple[AskedNode, ...]:
    """The nodes that other models than ``name`` ask for, each with all that they mean to have there."""
    demands = [model.awaited.demand for model in models if model.awaited is not None and model.name != name]
    plans = [(node.node_id, node.plans) for one in demands for node in (*one.fresh, *one.shared)]
    return tuple(
        replace(
            node, plans=tuple(plan for node_id, many in plans if node_id == node.node_id for plan in many)
        )
        for one in demands
        for node in one.fresh
    )


def nodes_at_rest(state: ControlState) -> frozenset[str]:
    """The autoscaler's nodes that nothing needs: no engine is there, and nobody looks for a place."""
    types, kinds = state.node_types, state.node_kinds
    models = state.models.values()
    if any(model.looking or model.awaited or model.evicting for model in models):
        return frozenset()
    used = {app.node_id for model in models for app in model.apps.values()}
    return frozenset(node_id for node_id, kind in kinds.items() if kind in types and node_id not in used)


def node_words(counts: Mapping[str, int]) -> str:
    """Nodes of types, as a sentence names them."""
    return " and ".join(
        f"a node of the type {name}" if count == 1 else f"{count} nodes of the type {name}"
        for name, count in sorted(counts.items())
    )
