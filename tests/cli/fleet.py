"""A server to point the command line at: the real management API over a fleet that only pretends.

What a model does is in its file's name: ``refused`` fits nowhere, ``refused-everywhere`` on none of
several nodes, ``unplaced`` is refused after a while, ``broken`` dies while loading, ``stuck`` never gets
ready, ``gone`` is unloaded by someone else, ``pair`` is planned on two nodes; any other becomes ready. A
load takes one step each time its state is read, so that nothing here waits for a clock.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from xgen_ray.api import ApiKeys, create_management_app
from xgen_ray.console import EventsReport, LocalModelsReport, MemoryReport
from xgen_ray.errors import InvalidRequest, ModelNotFound, NotReady, PlacementRefused
from xgen_ray.placement.types import Backend
from xgen_ray.schema import (
    AssignmentReport,
    BackendReport,
    BackendsReport,
    CandidateReport,
    DetectorLine,
    DrainReport,
    DrainRequest,
    EngineStatus,
    ExclusionReport,
    FailureReport,
    FiguresReport,
    FootprintLine,
    GPUReport,
    GPUsReport,
    GPUVerdictReport,
    LeaseReport,
    LiftRequest,
    LoadRequest,
    LogPage,
    ModelStatus,
    NodeReport,
    NodesReport,
    Origin,
    Phase,
    PlanReport,
    Progress,
    ReplicaStatus,
    ScaleRequest,
    StatusReport,
    TargetGroup,
    VerdictReport,
)

KEY = "sesame-open"
GIB = 2**30
NO_GPU = "no NVIDIA GPU on this node"
CANDIDATES = (
    CandidateReport(backend=Backend.LLAMA_SERVER_CUDA, fits=False, reasons=(NO_GPU,)),
    CandidateReport(
        backend=Backend.LLAMA_SERVER_CPU,
        fits=False,
        reasons=("needs 41.2 GiB, 20.0 GiB are free",),
        needs_bytes=int(41.2 * GIB),
    ),
)
NO_ROOM = "has 600 MiB free, needs 900 MiB for 512 tokens"
REFUSAL = "refused.gguf needs 41.2 GiB; this node has 20.0 GiB. Lower the context or add memory."
EVERYWHERE = "refused-everywhere.gguf needs 41.2 GiB on node gpu-1, the nearest of 4."


def on_nodes(*, fits: bool) -> tuple[VerdictReport, ...]:
    """What four nodes say: a card, two CPU nodes alike, and one that nobody weighed."""
    cuda = CandidateReport(
        node="gpu-1",
        backend=Backend.LLAMA_SERVER_CUDA,
        fits=fits,
        reasons=() if fits else ("needs 41.2 GiB, [0] NVIDIA L4 has 20.0 GiB free",),
        needs_bytes=int(41.2 * GIB),
        gpus=tuple(_of_card(place, fits=fits) for place in range(3)),
    )
    no_card = [
        cuda.model_copy(update={"node": name, "fits": False, "reasons": (NO_GPU,), "gpus": ()})
        for name in "ab"
    ]
    return (
        VerdictReport(
            node="gpu-1",
            fits=fits,
            reasons=("3.0 GiB left there" if fits else "21.2 GiB too few",),
            candidates=(cuda,),
        ),
        VerdictReport(node="a", fits=False, reasons=("no GPU",), candidates=(no_card[0],)),
        VerdictReport(node="b", fits=False, reasons=("no GPU",), candidates=(no_card[1],)),
        VerdictReport(node="c", fits=None, reasons=("enough others looked better",)),
    )


def _of_card(place: int, *, fits: bool) -> GPUVerdictReport:
    """Three cards: with room only on the first, if on any."""
    if fits and place == 0:
        reason = "would take 19.0 GiB of 20.0 GiB free"
        return GPUVerdictReport(id=0, name="NVIDIA L4", chosen=True, fits=True, reason=reason)
    return GPUVerdictReport(id=place, name="NVIDIA L4", chosen=False, fits=False, reason=NO_ROOM)


EXCLUSIONS = (
    ExclusionReport(
        model="k1",
        backend=Backend.LLAMA_SERVER_ROCM,
        node_kind="gfx1151",
        reason="on apu-1: it page-faulted twice",
    ),
    ExclusionReport(
        model="k1", backend=Backend.LLAMA_SERVER_VULKAN, node_kind="gfx1151", reason="on apu-1: it hung"
    ),
)


L4 = GPUReport(
    id=0,
    name="NVIDIA L4",
    type="cuda",
    available=True,
    memory_gb=22.5,
    memory="22GB",
    node="gpu-1",
    gpu_type="nvidia",
    label="[0] NVIDIA L4 (cuda, 22GB)",
    uuid="GPU-0a1b",
    pci_bus_id="0000:01:00.0",
    compute_capability="8.9",
    integrated=False,
    memory_used_bytes=6 * GIB,
    memory_free_bytes=int(16.5 * GIB),
    leased_bytes=7 * GIB,
    utilization_percent=35.0,
    temperature_celsius=61.0,
    power_watts=70.0,
)
RADEON = L4.model_copy(
    update={
        "id": 1,
        "name": "Radeon RX 7900 XTX",
        "type": "rocm",
        "gpu_type": "amd_rdna",
        "uuid": None,
        "pci_bus_id": "0000:02:00.0",
        "gfx_version": "gfx1100",
        "compute_capability": None,
        "memory_used_bytes": None,
        "memory_free_bytes": None,
        "leased_bytes": 0,
        "utilization_percent": None,
        "temperature_celsius": None,
        "power_watts": None,
    }
)
GPU_1 = NodeReport(
    node="gpu-1",
    node_id="aa11" * 14,
    labels={"xgen-ray/name": "gpu-1", "xgen-ray/gpu-type": "nvidia", "xgen-ray/sm_89": "true"},
    leases=(
        LeaseReport(
            lease="l1",
            model="small",
            backend=Backend.LLAMA_SERVER_CUDA,
            state="settled",
            devices={"GPU-0a1b": 7 * GIB, "ram": GIB},
            threads=0,
        ),
        LeaseReport(lease="l2", model="tiny", state="reserved", devices={"ram": 2 * GIB}, threads=3),
    ),
    models=("small", "tiny"),
    gpus=(L4, RADEON),
    gpu_type="cuda",
    recommended_backend="vllm",
    available_backends=(
        Backend.LLAMA_SERVER_CUDA,
        Backend.LLAMA_SERVER_VULKAN,
        Backend.LLAMA_SERVER_CPU,
        Backend.LLAMA_CPP_PYTHON,
    ),
    backends=(
        BackendReport(
            backend=Backend.LLAMA_SERVER_CUDA,
            available=True,
            reason="it lists 1 device",
            version="9660",
            devices=("CUDA0: NVIDIA L4",),
        ),
        BackendReport(backend=Backend.VLLM_CUDA, available=False, reason="no vllm on PATH"),
    ),
    detection_method="pynvml",
    detectors=(
        DetectorLine(detector="pynvml", found=1, reason=None),
        DetectorLine(detector="amdsmi", found=0, reason="no libamd_smi.so"),
    ),
    cpu="AMD EPYC 7443P",
    cpu_count=16,
    memory_total_bytes=64 * GIB,
    memory_available_bytes=50 * GIB,
    cpu_percent=12.4,
    versions={"xgen-ray": "0.1.0", "ray": "2.56.1", "python": "3.11.9"},
)
UNTAGGED = GPU_1.model_copy(
    update={
        "node": "plain",
        "node_id": "bb22" * 14,
        "tagged": False,
        "reason": "Ray was started here without its tags; join it with `xgen-ray node`",
        "labels": {},
        "leases": (),
        "models": (),
        "gpus": (),
        "gpu_type": "cpu",
        "available_backends": (Backend.LLAMA_SERVER_CPU,),
    }
)
SILENT = NodeReport(
    node="mute",
    node_id="cc33" * 14,
    schedulable=False,
    reason="its owner has not answered in 8 s",
    gpus=(),
    gpu_type="cpu",
    recommended_backend="cpu",
    available_backends=(),
    backends=(),
    detection_method="no answer",
    detectors=(),
    cpu=None,
    cpu_count=0,
    memory_total_bytes=0,
    memory_available_bytes=0,
)
NODES = (GPU_1, SILENT, UNTAGGED)


class Fleet:
    """Control's part, in memory. Lives in the server's thread; tests read it and add log lines."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.models: dict[str, ModelStatus] = {}
        self.node_reports: tuple[NodeReport, ...] = NODES
        self.requests: list[LoadRequest] = []
        self.scaled: list[ScaleRequest] = []
        self.drains: list[DrainRequest] = []
        # What is on the first node at each look, from now on.
        self.leaving: list[tuple[str, ...]] = []
        self.drained_away: tuple[str, ...] = ()
        # The replica's id and its lines, both at once: they are read in another thread.
        self.engine: tuple[str, list[str]] = ("r1", [f"line {number}" for number in range(5)])
        self.chats: list[dict[str, Any]] = []
        self.client_left = threading.Event()
        # How often control is not there when the models' states are asked for, from now on.
        self.absences = 0

    @property
    def log_lines(self) -> list[str]:
        return self.engine[1]

    async def load(self, request: LoadRequest, *, wait: bool) -> ModelStatus:
        assert not wait, "the command line polls, so that it can show how far a load is"
        self.requests.append(request)
        stem = PurePath(request.model).stem
        if stem == "refused":
            raise PlacementRefused(REFUSAL, tuple(one.model_dump(mode="json") for one in CANDIDATES))
        if stem == "refused-everywhere":
            told = tuple(
                {"node": one.node, "backend": one.backend.value, "reasons": list(one.reasons)}
                for one in _told(on_nodes(fits=False))
            )
            # As a server tells it that is newer than this program.
            raise PlacementRefused(EVERYWHERE, (*told, {"node": "a", "backend": "abacus", "reasons": []}))
        name = request.name or stem
        progress = Progress(stage="download", message="downloading", done_bytes=GIB // 2, total_bytes=GIB)
        self.models[name] = ModelStatus(
            name=name,
            model=request.model,
            origin=Origin.API,
            phase=Phase.RESOLVING,
            reason="finding its files",
            progress=progress,
            since=time.time(),
        )
        return self.models[name]

    async def unload(self, name: str, *, wait: bool) -> ModelStatus:
        assert not wait, "streams may run for longer than a client waits for an answer"
        self.models[name] = self._known(name).model_copy(update={"phase": Phase.UNLOADING})
        return self.models[name]

    async def scale(self, request: ScaleRequest) -> ModelStatus:
        self.scaled.append(request)
        wanted = request.replicas or 1
        self.models[request.name] = self._known(request.name).model_copy(update={"wanted_replicas": wanted})
        return self.models[request.name]

    async def status(self) -> StatusReport:
        if self.absences:
            self.absences -= 1
            raise NotReady("control starts")
        report = StatusReport(models=tuple(self.models.values()), version="0")
        for model in report.models:
            following = _following(model)
            if following is None:
                del self.models[model.name]
            else:
                self.models[model.name] = following
        return report

    async def logs(
        self, name: str, *, after: int, limit: int, replica_id: str | None, of: str | None
    ) -> LogPage:
        self._known(name)
        engine, held = self.engine
        if replica_id not in (None, engine):
            raise ModelNotFound(f"{name} has no running replica {replica_id!r}; running: {engine}")
        # Beyond the end of a log there is nothing, and the reader is put at its end.
        start = min(after if of in (None, engine) else 0, len(held))
        lines = tuple(held[start : start + limit])
        return LogPage(model=name, replica_id=engine, lines=lines, next=start + len(lines))

    async def plan(self, request: LoadRequest) -> PlanReport:
        self.requests.append(request)
        if PurePath(request.model).stem == "refused":
            return PlanReport(accepted=False, model=request.model, message=REFUSAL, candidates=CANDIDATES)
        if PurePath(request.model).stem == "refused-everywhere":
            return refused_everywhere(request.model)
        if PurePath(request.model).stem == "pair":
            return _pair(request.model)
        return _plan(request.model)

    async def gpus(self) -> GPUsReport:
        raise NotImplementedError

    async def backends(self) -> BackendsReport:
        raise NotImplementedError

    async def figures(self, since: float) -> FiguresReport:
        return FiguresReport(now=since, started=0.0, step_s=5.0, fleet=(), models={}, streams=())

    async def nodes(self) -> NodesReport:
        if self.leaving:
            first, *others = self.node_reports
            self.node_reports = (first.model_copy(update={"models": self.leaving.pop(0)}), *others)
        return NodesReport(nodes=self.node_reports, drained_away=self.drained_away)

    async def restart(self, name: str) -> ModelStatus:
        raise NotImplementedError("the command line restarts nothing")

    async def memory(self) -> MemoryReport:
        raise NotImplementedError("the command line asks for no history")

    async def local_models(self) -> LocalModelsReport:
        raise NotImplementedError("the command line asks for no local models")

    async def events(self) -> EventsReport:
        raise NotImplementedError("the command line asks for no events")

    async def changed(self, known: str | None) -> str:
        raise NotImplementedError("the command line follows no stream")

    async def metrics_targets(self) -> tuple[TargetGroup, ...]:
        return (TargetGroup(targets=("127.0.0.1:9464",), labels={"job": "xgen-ray"}),)

    async def drain(self, request: DrainRequest) -> DrainReport:
        found = next((one for one in self.node_reports if request.node in (one.node, one.node_id)), None)
        if found is None:
            raise InvalidRequest(f"there is no node {request.node}; the nodes are: gpu-1", "node")
        since = None if request.lift else 1.0
        self.drains.append(request)
        self.node_reports = tuple(
            one.model_copy(update={"drained_since": since}) if one is found else one
            for one in self.node_reports
        )
        return DrainReport(node=found.node, drained_since=since, models=found.models)

    async def lift(self, request: LiftRequest) -> None:
        model = self.models.get(request.model)
        known = model.exclusions if model is not None else ()
        kept = tuple(one for one in known if request.backend not in (None, one.backend))
        if model is None or kept == known:
            raise ModelNotFound(f"nothing is excluded for {request.model!r}; excluded: k1")
        self.models[model.name] = model.model_copy(update={"exclusions": kept})

    def _known(self, name: str) -> ModelStatus:
        if name not in self.models:
            raise ModelNotFound(f"no model is named {name!r}")
        return self.models[name]

    async def list_models(self, _request: Request) -> Response:
        ready = [name for name, model in self.models.items() if model.phase is Phase.READY]
        return JSONResponse({"object": "list", "data": [{"id": name} for name in ready]})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.chats.append(body)
        if body["model"] not in self.models:
            error = {"message": "no such model", "type": "x", "param": "model", "code": "model_not_found"}
            return JSONResponse({"error": error}, status_code=404)
        endless = body["messages"][-1]["content"] == "count"
        return StreamingResponse(self._words(request, endless=endless), media_type="text/event-stream")

    async def _words(self, request: Request, *, endless: bool) -> AsyncIterator[bytes]:
        words = ["Hello", " there", ",", " \x1b[31mred", " [bold]friend[/bold]", "."]
        try:
            for number in range(100_000 if endless else len(words)):
                word = f"{number} " if endless else words[number]
                yield _event({"choices": [{"delta": {"content": word}, "finish_reason": None}]})
                await asyncio.sleep(0.005)
            yield _event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            yield _event({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 12}})
            yield b"data: [DONE]\n\n"
        finally:
            if endless:
                self.client_left.set()


