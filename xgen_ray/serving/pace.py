"""How fast a model has proven to be on each kind of place, and what such a place costs. Pure: time comes in.

A place is a backend on a kind of device. Its pace is what one engine there answers when all its slots are
busy, in requests like those that the model gets, so that it counts how fast prompts are read and answers
written. Routers measure it; figures fade into newer ones and are dropped when they are too old to tell.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from xgen_ray.placement import device_classes
from xgen_ray.placement.types import Backend, Plan

# How long it takes until newer figures make up two thirds of what is known.
FADE_S: Final = 120.0
# What was measured before says nothing of an engine today.
KEPT_S: Final = 86_400.0
DEFAULT_COST: Final = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """What an engine of the model called ``model`` runs by and on: ``device`` as in the node's tags,
    ``4 x sm_90`` for several.
    """

    model: str
    backend: Backend
    device: str


@dataclass(frozen=True, slots=True)
class Pace:
    """Requests that an engine answers in a second, as of ``at``, and what it costs while it is there."""

    requests_s: float
    cost: float
    at: float

    @property
    def worth(self) -> float:
        return self.requests_s / self.cost


def place_of(model: str, plan: Plan) -> Place:
    names = [device_classes(gpu)[0] for gpu in plan.options.gpus]
    kinds = [f"{count} x {name}" if count > 1 else name for name, count in _counted(names).items()]
    return Place(model, plan.backend, "+".join(kinds) or "cpu")


def cost_of(plan: Plan, costs: Mapping[str, float]) -> float:
    """What an engine of this plan costs: that of each GPU it has, or of the CPU. The most telling name of a
    device counts: ``sm_90`` before ``nvidia``.
    """
    if not plan.options.gpus:
        return costs.get("cpu", DEFAULT_COST)
    return sum(
        next((costs[name] for name in device_classes(gpu) if name in costs), DEFAULT_COST)
        for gpu in plan.options.gpus
    )


def heard(
    known: Mapping[Place, Pace],
    measured: Mapping[Place, Collection[float]],
    costs: Mapping[Place, float],
    at: float,
) -> Mapping[Place, Pace]:
    """What is known once engines at these places are ``measured``; ``costs`` are those of an engine there."""
    paces = {place: pace for place, pace in known.items() if pace.at > at - KEPT_S}
    for place, figures in measured.items():
        now = Pace(sum(figures) / len(figures), costs[place], at)
        before = paces.get(place)
        if before is not None:
            kept = math.exp(-max(0.0, at - before.at) / FADE_S)
            now = replace(now, requests_s=now.requests_s + kept * (before.requests_s - now.requests_s))
        paces[place] = now
    return paces


def best(known: Mapping[Place, Pace], model: str) -> Pace | None:
    """The pace of the model's best place; None while nothing of it is measured."""
    own = [pace for place, pace in known.items() if place.model == model]
    return max(own, key=lambda pace: pace.worth, default=None)


def _counted(names: Collection[str]) -> Mapping[str, int]:
    return {name: list(names).count(name) for name in sorted(set(names))}
