"""A plan for this machine as it is, without a server: the same parts that a server plans with."""

import asyncio
import os
from pathlib import Path

from xgen_ray.errors import ModelNotFound
from xgen_ray.models import ModelFacts, download, inspect, inspect_remote, parse_source
from xgen_ray.placement import plan
from xgen_ray.placement.types import Plan
from xgen_ray.schema import LoadRequest, PlanReport
from xgen_ray.serving.inventory import InventoryReader
from xgen_ray.serving.reports import one_node_report
from xgen_ray.settings import engine_environment, xdg_dir


def plan_here(request: LoadRequest) -> PlanReport:
    """Weigh every backend of this machine for ``request``.

    Fetches no weights: of a model that is not in the cache the hub is asked for headers and configuration
    alone. Raises what the model's files deserve (``ModelNotFound``, ``BadModelFile``, ``DownloadFailed``);
    a refusal is a report.
    """
    cache_dir = xdg_dir("XDG_CACHE_HOME", ".cache")
    facts = _facts(request.model, cache_dir / "hub")
    reader = InventoryReader(env=engine_environment(os.environ), commands={}, cache_dir=cache_dir)
    inventory = asyncio.run(reader.read())
    decision = plan(
        facts,
        request.options,
        inventory.snapshot,
        inventory.statuses,
        usage=inventory.usage,
        policy=inventory.policy,
        per_gpu=True,
    )
    report = one_node_report(request.model, decision)
    if isinstance(decision, Plan):
        report = report.model_copy(update={"argv": asyncio.run(reader.rehearse(decision))})
    return report


def _facts(model: str, hub_dir: Path) -> ModelFacts:
    source = parse_source(model)
    # Whoever runs this may read the file anyway: the server's list of allowed folders is not for them.
    if source.path is not None:
        return inspect(source.path)
    try:
        cached = download(source, hub_dir, offline=True)
    except ModelNotFound:
        return inspect_remote(source, cache_dir=hub_dir)
    return inspect(cached)
