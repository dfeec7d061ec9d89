"""The number of a model's replicas: grown, shrunk, put to sleep, woken, set by hand."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from xgen_ray.errors import WrongState
from xgen_ray.placement.rows import preference
from xgen_ray.schema import LoadRequest, Phase
from xgen_ray.serving.effects import Answer
from xgen_ray.serving.events import PacesReported, ScaleAsked, WakeAsked
from xgen_ray.serving.pace import DEFAULT_COST, Pace, Place, best, cost_of, heard, place_of
from xgen_ray.serving.scaling import STEADY, Load, first_replicas, may_sleep, needed, rescale
from xgen_ray.serving.state import App, Model
from xgen_ray.serving.turn import Turn
from xgen_ray.serving.wishes import missing_replicas


def follow_load(turn: Turn, at: float) -> None:
    """Every model that scales has as many replicas as its load asks for, or is on the way there."""
    pools: dict[str, list[str]] = defaultdict(list)
    for model in turn.models.values():
        pools[model.served_as].append(model.name)
    for name in list(turn.models):
        model = turn.models[name]
        scaling = model.request.scaling
        if scaling is None or model.phase is not Phase.READY:
            # Before it has served, and while its engines start again, its load says nothing.
            continue
        load = load_of(model)
        if may_sleep(scaling, load, at - max(turn.used.get(name, 0.0), model.since)):
            doze(turn, model, at, f"asleep: nobody asked for it in {scaling.ttl_s:.0f} s; a request wakes it")
            continue
        # An earlier one of this turn may have had another grow.
        others = [turn.models[other] for other in pools[model.served_as] if other != name]
        wanted, trend = rescale(
            scaling,
            model.wanted,
            load,
            model.trend,
            at,
            coming=_kept(model, others),
            elsewhere=sum(map(coming_replicas, others)),
        )
        if (wanted, trend) == (model.wanted, model.trend):
            continue
        model = turn.put(replace(model, trend=trend))
        if wanted > model.wanted:
            _grow(turn, model, wanted - model.wanted, at)
        else:
            _resize(turn, model, wanted, at, f"its load asks for {wanted} replicas")


def coming_replicas(model: Model) -> int:
    """The replicas that are wanted and not ready, and get there by themselves. What has no place is not among
    them, nor is what has never served: that may have hours to download.
    """
    if not model.proven or model.phase in (Phase.SLEEPING, Phase.FAILED, Phase.UNLOADING):
        return 0
    has_no_place = model.shortfall is not None and model.awaited is None
    hoped_for = min(model.wanted, len(model.live)) if has_no_place else model.wanted
    return max(0, hoped_for - model.ready)


def _kept(model: Model, others: Iterable[Model]) -> int:
    """The replicas on their way that stay so, whatever its own load: those that have a place, and the others
    while the load on another pool asks for them.
    """
    placed = max(0, min(model.wanted, len(model.live)) - model.ready)
    coming = coming_replicas(model)
    return coming if coming > placed and any(map(_asks_for_more, others)) else placed


def _asks_for_more(model: Model) -> bool:
    scaling = model.request.scaling
    if scaling is None or model.phase is not Phase.READY:
        return False
    return needed(scaling, load_of(model)) > model.wanted


def growth_order(turn: Turn, pools: Iterable[Model]) -> list[Model]:
    """A name's pools, that which should grow first first: the one with the most speed per cost. While one of
    them is not measured, the cheapest, then the one with the better backend.
    """
    found = list(pools)
    paces = {model.name: best(turn.paces, model.name) for model in found}
    if all(paces.values()):
        return sorted(found, key=lambda model: (-_worth(model, paces[model.name]), model.created))
    return sorted(found, key=lambda model: (_cost(turn, model), _backend_rank(model), model.created))


def _own_cost(model: Model) -> float | None:
    return model.request.scaling.cost if model.request.scaling is not None else None


def _worth(model: Model, pace: Pace | None) -> float:
    if pace is None:
        return 0.0
    cost = _own_cost(model)
    return pace.worth if cost is None else pace.requests_s / cost


def _cost(turn: Turn, model: Model) -> float:
    """What the operator says of it, else what its engines cost; without any, the cheapest device."""
    own = _own_cost(model)
    if own is not None:
        return own
    if model.live:
        return min(cost_of(app.plan, turn.costs) for app in model.live)
    pace = best(turn.paces, model.name)
    return pace.cost if pace is not None else min(turn.costs.values(), default=DEFAULT_COST)


def _backend_rank(model: Model) -> int:
    backend = model.live[0].backend if model.live else model.request.options.backend
    if backend is None or model.facts is None:
        return 0
    return preference(model.facts.format).index(backend)


def hear_paces(turn: Turn, event: PacesReported) -> None:
    """Engines that are there are known by their places; a word on one that is gone says nothing any more."""
    measured: dict[Place, list[float]] = defaultdict(list)
    costs: dict[Place, float] = {}
    for model in turn.models.values():
        for app in model.live:
            figures = [event.paces[key] for key in app.replicas if key in event.paces]
            if figures:
                place = place_of(model.name, app.plan)
                measured[place] += figures
                costs[place] = cost_of(app.plan, turn.costs)
    known = {place: pace for place, pace in turn.paces.items() if place.model in turn.models}
    turn.paces = heard(known, measured, costs, event.at)


def _grow(turn: Turn, model: Model, more: int, at: float) -> None:
    """``more`` replicas for the name that ``model`` serves: in its best pool, and what that cannot take in
    the next.
    """
    pools = [one for one in turn.models.values() if one.served_as == model.served_as and _grows(one)]
    for pool in growth_order(turn, pools):
        scaling = pool.request.scaling
        room = 0 if scaling is None or pool.shortfall else scaling.max_replicas - pool.wanted
        taken = min(more, max(0, room))
        if taken and pool.phase is Phase.SLEEPING:
            turn.used = {**turn.used, pool.name: at}
            turn.seek(replace(pool, wanted=taken, trend=STEADY), at, f"woken by the load on {model.name}")
        elif taken:
            wanted = pool.wanted + taken
            _resize(turn, pool, wanted, at, f"the load on {model.name} asks for {wanted} replicas")
        more -= taken


def _grows(model: Model) -> bool:
    return model.request.scaling is not None and model.phase in (Phase.READY, Phase.SLEEPING)


def load_of(model: Model) -> Load:
    """What its ready engines have to do, as they last said."""
    ready = [
        (replica.status, app.plan.options.slots)
        for app in model.live
        for replica in app.replicas.values()
        if replica.status.state == "ready"
    ]
    ongoing = sum((status.running or 0) + (status.waiting or 0) for status, _ in ready)
    return Load(ongoing, min((slots for _, slots in ready), default=1))


def hear_wake(turn: Turn, event: WakeAsked) -> None:
    """However many ask, the first wakes it: after that something is on its way. Of several pools that sleep
    under a name, the one that would grow first wakes; if it fails, the next.
    """
    for name in sorted(event.names):
        asked = _asked(turn, name)
        asleep = [model for model in asked if model.phase is Phase.SLEEPING]
        if not asleep or any(model.is_coming for model in asked):
            continue
        model = growth_order(turn, asleep)[0]
        turn.used = {**turn.used, model.name: event.at}
        woken = replace(model, wanted=first_replicas(model.request), trend=STEADY)
        turn.seek(woken, event.at, "woken by a request")


def _asked(turn: Turn, name: str) -> list[Model]:
    """The pools that may answer a request for ``name``: all of them, one (``name@`` is the one without a name
    of its own), or those of a backend.
    """
    served_as, is_part, part = name.partition("@")
    pools = [model for model in turn.models.values() if model.served_as == served_as]
    if not is_part:
        return pools
    return [model for model in pools if model.pool_name == part] or _by_backend(pools, part)


def _by_backend(pools: Sequence[Model], backend: str) -> list[Model]:
    """Those that run by it. Where none does, those that may come to: by their files, if these are known."""
    having = [model for model in pools if backend in model.backends]
    undecided = [model for model in pools if not model.backends]
    able = [one for one in undecided if one.facts is not None and backend in preference(one.facts.format)]
    return having or able or undecided


def hear_scale(turn: Turn, event: ScaleAsked) -> None:
    model = turn.models.get(event.name)
    if model is None:
        turn.answer_unknown(event.caller, event.name)
        return
    if model.phase in (Phase.UNLOADING, Phase.FAILED):
        first = "unload it first, then " if model.phase is Phase.FAILED and model.is_kept else ""
        advice = f"{first}load it again with the scale that it should have"
        message = f"{event.name} is {model.phase.value}: {advice}"
        turn.effects.append(Answer(event.caller, event.name, WrongState(message)))
        return
    # As if it had been loaded so, which also is what a later load of the same is compared with.
    asked = model.request.model_dump(exclude={"replicas", "scaling"}, exclude_unset=True)
    size = {"scaling": event.scaling} if event.replicas is None else {"replicas": event.replicas}
    request = LoadRequest.model_validate({**asked, **size})
    model = turn.put(replace(model, request=request))
    turn.effects.append(Answer(event.caller, event.name))
    turn.remember(model)
    follow_request(turn, model, event.at, "an operator asks for")


def follow_request(turn: Turn, model: Model, at: float, who_asks: str) -> None:
    """Its request has another scale than before: brings the number of its replicas in line."""
    model = turn.put(replace(model, trend=STEADY))
    scaling = model.request.scaling
    if model.phase is Phase.SLEEPING:
        if scaling is None or scaling.min_replicas > 0:
            awake = replace(model, wanted=first_replicas(model.request))
            turn.seek(awake, at, "its scale was changed: it wakes")
        return
    wanted = model.request.replicas
    if scaling is not None:
        wanted = min(scaling.max_replicas, max(1, scaling.min_replicas, model.wanted))
    _resize(turn, model, wanted, at, f"{who_asks} {wanted} replicas")


def can_sleep(model: Model) -> bool:
    """Whether it may have no engine at all until somebody asks for it."""
    scaling = model.request.scaling
    return model.proven and scaling is not None and scaling.min_replicas == 0


def doze(turn: Turn, model: Model, at: float, reason: str) -> None:
    """Let go of everything but the wish."""
    model = turn.stop_all(model)
    asleep = turn.put(
        replace(
            model,
            phase=Phase.SLEEPING,
            reason=reason,
            since=at,
            wanted=0,
            trend=STEADY,
            shortfall=None,
            retry_at=None,
            setbacks=0,
            progress=None,
        )
    )
    turn.remember(asleep)


def _resize(turn: Turn, model: Model, wanted: int, at: float, why: str) -> None:
    before = model.wanted
    model = turn.put(replace(model, wanted=wanted))
    if wanted < before:
        shrink(turn, model)
    elif missing_replicas(model) > 0 and not model.looking and not model.evicting and wanted > before:
        turn.seek(model, at, f"growing: {why}")


def shrink(turn: Turn, model: Model) -> None:
    """Stop what is too much. What never came to serve goes first, then what has least to do."""
    stopped = False
    for app in sorted(model.staying, key=use_of):
        if missing_replicas(model) < 0:
            model, stopped = turn.stop_app(model, app), True
    if missing_replicas(model) <= 0:
        # Nothing is short any more, and a look for more has lost its reason.
        model = turn.put(replace(model, shortfall=None, retry_at=None, awaited=None, setbacks=0))
    if stopped:
        turn.remember(model)


def use_of(app: App) -> tuple[bool, int, int, float]:
    """What to stop comes first: not ready, little to do, a worse backend, young."""
    busy = sum((one.status.running or 0) + (one.status.waiting or 0) for one in app.replicas.values())
    rank = preference(app.plan.facts.format).index(app.backend)
    return (app.ready > 0, busy, -rank, -app.since)
