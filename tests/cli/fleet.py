"""A server to point the command line at: the real management API over a fleet that only pretends.

What a model does is in its file's name: ``refused`` fits nowhere, ``broken`` dies while loading,
``stuck`` never gets ready, ``gone`` is unloaded by someone else; any other becomes ready. A load takes
one step each time its state is read, so that nothing here waits for a clock.
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
from xgen_ray.errors import ModelNotFound, PlacementRefused
from xgen_ray.placement.types import Backend
from xgen_ray.schema import (
    BackendsReport,
    CandidateReport,
    FailureReport,
    FootprintLine,
    GPUsReport,
    LoadRequest,
    LogPage,
    ModelStatus,
    Origin,
    Phase,
    PlanReport,
    Progress,
    ReplicaStatus,
    StatusReport,
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
REFUSAL = "refused.gguf needs 41.2 GiB; this node has 20.0 GiB. Lower the context or add memory."


class Fleet:
    """Control's part, in memory. Lives in the server's thread; tests read it and add log lines."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.models: dict[str, ModelStatus] = {}
        self.requests: list[LoadRequest] = []
        self.log_lines: list[str] = [f"line {number}" for number in range(5)]
        self.chats: list[dict[str, Any]] = []
        self.client_left = threading.Event()

    async def load(self, request: LoadRequest, *, wait: bool) -> ModelStatus:
        assert not wait, "the command line polls, so that it can show how far a load is"
        self.requests.append(request)
        stem = PurePath(request.model).stem
        if stem == "refused":
            raise PlacementRefused(REFUSAL, tuple(one.model_dump(mode="json") for one in CANDIDATES))
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

    async def unload(self, name: str) -> ModelStatus:
        self.models[name] = self._known(name).model_copy(update={"phase": Phase.UNLOADING})
        return self.models[name]

    async def status(self) -> StatusReport:
        report = StatusReport(models=tuple(self.models.values()), version="0")
        for model in report.models:
            following = _following(model)
            if following is None:
                del self.models[model.name]
            else:
                self.models[model.name] = following
        return report

    async def logs(self, name: str, *, after: int, limit: int, replica_id: str | None) -> LogPage:
        self._known(name)
        if replica_id not in (None, "r1"):
            raise ModelNotFound(f"{name} has no running replica {replica_id!r}; running: r1")
        lines = tuple(self.log_lines[after : after + limit])
        return LogPage(model=name, replica_id="r1", lines=lines, next=after + len(lines))

    async def plan(self, request: LoadRequest) -> PlanReport:
        self.requests.append(request)
        if PurePath(request.model).stem == "refused":
            return PlanReport(accepted=False, model=request.model, message=REFUSAL, candidates=CANDIDATES)
        return _plan(request.model)

    async def gpus(self) -> GPUsReport:
        raise NotImplementedError

    async def backends(self) -> BackendsReport:
        raise NotImplementedError

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


def _event(chunk: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