def ready(name: str, *, failures: tuple[FailureReport, ...] = ()) -> ModelStatus:
    """A model that answers."""
    replica = ReplicaStatus(replica_id="r1", node="node-a", state="ready", pid=4711, since=time.time() - 65)
    return ModelStatus(
        name=name,
        model=f"/models/{name}.gguf",
        origin=Origin.API,
        phase=Phase.READY,
        reason="answering",
        endpoint="http://127.0.0.1:8000/v1",
        task="generate",
        format="gguf",
        backend=Backend.LLAMA_SERVER_CPU,
        plan=_plan(f"/models/{name}.gguf"),
        replicas=(replica,),
        failures=failures,
        since=time.time() - 65,
    )


def spread_out(name: str) -> ModelStatus:
    """A model on two nodes that should be on three, with a backend left out."""
    engine = EngineStatus(
        app="xgen-engine-spread-1",
        node="gpu-1",
        backend=Backend.LLAMA_SERVER_CUDA,
        phase="running",
        why="the first choice for gguf",
        gpus=("[0] NVIDIA L4",),
        context=8192,
        slots=4,
        ready=True,
        footprint_bytes=3 * GIB,
    )
    beside = {"app": "xgen-engine-spread-2"}
    on_apu = {"app": "xgen-engine-spread-3", "node": "apu-1", "backend": Backend.LLAMA_SERVER_CPU, "gpus": ()}
    fewer = {"slots": 1, "ready": False, "phase": "starting", "footprint_bytes": 2 * GIB}
    return ready(name).model_copy(
        update={
            "engines": (
                engine,
                engine.model_copy(update=beside),
                engine.model_copy(update={**on_apu, **fewer}),
            ),
            "wanted_replicas": 4,
            "shortfall": "3 of 4 replicas have a place",
            "exclusions": EXCLUSIONS,
        }
    )


