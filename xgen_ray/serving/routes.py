"""From models to the routes that routers follow."""

from collections.abc import Iterable, Mapping

from xgen_ray.schema import Phase, ServedModel
from xgen_ray.serving.state import Model
from xgen_ray.serving.table import Route, RoutedEngine


def routes_of(models: Iterable[Model]) -> Mapping[str, Route]:
    """One route a model, with the engines that a request may be sent to."""
    return {model.name: _route(model) for model in models}


def _route(model: Model) -> Route:
    live = model.live
    options = live[0].plans[0].options if live else None
    served = ServedModel(
        name=model.name,
        created=int(model.created),
        task=options.task.value if options else "generate",
        ready=model.phase is Phase.READY,
        backend=live[0].backend.value if live else None,
        context=min(plan.options.context for pool in live for plan in pool.plans) if live else None,
    )
    # A reason that changes with every progress line would wake all routers for nothing.
    reason = model.reason if model.phase is Phase.FAILED else ""
    return Route(served, model.phase, reason, _engines(model))


def _engines(model: Model) -> tuple[RoutedEngine, ...]:
    if model.phase not in (Phase.READY, Phase.RECOVERING):
        return ()
    return tuple(
        RoutedEngine(key, replica.status.url, replica.key, pool.backend.value, pool.plans[0].options.slots)
        for pool in model.live
        for key, replica in sorted(pool.replicas.items())
        if replica.status.state == "ready" and replica.status.url and replica.key
    )
