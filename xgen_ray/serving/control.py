"""The control plane as the management API, the routers and the replicas see it."""

import asyncio
import time

from xgen_ray import __version__
from xgen_ray.errors import ModelNotFound
from xgen_ray.placement import plan as make_plan
from xgen_ray.schema import (
    BackendsReport,
    FailureReport,
    GPUsReport,
    LoadRequest,
    LogPage,
    ModelStatus,
    Phase,
    PlanReport,
    ReplicaStatus,
    StatusReport,
)
from xgen_ray.serving.inventory import InventoryReader
from xgen_ray.serving.loop import ControlLoop, LoopSettings, name_of
from xgen_ray.serving.pools import BuildEngine, Pools
from xgen_ray.serving.reports import model_status, plan_report
from xgen_ray.serving.sources import SourceFinder
from xgen_ray.serving.state import LoadAsked, Model, ReplicaReported, UnloadAsked
from xgen_ray.serving.table import RoutingTable

# A router's call for the next table returns at the latest after this.
TABLE_POLL_S = 10.0
# How long a load without waiting still waits for a refusal that comes at once.
PROMPT_ANSWER_S = 0.1
# How long the log of a model that is ready may be out of reach.
LOGS_PATIENCE_S = 3.0


class Control:
    """Implements ``xgen_ray.api.contracts.ControlPlane``."""

    def __init__(
        self,
        settings: LoopSettings,
        build_engine: BuildEngine,
        inventory: InventoryReader,
        sources: SourceFinder,
    ) -> None:
        self._base_url = settings.base_url
        self._inventory = inventory
        self._sources = sources
        self._pools = Pools()
        self._loop = ControlLoop(settings, build_engine, inventory, sources, self._pools)

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    def check_health(self) -> None:
        self._loop.check_health()

    async def load(self, request: LoadRequest, *, wait: bool) -> ModelStatus:
        """Loads the model. With ``wait`` returns when it is ready and raises when it cannot be."""
        name = name_of(request)
        await asyncio.to_thread(self._sources.check, request.model)
        caller, outcome = self._loop.caller()
        self._loop.post(LoadAsked(name, request, caller, time.time()))
        if wait:
            await outcome
        else:
            done, _ = await asyncio.wait({outcome}, timeout=PROMPT_ANSWER_S)
            if done:
                outcome.result()
        return model_status(self._model(name), self._base_url)

    async def unload(self, name: str) -> ModelStatus:
        """Returns once the model's engines are gone. Raises ModelNotFound."""
        last = model_status(self._model(name), self._base_url)
        caller, outcome = self._loop.caller()
        self._loop.post(UnloadAsked(name, caller, time.time()))
        await outcome
        gone = {"phase": Phase.UNLOADING, "reason": "unloaded", "endpoint": None, "replicas": ()}
        return last.model_copy(update=gone)

    async def status(self) -> StatusReport:
        models = sorted(self._loop.state.models.values(), key=lambda model: model.name)
        return StatusReport(
            models=tuple(model_status(model, self._base_url) for model in models), version=__version__
        )

    async def logs(self, name: str, *, after: int, limit: int, replica_id: str | None) -> LogPage:
        """The engine's lines; of a model whose engine is dead, the last lines it printed."""
        model = self._model(name)
        patience_s = LOGS_PATIENCE_S if model.phase is Phase.READY else 0.0
        answers: list[tuple[str, tuple[str, ...], int]] = []
        if model.pool and model.phase is not Phase.FAILED:
            answers = await self._pools.logs(model.pool, after, limit, patience_s=patience_s)
        if replica_id is not None:
            answers = [answer for answer in answers if answer[0] == replica_id]
            if not answers:
                known = ", ".join(sorted(model.replicas)) or "none"
                raise ModelNotFound(f"{name} has no running replica {replica_id!r}; running: {known}")
        if answers:
            found, lines, position = min(answers)
            return LogPage(model=name, replica_id=found, lines=lines, next=position)
        tail = model.failures[0].log_tail if model.failures else ()
        shown = tail[after : after + limit]
        return LogPage(model=name, replica_id=None, lines=shown, next=after + len(shown))

    async def plan(self, request: LoadRequest) -> PlanReport:
        """What a load would do. Fetches nothing: a source that is not here yet is an error that says so."""
        facts = await asyncio.to_thread(self._sources.facts_if_present, request.model)
        inventory = await self._inventory.read()
        decision = make_plan(
            facts,
            request.options,
            inventory.snapshot,
            inventory.statuses,
            usage=inventory.usage,
            policy=inventory.policy,
        )
        return plan_report(request.model, decision)

    async def gpus(self) -> GPUsReport:
        return await self._inventory.gpus()

    async def backends(self) -> BackendsReport:
        return await self._inventory.backends()

    async def next_table(self, known: tuple[str, int]) -> RoutingTable:
        """The table, as soon as it is another than ``known``, at the latest after TABLE_POLL_S.

        A life of control that has not taken stock yet has no table to give: a router keeps what it has.
        """
        try:
            async with asyncio.timeout(TABLE_POLL_S):
                while self._loop.state.table.stamp in (known, RoutingTable().stamp):
                    await self._loop.table_changed.wait()
        except TimeoutError:
            pass
        return self._loop.state.table

    async def hear_replica(self, pool: str, status: ReplicaStatus, failure: FailureReport | None) -> None:
        """A replica's own word."""
        self._loop.post(ReplicaReported(pool, status, failure))

    def _model(self, name: str) -> Model:
        model = self._loop.state.models.get(name)
        if model is None:
            names = ", ".join(sorted(self._loop.state.models)) or "none"
            raise ModelNotFound(f"no model is loaded under the name {name!r}; loaded: {names}")
        return model
