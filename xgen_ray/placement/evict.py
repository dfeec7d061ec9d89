"""Which idle models to unload so that another one fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from xgen_ray.placement.field import Field
from xgen_ray.placement.scale import Scale
from xgen_ray.placement.score import Score
from xgen_ray.placement.views import IdleModel, NodeView, without_models

# Up to so many idle models every set is tried; of more, the longest idle that are enough.
_EVERY_SET = 8


@dataclass(frozen=True, slots=True)
class Eviction:
    """Unloading ``models`` makes room on ``node_id``."""

    node_id: str
    models: tuple[IdleModel, ...]


def eviction(scale: Scale, field: Field) -> Eviction | None:
    """The fewest idle models whose unloading makes room on one node; of equals, those idle the longest."""
    found: list[tuple[int, float, Score, str, Eviction]] = []
    for view in field.with_idle_models()[: scale.policy.nodes_weighed]:
        models = smallest(scale, view)
        if models is None:
            continue
        scored = scale.weigh(without_models(view, models)).score
        if scored is not None:
            longest = -min(model.idle_s for model in models)
            found.append((len(models), longest, scored, view.name, Eviction(view.node_id, models)))
    return min(found, key=lambda item: (*item[:4], item[4].node_id))[4] if found else None


def smallest(scale: Scale, view: NodeView) -> tuple[IdleModel, ...] | None:
    """The smallest set of idle models without which the node has room, longest idle first; None if even
    all of them are not enough.
    """
    idle = sorted(view.idle_models, key=lambda model: (-model.idle_s, model.name))

    def enough(models: Sequence[IdleModel]) -> bool:
        return scale.weigh(without_models(view, models)).score is not None

    if not enough(idle):
        return None
    if len(idle) > _EVERY_SET:
        count = next(count for count in range(1, len(idle) + 1) if enough(idle[:count]))
        idle = idle[:count]
    if len(idle) > _EVERY_SET:
        for model in reversed(idle):
            fewer = [item for item in idle if item is not model]
            if enough(fewer):
                idle = fewer
        return tuple(idle)
    sets = (models for size in range(1, len(idle) + 1) for models in combinations(idle, size))
    return next(models for models in sets if enough(models))
