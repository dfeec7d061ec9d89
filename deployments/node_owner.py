"""The node owner as a Ray actor: builds one from what its node is, and passes every call on to it."""

import asyncio
import os
import platform
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import ray

from deployments.environment import metrics_wanted
from deployments.logs import log_transitions
from xgen_ray import __version__
from xgen_ray.models.shelf import Shelf
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.types import Plan
from xgen_ray.serving.fetches import FetchState
from xgen_ray.serving.inventory import InventoryReader
from xgen_ray.serving.lease_journal import LeaseJournal
from xgen_ray.serving.leases import Lease, NoLease
from xgen_ray.serving.metrics.export import NODE_EXPORT_S, keep_exporting
from xgen_ray.serving.metrics.rows import Sample, Source
from xgen_ray.serving.metrics.samples import node_samples
from xgen_ray.serving.node_owner import NodeOwner
from xgen_ray.serving.node_state import LeaseFacts, NodeIdentity, NodeState, Settled, Versions
from xgen_ray.serving.nodes import OwnerSettings
from xgen_ray.serving.sources import SourceFinder
from xgen_ray.settings import engine_environment, xdg_dir


class NodeOwnerActor:
    """Runs on the node that it owns: this node's environment and folders count, not those of control."""

    def __init__(self, node: NodeIdentity, settings: OwnerSettings, key: str) -> None:
        log_transitions()
        cache_dir = settings.cache_dir or xdg_dir("XDG_CACHE_HOME", ".cache")
        self._owner = NodeOwner(
            node,
            InventoryReader(
                env=engine_environment(os.environ),
                commands=settings.backend_commands,
                cache_dir=cache_dir,
            ),
            SourceFinder(
                settings.model_dirs, cache_dir / "hub", settings.hub_endpoint, os.environ.get("HF_TOKEN")
            ),
            LeaseJournal((settings.run_dir or _run_dir()) / node.node_id),
            Versions(__version__, ray.__version__, platform.python_version()),
            settings=key,
        )
        self._started = False

    async def look(self) -> NodeState:
        return await (await self._ready()).look()

    async def reserve(
        self, app: str, model: str, plans: Sequence[Plan], ttl_s: float
    ) -> tuple[LeaseFacts, ...] | NoLease:
        return await (await self._ready()).reserve(app, model, plans, ttl_s)

    async def renew(self, apps: Collection[str], ttl_s: float) -> frozenset[str]:
        return await (await self._ready()).renew(apps, ttl_s)

    async def release(self, app: str) -> None:
        await (await self._ready()).release(app)

    async def relocate(self, app: str, facts: ModelFacts) -> None:
        await (await self._ready()).relocate(app, facts)

    async def claim(self, app: str, replica_id: str, pid: int) -> Lease | NoLease:
        return await (await self._ready()).claim(app, replica_id, pid)

    async def settle(self, lease_id: str, engine_pid: int) -> Settled:
        return await (await self._ready()).settle(lease_id, engine_pid)

    async def has_source(self, model: str) -> bool:
        return await (await self._ready()).has_source(model)

    async def facts(self, model: str) -> ModelFacts:
        return await (await self._ready()).facts(model)

    async def shelf(self) -> Shelf:
        return await (await self._ready()).shelf()

    async def rehearse(self, plan: Plan) -> tuple[str, ...]:
        return await (await self._ready()).rehearse(plan)

    async def fetch(self, model: str, ticket: str, commit: str | None) -> FetchState:
        return await (await self._ready()).fetch(model, ticket, commit)

    async def fetch_progress(self, ticket: str) -> FetchState | None:
        return await (await self._ready()).fetch_progress(ticket)

    async def drop_fetch(self, ticket: str) -> None:
        await (await self._ready()).drop_fetch(ticket)

    async def _ready(self) -> NodeOwner:
        """The owner, started by the first call: an actor's constructor has no event loop to start it in."""
        if not self._started:
            await self._owner.start()
            self._started = True
            if metrics_wanted(os.environ):
                self._exporter = asyncio.create_task(
                    keep_exporting(Source.NODE, self._samples, NODE_EXPORT_S)
                )
        return self._owner

    async def _samples(self) -> Iterable[Sample]:
        return node_samples(await self._owner.look())


def _run_dir() -> Path:
    """Where the leases of this machine are written: gone with a restart of the machine, if it can be."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "xgen-ray" if runtime else xdg_dir("XDG_STATE_HOME", ".local/state") / "run"
