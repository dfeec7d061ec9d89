"""The answers of a decision about the fleet, and the sentence that sums a refusal up."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from xgen_ray.placement.choose import model_name
from xgen_ray.placement.explain import memory_advice
from xgen_ray.placement.scale import NodeAnswer, Scale
from xgen_ray.placement.score import Score
from xgen_ray.placement.types import Candidate, Plan, Refusal
from xgen_ray.placement.views import NodeView

# More nodes than this are counted, not named.
_NAMED = 3
# How the reasons begin of backends that nobody would expect for this request.
_OBVIOUS = ("it reads", "not weighed")


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """What became of one node. ``reasons`` are never empty: why not, or why it is (not) the best.

    ``fits`` is None for a node that nobody weighed, since enough others looked better. ``candidates`` has
    every backend with its own reasons where the model was weighed, and ``message`` sums them up when none
    will do.
    """

    node_id: str
    name: str
    fits: bool | None
    reasons: tuple[str, ...]
    candidates: tuple[Candidate, ...] = ()
    score: Score | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One replica's place. ``plan`` is made with the node's own figures."""

    node_id: str
    node: str
    plan: Plan
    why: str


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """A place for every replica, or with ``missing`` for all but so many (then ``message`` says why).

    ``evict`` are idle models to unload first.
    """

    assignments: tuple[Assignment, ...]
    nodes: tuple[NodeVerdict, ...]
    evict: tuple[str, ...] = ()
    missing: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class FleetRefusal:
    """No place. ``nodes`` has every node with its reasons. ``would_fit_without`` names idle models whose
    unloading makes room, when that would be enough.
    """

    message: str
    nodes: tuple[NodeVerdict, ...]
    would_fit_without: tuple[str, ...] = ()


def verdict_of(view: NodeView, answer: NodeAnswer) -> NodeVerdict:
    decision = answer.decision
    if isinstance(decision, Plan) and answer.score is not None:
        reasons: tuple[str, ...] = (answer.score.text,)
        return NodeVerdict(view.node_id, view.name, True, reasons, decision.candidates, answer.score)
    short = [item for item in decision.candidates if item.missing_bytes is not None]
    said = short or [item for item in decision.candidates if not item.reasons[0].startswith(_OBVIOUS)]
    reasons = tuple(f"{item.backend}: {'; '.join(item.reasons)}" for item in said or decision.candidates)
    message = decision.message if isinstance(decision, Refusal) else ""
    return NodeVerdict(view.node_id, view.name, False, reasons, decision.candidates, message=message)


def refusal_message(
    scale: Scale,
    verdicts: Sequence[NodeVerdict],
    placed: int,
    replicas: int,
    evict: Sequence[str],
    on: Collection[str] | None = None,
) -> str:
    """What, the numbers, and what to do, in one or two sentences; of the nodes ``on`` alone, if they are
    all that was asked for.
    """
    name = model_name(scale.facts)
    some = f"{placed} of {replicas} replicas have a place. For the next, " if placed else ""
    if not verdicts:
        return f"{name} cannot be placed: there is no node. Start one with `xgen-ray node`."
    verdicts = [item for item in verdicts if on is None or item.name in on or item.node_id in on]
    asked = "" if on is None else " asked for"
    nearest = _nearest(verdicts)
    if nearest is None:
        return f"{some}{name} cannot be placed on {_nodes(len(verdicts), asked)}. {_by_reason(verdicts)}"
    verdict, candidate = nearest
    where = f"node {verdict.name}"
    if len(verdicts) > 1:
        where += f", the nearest of {len(verdicts)}{asked}"
    text = f"{some}{name} {candidate.reasons[0]} on {where}, with {candidate.backend}."
    if evict:
        return f"{text} It fits once idle models are unloaded: {', '.join(evict)}."
    return f"{text} {memory_advice(candidate, scale.options)}"


def _nearest(verdicts: Sequence[NodeVerdict]) -> tuple[NodeVerdict, Candidate] | None:
    short = [
        (candidate.missing_bytes, order, place, verdict, candidate)
        for order, verdict in enumerate(verdicts)
        for place, candidate in enumerate(verdict.candidates)
        if candidate.missing_bytes is not None
    ]
    if not short:
        return None
    *_, verdict, candidate = min(short, key=lambda item: item[:3])
    return verdict, candidate


def _by_reason(verdicts: Sequence[NodeVerdict]) -> str:
    """What each node says, once for all that say the same."""
    groups: dict[str, list[str]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.message or f"{'; '.join(verdict.reasons)}.", []).append(verdict.name)
    texts = []
    for said, names in list(groups.items())[:_NAMED]:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        texts.append(f"{', '.join(names[:_NAMED])}{more}: {said}")
    rest = len(verdicts) - sum(len(names) for names in list(groups.values())[:_NAMED])
    return " ".join(texts) + (f" And {rest} more for other reasons." if rest else "")


def _nodes(count: int, asked: str) -> str:
    return f"the one node{asked}" if count == 1 else f"any of {count} nodes{asked}"