@contextmanager
def serving(fleet: Fleet, keys: ApiKeys) -> Iterator[str]:
    """Serve ``fleet`` in a thread; gives the URL. Connections wait in the backlog until it is up."""
    app = Starlette(
        routes=[
            Mount("/api", create_management_app(fleet, keys)),
            Route("/v1/models", fleet.list_models),
            Route("/v1/chat/completions", fleet.chat, methods=["POST"]),
            Route("/elsewhere/{path:path}", lambda _request: HTMLResponse("<p>A shop.</p>")),
        ]
    )
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="fleet", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def _following(model: ModelStatus) -> ModelStatus | None:
    """The state after this one; None once it is gone."""
    stem = PurePath(model.model).stem
    match model.phase:
        case Phase.UNLOADING:
            return None
        case Phase.RESOLVING:
            progress = Progress(stage="load", message="reading tensors", done_bytes=3, total_bytes=4)
            return model.model_copy(
                update={"phase": Phase.LOADING, "reason": "starting its engine", "progress": progress}
            )
        case Phase.LOADING if stem == "unplaced":
            refusal = refused_everywhere(model.model)
            return model.model_copy(
                update={"phase": Phase.FAILED, "reason": EVERYWHERE, "progress": None, "plan": refusal}
            )
        case Phase.LOADING if stem == "gone":
            return None
        case Phase.LOADING if stem == "broken":
            return model.model_copy(
                update={
                    "phase": Phase.FAILED,
                    "reason": "The engine ran out of memory.",
                    "progress": None,
                    "failures": (_death(),),
                }
            )
        case Phase.LOADING if stem != "stuck":
            return ready(model.name).model_copy(update={"model": model.model})
        case _:
            return model


