"""The page's server without a cluster: the real API, placement and state machine over nodes that are data.

What is missing is Ray, and engines: an engine is ready as soon as it is started, unless a test holds it.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.placement.builders import (
    all_there,
    dense,
    host,
    igpu,
    node,
    rtx4090,
    rx7900xtx,
    smollm2,
    strix_halo,
    there,
    usage,
)
from xgen_ray import __version__
from xgen_ray.api import ApiKeys, PageFiles, create_management_app
from xgen_ray.api.stream import Stream
from xgen_ray.console import EventsReport, LocalModelsReport, MemoryReport
from xgen_ray.errors import ModelNotFound, XgenRayError
from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.models import ModelFacts, ModelFormat, Shelf, ShelvedModel
from xgen_ray.placement import DEFAULT_POLICY, NodeView, Outstanding
from xgen_ray.placement.types import Backend, BackendStatus
from xgen_ray.schema import (
    BackendsReport,
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
    PlanReport,
    ReplicaStatus,
    ScaleRequest,
    StatusReport,
    TargetGroup,
)
from xgen_ray.serving.chronicle import Chronicle, note
from xgen_ray.serving.effects import Answer, Look, PrepareApp, StartApp
from xgen_ray.serving.events import (
    AppPrepared,
    AppsObserved,
    DrainAsked,
    DrainLifted,
    Event,
    ExclusionsLifted,
    LoadAsked,
    LookDone,
    NodesObserved,
    ReplicaReported,
    Restored,
    UnloadAsked,
)
from xgen_ray.serving.fleet_reports import (
    backends_report,
    drain_report,
    gpus_report,
    nodes_report,
    shelves_report,
)
from xgen_ray.serving.machine import step
from xgen_ray.serving.node_state import GPU_TYPE_LABEL, NodeIdentity, NodeState, Versions
from xgen_ray.serving.nodes import NodesSeen
from xgen_ray.serving.placing import dry_run
from xgen_ray.serving.reports import model_status, plan_report
from xgen_ray.serving.state import ControlState, Fleet, Replica

GIB = 2**30
POLL_S = 0.01

GGUF = "/models/qwen3-8b-q4_k_m.gguf"
SMALL = "/models/smollm2-135m-instruct-q4_1.gguf"
FOLDER = "/models/llama-3.1-8b"
FACTS: dict[str, ModelFacts] = {
    GGUF: replace(dense(8, layers=36), path=GGUF, files=(GGUF,)),
    SMALL: smollm2(),
    FOLDER: replace(dense(8, 16, model_format=ModelFormat.SAFETENSORS, layers=32), path=FOLDER),
}


def machine(name: str, snapshot: NodeSnapshot, free: Sequence[int | None], *without: Backend) -> NodeState:
    """A node with every engine but those in ``without``."""
    statuses = tuple(
        BackendStatus(one.backend, False, f"{one.backend} is not on PATH") if one.backend in without else one
        for one in all_there(snapshot)
    )
    return NodeState(
        node=NodeIdentity(name, name, "127.0.0.1", {GPU_TYPE_LABEL: "x", "xgen-ray/name": name}),
        snapshot=replace(snapshot, detection=replace(snapshot.detection, detection_method="pynvml")),
        statuses=statuses,
        usage=_in_use(snapshot, free),
        leases=(),
        outstanding=Outstanding(),
        taken=frozenset(),
        leased=(),
        versions=Versions(__version__, "2.60.0", "3.11.9"),
        settings="",
    )


def _in_use(snapshot: NodeSnapshot, free: Sequence[int | None]) -> NodeUsage:
    """Live figures in which each GPU has so much left, and the rest is in use."""
    live = usage(snapshot, free)
    gpus = [
        replace(one, memory_used_bytes=max(0, (gpu.memory_total_bytes or 0) - (one.memory_free_bytes or 0)))
        for gpu, one in zip(snapshot.detection.gpus, live.gpus, strict=True)
    ]
    return replace(live, gpus=tuple(gpus))


_NVIDIA = node(rtx4090(), rtx4090(1), on=host(128 * GIB, cpus=32))
_CPU = node(on=host(32 * GIB, cpus=8))
NODES = (
    # The documents' own case: NVIDIA cards, and no Vulkan.
    machine("cuda-1", _NVIDIA, [20 * GIB, 23 * GIB], Backend.LLAMA_SERVER_VULKAN),
    machine("rocm-1", node(rx7900xtx(), on=host()), [22 * GIB]),
    machine("apu-1", node(strix_halo(), on=host(96 * GIB)), [50 * GIB]),
    machine("mixed-1", node(rtx4090(), igpu(), on=host()), [9 * GIB, GIB]),
    replace(machine("cpu-1", _CPU, []), statuses=(there(Backend.LLAMA_SERVER_CPU),)),
)


class Desk:
    """Implements ``xgen_ray.api.contracts.ControlPlane``. ``held``: engines do not become ready."""

    def __init__(self) -> None:
        self.held = False
        self.started: list[tuple[str, str]] = []
        self.lines = ["main: loading model", "srv  load_model: loading the model", "srv  init: ready"]
        self._errors: dict[str, XgenRayError | None] = {}
        self._callers = 0
        self._state = ControlState()
        self._chronicle = Chronicle()
        self._steps = 0
        self.feed(Restored((), {}, {}, "life1", time.time()))
        self.feed(NodesObserved({state.node.node_id: state.node.name for state in NODES}, time.time()))

    def feed(self, event: Event) -> None:
        before = self._state
        self._state, effects = step(before, event)
        self._chronicle = note(self._chronicle, before, self._state, time.time())
        self._steps += 1
        for effect in effects:
            match effect:
                case Look(name=name, attempt=attempt, request=request):
                    facts = FACTS[request.model]
                    self.feed(LookDone(name, attempt, facts, self._fleet(), time.time()))
                case PrepareApp(app=app, plan=plan):
                    self.feed(AppPrepared(app, plan, time.time()))
                case StartApp(app=app, node=where):
                    self.started.append((app, where))
                    if not self.held:
                        self.arrive(app, where)
                case Answer(caller=caller, error=error):
                    self._errors[caller] = error

    def arrive(self, app: str, where: str, replica: str = "r1") -> None:
        self.feed(ReplicaReported(app, Replica(self._replica(where, replica, "ready"), "key")))

    def die(self, app: str, where: str, replica: str = "r1") -> None:
        failure = FailureReport(
            failure="gpu_page_fault",
            message="The GPU reported a page fault while the model was loading.",
            advice="Update the driver, or load it with another backend.",
            exit_code=134,
            evidence="Memory access fault by GPU node-1",
            log_tail=("HW Exception by GPU node-1", "Aborted (core dumped)"),
            at=time.time(),
        )
        self.feed(ReplicaReported(app, Replica(self._replica(where, replica, "failed")), failure))

    def begin(self, request: LoadRequest) -> ModelStatus:
        """A load, also for tests: Playwright's loop lets no other run in their thread."""
        self._known(request.model)
        name = request.loaded_as
        self._call(lambda caller: LoadAsked(name, request, caller, time.time()))
        return self._status_of(name)

    async def load(self, request: LoadRequest, *, wait: bool) -> ModelStatus:
        return self.begin(request)

    async def unload(self, name: str, *, wait: bool) -> ModelStatus:
        gone = self._status_of(name)
        self._call(lambda caller: UnloadAsked(name, caller, time.time()))
        self.feed(AppsObserved({}, {}, {}, time.time()))
        return gone

    async def restart(self, name: str) -> ModelStatus:
        request = self._state.models[name].request
        await self.unload(name, wait=True)
        return await self.load(request, wait=False)

    async def scale(self, request: ScaleRequest) -> ModelStatus:
        return self._status_of(request.name)

    async def status(self) -> StatusReport:
        return StatusReport(
            models=tuple(self._status_of(name) for name in sorted(self._state.models)), version=__version__
        )

    async def logs(
        self, name: str, *, after: int, limit: int, replica_id: str | None, of: str | None
    ) -> LogPage:
        self._status_of(name)
        lines = tuple(self.lines[after : after + limit])
        return LogPage(model=name, replica_id="r1", lines=lines, next=after + len(lines))

    async def plan(self, request: LoadRequest) -> PlanReport:
        facts = self._known(request.model)
        look = LookDone("", 0, facts, self._fleet(), time.time())
        report = plan_report(request.model, dry_run(request, look, self._state))
        return report.model_copy(update={"format": facts.format.value})

    async def nodes(self) -> NodesReport:
        return nodes_report(NodesSeen(NODES, ()), self._state, DEFAULT_POLICY)

    async def gpus(self) -> GPUsReport:
        return gpus_report(await self.nodes())

    async def backends(self) -> BackendsReport:
        return backends_report(await self.nodes())

    async def memory(self) -> MemoryReport:
        return MemoryReport(lines=())

    async def local_models(self) -> LocalModelsReport:
        models = tuple(
            ShelvedModel(Path(facts.path), Path(facts.path).stem, facts.format, facts.weight_bytes)
            for facts in FACTS.values()
        )
        return shelves_report({"cuda-1": Shelf(models)})

    async def events(self) -> EventsReport:
        return EventsReport(life=self._state.epoch, events=self._chronicle.events)

    async def changed(self, known: str | None) -> str:
        # Tests feed from another thread.
        while known == (stamp := f"{self._state.epoch}.{self._steps}"):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return stamp

    async def metrics_targets(self) -> tuple[TargetGroup, ...]:
        raise NotImplementedError("the page asks for no metrics")

    async def figures(self, since: float) -> FiguresReport:
        now = time.time()
        return FiguresReport(now=now, started=now, step_s=5.0, fleet=(), models={}, streams=())

    async def drain(self, request: DrainRequest) -> DrainReport:
        kind = DrainLifted if request.lift else DrainAsked
        self._call(lambda caller: kind(request.node, caller, time.time()))
        return drain_report(request.node, self._state)

    async def lift(self, request: LiftRequest) -> None:
        self._call(lambda caller: ExclusionsLifted(request.model, request.backend, caller, time.time()))

    def _call(self, event: Callable[[str], Event]) -> None:
        self._callers += 1
        caller = f"c{self._callers}"
        self.feed(event(caller))
        if (error := self._errors.get(caller)) is not None:
            raise error

    def _known(self, model: str) -> ModelFacts:
        if model not in FACTS:
            raise ModelNotFound(f"{model} does not exist. Model directories: /models.")
        return FACTS[model]

    def _status_of(self, name: str) -> ModelStatus:
        if name not in self._state.models:
            raise ModelNotFound(f"no model is loaded under the name {name!r}")
        return model_status(self._state.models[name], "http://127.0.0.1:8000", self._state.exclusions)

    def _fleet(self) -> Fleet:
        return Fleet(
            tuple(
                NodeView(
                    state.node.node_id,
                    state.node.name,
                    state.snapshot,
                    state.statuses,
                    state.usage,
                    state.outstanding,
                    state.taken,
                    has_files=True,
                    can_fetch=False,
                    tagged=True,
                )
                for state in NODES
            )
        )

    def _replica(self, where: str, replica: str, state: str) -> ReplicaStatus:
        url = "http://127.0.0.1:1" if state == "ready" else None
        return ReplicaStatus(
            replica_id=replica, node=where, state=state, url=url, since=time.time(), running=0, waiting=0
        )


@contextmanager
def served(desk: Desk, keys: ApiKeys | None = None, port: int = 0) -> Iterator[str]:
    """The page over ``desk``, in a thread; gives its address, and ends it with all of its connections."""
    api = create_management_app(
        desk,
        keys or ApiKeys(),
        stream=Stream(desk, settle_s=0.02, nodes_every_s=1.0),
        links={"ray": "http://127.0.0.1:8265"},
        follow_interval_s=0.1,
    )
    app = Starlette(routes=[Mount("/api", PageFiles(api))])
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", port))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api/"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
