"""From models to the routes that routers follow.

A model has one name for its clients and may have several pools: other files, engines, nodes, each wished for
by itself (``name@pool``). The name reaches the engines of all of them, ``name@pool`` those of one, and
``name@backend`` those of one kind, as long as a pool has some, ready or not, or is to have them. Where it is
open what a pool will run by, the router has the request wait for that.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from xgen_ray.backends.prefix_caching import caches_prefixes
from xgen_ray.placement.types import Backend
from xgen_ray.schema import Phase, PoolInfo, ServedModel
from xgen_ray.serving.state import Model
from xgen_ray.serving.table import ReportedLoad, Route, RoutedEngine
from xgen_ray.serving.traffic import served_as

# What is told of a name whose pools differ: the best of what can be said of them.
_BEST_FIRST = (
    Phase.READY,
    Phase.RECOVERING,
    Phase.LOADING,
    Phase.RESOLVING,
    Phase.SLEEPING,
    Phase.FAILED,
    Phase.UNLOADING,
)


def routes_of(models: Iterable[Model]) -> Mapping[str, Route]:
    """Every name that a request may use, with the engines that it may be sent to."""
    routes: dict[str, Route] = {}
    for name, pools in _by_name(models).items():
        routes |= _routes_to(name, pools)
    return routes


def changed_routes(
    routes: Mapping[str, Route], models: Iterable[Model], names: Collection[str]
) -> Mapping[str, Route]:
    """``routes_of(models)``, where ``routes`` are those before and no model has changed, come or gone but
    those that are served as one of ``names``. What stays as it was is the same object.
    """
    pools_of = _by_name(model for model in models if model.served_as in names)
    fresh = {name: _routes_to(name, pools) for name, pools in pools_of.items()}
    changed: dict[str, Route] = {}
    for key, route in routes.items():
        name = served_as(key)
        # The order is what clients see in a list of models: a name keeps its place.
        if name not in names:
            changed[key] = route
        elif name in fresh:
            changed |= fresh.pop(name)
    for added in fresh.values():
        changed |= added
    return changed


def _by_name(models: Iterable[Model]) -> Mapping[str, Sequence[Model]]:
    by_name: dict[str, list[Model]] = defaultdict(list)
    for model in models:
        by_name[model.served_as].append(model)
    return by_name


def _routes_to(name: str, pools: Sequence[Model]) -> Mapping[str, Route]:
    """The name itself, its backends and its pools."""
    route = _route(name, pools)
    routes = {name: route}
    staying = [model for model in pools if model.phase is not Phase.UNLOADING]
    for backend in sorted(frozenset[Backend]().union(*(model.backends for model in staying))):
        own = [model for model in staying if backend in model.backends]
        of_own = route if len(own) == len(pools) else _route(name, own)
        # The name's own engines say how busy they are.
        engines = tuple(engine for engine in route.engines if engine.backend == backend)
        routes[f"{name}@{backend}"] = replace(of_own, model=route.model, engines=engines, listed=False)
    for model in pools:
        if model.name != name:
            routes[model.name] = replace(_route(model.name, [model]), listed=False)
    return routes


def _route(name: str, pools: Sequence[Model]) -> Route:
    # Of pools that have failed one that is tried again speaks for the name.
    best = min(pools, key=lambda model: (_BEST_FIRST.index(model.phase), model.retry_at is None))
    live = [app for model in pools for app in model.live]
    options = live[0].plan.options if live else None
    served = ServedModel(
        name=name,
        created=min(int(model.created) for model in pools),
        task=options.task.value if options else "generate",
        ready=best.phase is Phase.READY,
        backend=live[0].backend.value if live else None,
        context=min(app.plan.options.context for app in live) if live else None,
        pools=tuple(_info(model) for model in pools),
    )
    # A reason that changes with every progress line would wake all routers for nothing.
    reason = best.reason if best.phase is Phase.FAILED else ""
    engines = tuple(engine for model in pools for engine in _engines(model))
    if len(engines) < 2:
        # Only a choice needs to know how busy they are, and every change of the table wakes all routers.
        engines = tuple(replace(engine, load=None) for engine in engines)
    return Route(
        served,
        best.phase,
        reason,
        engines,
        will_retry=best.retry_at is not None,
        wakes=_wakes(pools),
    )


def _wakes(pools: Sequence[Model]) -> bool:
    sleeps = any(model.phase is Phase.SLEEPING for model in pools)
    return sleeps and not any(model.is_coming for model in pools)


def _info(model: Model) -> PoolInfo:
    live = model.live
    return PoolInfo(
        name=model.pool_name,
        backends=tuple(sorted(backend.value for backend in model.backends)),
        precision=model.facts.quantization if model.facts is not None else None,
        format=model.facts.format.value if model.facts is not None else None,
        context=min(app.plan.options.context for app in live) if live else None,
        phase=model.phase.value,
    )


def _engines(model: Model) -> tuple[RoutedEngine, ...]:
    if model.phase not in (Phase.READY, Phase.RECOVERING):
        return ()
    return tuple(
        RoutedEngine(
            key,
            replica.status.url,
            replica.key,
            app.backend.value,
            app.plan.options.slots,
            pool=model.pool_name or app.backend.value,
            load=_load(replica.status.running, replica.status.waiting, replica.status.load_at),
            wish=model.name,
            caches_prefixes=caches_prefixes(app.backend, app.plan.options.extra_args),
        )
        for app in model.live
        for key, replica in sorted(app.replicas.items())
        if replica.status.state == "ready" and replica.status.url and replica.key
    )


def _load(running: int | None, waiting: int | None, at: float | None) -> ReportedLoad | None:
    return None if running is None or at is None else ReportedLoad(running, waiting or 0, at)