def _death() -> FailureReport:
    return FailureReport(
        failure="out_of_memory",
        message="The engine ran out of memory.",
        advice="Lower the context.",
        exit_code=1,
        log_tail=("loading", "failed to allocate buffer for kv cache"),
        at=time.time(),
    )


def _plan(model: str) -> PlanReport:
    return PlanReport(
        accepted=True,
        model=model,
        message="would run on llama-server-cpu: nothing better is here",
        backend=Backend.LLAMA_SERVER_CPU,
        why="nothing better is here",
        options={"slots": 4, "context": 2048, "devices": ()},
        footprint=(
            FootprintLine(name="weights", size_bytes=91 * 2**20, on_gpu=False, detail="as in the file"),
            FootprintLine(name="kv cache", size_bytes=2 * GIB, on_gpu=False, detail="4 x 2048 tokens"),
        ),
        footprint_bytes=2 * GIB + 91 * 2**20,
        candidates=(
            CandidateReport(backend=Backend.LLAMA_SERVER_CUDA, fits=False, reasons=(NO_GPU,)),
            CandidateReport(
                backend=Backend.LLAMA_SERVER_CPU, fits=True, reasons=("fits",), needs_bytes=2 * GIB
            ),
        ),
        notes=("slots = 4: a default that suits most",),
        warnings=("runs on the CPU",),
    )


def _told(verdicts: tuple[VerdictReport, ...]) -> tuple[CandidateReport, ...]:
    return tuple(one.model_copy(update={"gpus": ()}) for verdict in verdicts for one in verdict.candidates)


def refused_everywhere(model: str) -> PlanReport:
    nodes = on_nodes(fits=False)
    return PlanReport(
        accepted=False,
        model=model,
        message=EVERYWHERE,
        candidates=_told(nodes),
        nodes=nodes,
        evict=("old", "older"),
    )


def _pair(model: str) -> PlanReport:
    """Three replicas, two of them alike, once an idle model has left."""
    nodes = on_nodes(fits=True)
    card = AssignmentReport(
        node="gpu-1",
        backend=Backend.LLAMA_SERVER_CUDA,
        gpus=("[0] NVIDIA L4",),
        footprint_bytes=3 * GIB,
        why="the first choice for gguf",
    )
    cpu = card.model_copy(update={"node": "a", "backend": Backend.LLAMA_SERVER_CPU, "gpus": ()})
    told = {"candidates": _told(nodes), "nodes": nodes, "assignments": (card, card, cpu), "evict": ("old",)}
    return _plan(model).model_copy(update=told)


def _event(chunk: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
