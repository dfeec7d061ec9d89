"""The control plane as the management API, the routers and the replicas see it."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

from xgen_ray import __version__
from xgen_ray.console import EventsReport, LocalModelsReport, MemoryReport
from xgen_ray.errors import ModelNotFound, NotReady, XgenRayError
from xgen_ray.placement import FleetPlan, Observation
from xgen_ray.schema import (
    BackendsReport,
    DeclaredChange,
    DrainReport,
    DrainRequest,
    FailureReport,
    FiguresReport,
    GPUsReport,
    LiftRequest,
    LoadRequest,
    LogPage,
    ModelStatus,
    NodesReport,
    Phase,
    PlanReport,
    ScaleRequest,
    StatusReport,
    TargetGroup,
)
from xgen_ray.serving.apps import Apps
from xgen_ray.serving.declaring import changes_of
from xgen_ray.serving.events import (
    DrainAsked,
    DrainLifted,
    Event,
    ExclusionsLifted,
    LoadAsked,
    LookDone,
    PacesReported,
    ReplicaReported,
    RestartAsked,
    ScaleAsked,
    UnloadAsked,
    UseReported,
    WakeAsked,
)
from xgen_ray.serving.fleet_reports import (
    backends_report,
    drain_report,
    gpus_report,
    nodes_report,
    shelves_report,
)
from xgen_ray.serving.hands import Hands
from xgen_ray.serving.history import History
from xgen_ray.serving.log_pages import home_of, next_page, page_of_one
from xgen_ray.serving.looks import FleetReader
from xgen_ray.serving.loop import ControlLoop, LoopSettings
from xgen_ray.serving.memory_history import MemoryHistory
from xgen_ray.serving.metrics.rows import Sample
from xgen_ray.serving.metrics.samples import control_samples
from xgen_ray.serving.nodes import metrics_targets
from xgen_ray.serving.placing import dry_run
from xgen_ray.serving.reports import model_status, plan_report
from xgen_ray.serving.state import AppPhase, Model, Replica
from xgen_ray.serving.table import RoutingTable
from xgen_ray.serving.traffic import RouterReport

# A router's call for the next table returns at the latest after this: so old are its figures at most.
TABLE_POLL_S = 2.5
# Live figures of a node cost it a fraction of a second.
MEMORY_EVERY_S = 30.0
# How long a load without waiting still waits for a refusal that comes at once.
PROMPT_ANSWER_S = 0.1
# How long the log of a model that is ready may be out of reach.
LOGS_PATIENCE_S = 3.0


class Control:
    """Implements ``xgen_ray.api.contracts.ControlPlane``."""

    def __init__(
        self,
        settings: LoopSettings,
        base_url: str,
        apps: Apps,
        fleet: FleetReader,
        make_hands: Callable[[Callable[[Event], None]], Hands],
    ) -> None:
        self._base_url = base_url
        self._apps = apps
        self._fleet = fleet
        self._loop = ControlLoop(settings, apps, make_hands)
        self._history = History(time.time())
        self._memory = MemoryHistory()
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._loop.start()
        self._watch = asyncio.create_task(self._watch_memory())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self._loop.stop()

    def check_health(self) -> None:
        self._loop.check_health()

    async def load(self, request: LoadRequest, *, wait: bool) -> ModelStatus:
        """Loads the model. With ``wait`` returns when it is ready and raises when it cannot be."""
        name = request.loaded_as
        await self._fleet.check(request.model)
        caller, outcome = self._loop.caller()
        self._loop.post(LoadAsked(name, request, caller, time.time()))
        if wait:
            await outcome
        else:
            await self._loop.caught_up()
            done, _ = await asyncio.wait({outcome}, timeout=PROMPT_ANSWER_S)
            if done:
                outcome.result()
        return self._status_of(self._model(name))

    async def unload(self, name: str, *, wait: bool) -> ModelStatus:
        """Stops the model's engines, those of all its pools; with ``wait`` returns once they are gone.
        Raises ModelNotFound.
        """
        leaving = self._pools(name)
        last = self._status_of(leaving[0])
        outcomes = []
        for model in leaving:
            caller, outcome = self._loop.caller()
            self._loop.post(UnloadAsked(model.name, caller, time.time()))
            outcomes.append(outcome)
        if wait:
            await asyncio.gather(*outcomes)
        else:
            await self._loop.caught_up()
            if (going := self._loop.state.models.get(leaving[0].name)) is not None:
                return self._status_of(going)
        gone = {"phase": Phase.UNLOADING, "reason": "unloaded", "endpoint": None, "replicas": ()}
        return last.model_copy(update=gone)

    async def restart(self, name: str) -> ModelStatus:
        """Ends the model's engines, those of all its pools, and loads it again as it was asked for. Returns
        once that will outlive control. Raises ModelNotFound, WrongState for one that is being unloaded.
        """
        await self._loop.ask(lambda caller: RestartAsked(name, caller, time.time()))
        return self._status_of(self._pools(name)[0])

    async def status(self) -> StatusReport:
        models = sorted(self._loop.state.models.values(), key=lambda model: model.name)
        return StatusReport(models=tuple(self._status_of(model) for model in models), version=__version__)

    async def logs(
        self, name: str, *, after: int, limit: int, replica_id: str | None, of: str | None
    ) -> LogPage:
        """The engine's lines; of a model whose engine is dead, the last lines it printed."""
        model = self._model(name)
        home = home_of(model, replica_id or of)
        asked = [app for app in model.live if app.phase is not AppPhase.PREPARING] if home is None else [home]
        there = model.ready if home is None else home.ready
        patience_s = LOGS_PATIENCE_S if model.phase is Phase.READY and there else 0.0
        pages = await asyncio.gather(
            *(self._apps.logs(app.name, after, limit, of, patience_s=patience_s) for app in asked)
        )
        answers = [answer for page in pages for answer in page]
        if replica_id is None:
            return next_page(model, answers, after=after, limit=limit, of=of)
        found = page_of_one(model, replica_id, answers, after=after, limit=limit, of=of)
        if found is None:
            known = ", ".join(sorted(key for app in model.live for key in app.replicas)) or "none"
            raise ModelNotFound(f"{name} has no running replica {replica_id!r}; running: {known}")
        return found

    async def plan(self, request: LoadRequest) -> PlanReport:
        """What a load would do. Fetches no weights. Raises UnknownOption for what the engine cannot do."""
        await self._fleet.check(request.model)
        facts, fleet = await self._fleet.look(request.model)
        event = LookDone("", 0, facts, fleet, time.time())
        decision = await asyncio.to_thread(dry_run, request, event, self._loop.state)
        report = plan_report(request.model, decision)
        if isinstance(decision, FleetPlan):
            report = report.model_copy(update={"argv": await self._fleet.rehearse(decision)})
        return report.model_copy(update={"format": facts.format.value})

    async def local_models(self) -> LocalModelsReport:
        """What lies in the model directories of the nodes that answer."""
        return shelves_report(await self._fleet.shelves())

    async def events(self) -> EventsReport:
        return EventsReport(life=self._loop.state.epoch, events=self._loop.chronicle.events)

    async def changed(self, known: str | None) -> str:
        """The stamp of the state, as soon as it is another than ``known``."""
        while known == (stamp := f"{self._loop.state.epoch}.{self._loop.steps}"):
            await self._loop.stepped.wait()
        return stamp

    async def nodes(self) -> NodesReport:
        fleet = self._fleet
        report = nodes_report(await fleet.seen(), self._loop.state, fleet.policy, fleet.against)
        self._memory.note(report, time.time())
        return report

    async def memory(self) -> MemoryReport:
        return self._memory.report()

    async def _watch_memory(self) -> None:
        """Looks at the nodes now and then, for the history of their memory, also when nobody asks."""
        while True:
            await asyncio.sleep(MEMORY_EVERY_S)
            with contextlib.suppress(XgenRayError):
                await self.nodes()

    async def gpus(self) -> GPUsReport:
        return gpus_report(await self.nodes())

    async def backends(self) -> BackendsReport:
        return backends_report(await self.nodes())

    async def lift(self, request: LiftRequest) -> None:
        """Forget what was learned against backends of a model. Raises ModelNotFound if nothing was."""
        await self._loop.ask(
            lambda caller: ExclusionsLifted(request.model, request.backend, caller, time.time())
        )

    async def drain(self, request: DrainRequest) -> DrainReport:
        """Takes a node out of service, or puts it back. Raises InvalidRequest if there is no such node."""
        kind = DrainLifted if request.lift else DrainAsked
        await self._loop.ask(lambda caller: kind(request.node, caller, time.time()))
        return drain_report(request.node, self._loop.state)

    async def figures(self, since: float) -> FiguresReport:
        """What went through the routers in the last hour."""
        return self._history.figures(since, time.time())

    async def samples(self) -> Iterable[Sample]:
        """What control adds to the metrics."""
        return control_samples(self._loop.state, self._loop.counts)

    async def metrics_targets(self) -> tuple[TargetGroup, ...]:
        """Where Prometheus finds the metrics of every node that serves them."""
        return await metrics_targets()

    def changes(self, declared: tuple[LoadRequest, ...]) -> tuple[DeclaredChange, ...]:
        """What control would do if it started with these models declared. Raises NotReady before it has taken
        stock of what runs.
        """
        if not self._loop.state.epoch:
            raise NotReady("control has only just started")
        return changes_of(self._loop.state.models, {request.loaded_as: request for request in declared})

    async def next_table(self, known: tuple[str, int], report: RouterReport) -> RoutingTable:
        """The table, as soon as it is another than ``known``, at the latest after TABLE_POLL_S.

        A life of control that has not taken stock yet has no table to give: a router keeps what it has.
        ``report`` is the router's word on itself.
        """
        self._history.hear(report, time.time())
        if report.used:
            self._loop.post(UseReported(report.used))
        if report.paces:
            self._loop.post(PacesReported(report.paces, time.time()))
        try:
            async with asyncio.timeout(TABLE_POLL_S):
                while self._loop.state.table.stamp in (known, RoutingTable().stamp):
                    await self._loop.table_changed.wait()
        except TimeoutError:
            pass
        return self._loop.state.table

    async def wake(self, names: frozenset[str]) -> None:
        """A router has requests for models that sleep."""
        self._loop.post(WakeAsked(names, time.time()))

    async def scale(self, request: ScaleRequest) -> ModelStatus:
        """Changes how many replicas a model has, with nothing else disturbed. Raises ModelNotFound."""
        name, size = request.name, (request.replicas, request.scaling)
        await self._loop.ask(lambda caller: ScaleAsked(name, *size, caller, time.time()))
        return self._status_of(self._model(name))

    async def hear_doubts(self, replica_ids: frozenset[str]) -> None:
        """A router's requests failed on these replicas: each finds out whether its engine still computes."""
        apps = [app for model in self._loop.state.models.values() for app in model.live]
        doubted = [app.name for app in apps if replica_ids & app.replicas.keys()]
        await asyncio.gather(*(self._apps.doubt(app, replica_ids) for app in doubted))

    async def hear_replica(
        self,
        app: str,
        replica: Replica,
        failure: FailureReport | None,
        observations: tuple[Observation, ...],
    ) -> None:
        """A replica's own word."""
        self._loop.post(ReplicaReported(app, replica, failure, observations))

    def _status_of(self, model: Model) -> ModelStatus:
        return model_status(model, self._base_url, self._loop.state.exclusions)

    def _pools(self, name: str) -> Sequence[Model]:
        """All that serves the name, or the one pool that is called so. Raises ModelNotFound."""
        pools = [one for one in self._loop.state.models.values() if one.served_as == name]
        return pools or [self._model(name)]

    def _model(self, name: str) -> Model:
        model = self._loop.state.models.get(name)
        if model is None:
            names = ", ".join(sorted(self._loop.state.models)) or "none"
            raise ModelNotFound(f"no model is loaded under the name {name!r}; loaded: {names}")
        return model
