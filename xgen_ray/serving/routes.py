"""From models to the routes that routers follow."""

from collections.abc import Iterable, Mapping

from xgen_ray.schema import Phase, ServedModel
from xgen_ray.serving.state import Model
from xgen_ray.serving.table import Route


def routes_of(models: Iterable[Model]) -> Mapping[str, Route]:
    """One route a model; ``pool`` only where a request may be sent or may wait for it."""
    return {model.name: _route(model) for model in models}


def _route(model: Model) -> Route:
    plan = model.plan
    served = ServedModel(
        name=model.name,
        created=int(model.created),
        task=plan.options.task.value if plan else "generate",
        ready=model.phase is Phase.READY,
        backend=plan.backend.value if plan else None,
        context=plan.options.context if plan else None,
    )
    serving = model.phase in (Phase.READY, Phase.RECOVERING)
    # A reason that changes with every progress line would wake all routers for nothing.
    reason = model.reason if model.phase is Phase.FAILED else ""
    return Route(served, model.phase, reason, model.pool if serving else None)
