"""A plan for this machine as it is, without a server: the same parts that a server plans with."""

import asyncio
import os
import platform
from pathlib import Path

from xgen_ray.models import ModelFacts, download, inspect, parse_source
from xgen_ray.placement import plan
from xgen_ray.schema import LoadRequest, PlanReport
from xgen_ray.serving.inventory import InventoryReader
from xgen_ray.serving.reports import plan_report
from xgen_ray.settings import engine_environment, xdg_dir


def plan_here(request: LoadRequest) -> PlanReport:
    """Weigh every backend of this machine for ``request``.

    Downloads nothing: a model of the hub must have been fetched before. Raises what the model's files
    deserve (``ModelNotFound``, ``BadModelFile``); a refusal is a report.
    """
    cache_dir = xdg_dir("XDG_CACHE_HOME", ".cache")
    facts = _facts(request.model, cache_dir / "hub")
    reader = InventoryReader(
        node=platform.node(), env=engine_environment(os.environ), commands={}, cache_dir=cache_dir
    )
    inventory = asyncio.run(reader.read())
    decision = plan(
        facts,
        request.options,
        inventory.snapshot,
        inventory.statuses,
        usage=inventory.usage,
        policy=inventory.policy,
    )
    return plan_report(request.model, decision)


def _facts(model: str, hub_dir: Path) -> ModelFacts:
    source = parse_source(model)
    # Whoever runs this may read the file anyway: the server's list of allowed folders is not for them.
    return inspect(source.path if source.path is not None else download(source, hub_dir, offline=True))
