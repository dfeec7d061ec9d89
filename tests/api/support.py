"""Runnable stand-ins: an engine that misbehaves on request, a dispatcher and a control plane in memory."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from xgen_ray.console import EventReport, EventsReport, LocalModel, LocalModelsReport, MemoryReport
from xgen_ray.errors import (
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    PlacementRefused,
    XgenRayError,
)
from xgen_ray.placement.types import Backend
from xgen_ray.schema import (
    BackendReport,
    BackendsReport,
    CandidateReport,
    DrainReport,
    DrainRequest,
    Endpoint,
    FigurePoint,
    FiguresReport,
    GPUReport,
    GPUsReport,
    LeaseReport,
    LiftRequest,
    LoadRequest,
    LogPage,
    ModelStatus,
    NodeReport,
    NodesReport,
    Origin,
    Outcome,
    Phase,
    PlanReport,
    RequestHints,
    ScaleRequest,
    ServedModel,
    StatusReport,
    TargetGroup,
)

ENGINE_KEY = "engine-secret-key"


# Loading the system's certificates takes longer than most tests; nothing here is encrypted.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the test runner keeps its own handlers

    async def main_loop(self) -> None:
        await self.stop.wait()  # uvicorn looks every 0.1 s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, without its fixed pause of 0.1 s."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=1)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """``app`` behind a real uvicorn on a free loopback port; yields its base URL."""
    # Of a socket that does not say TCP, asyncio leaves Nagle's algorithm on: 40 ms for every answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="on")
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                assert not task.done(), "uvicorn ended before it started"
                await asyncio.sleep(0.001)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop.set()
        await task
        listener.close()


@dataclass
class Seen:
    """A request as the engine got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request at the engine: what came, and the means to answer or to fail."""

    def __init__(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen = seen
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int, kind: str, *extra: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", "server: stand-in/1.0", *extra]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def whole(self, status: int, body: bytes, kind: str = "application/json", *extra: str) -> None:
        await self.head(status, kind, f"content-length: {len(body)}", *extra)
        await self.send(body)

    async def client_left(self) -> None:
        """Returns when the other side has closed the connection."""
        with contextlib.suppress(ConnectionError):
            assert await self._reader.read(1) == b""

    def drop(self) -> None:
        """Die as a killed process does: the kernel resets the connection."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    def close(self) -> None:
        """End as a stopped process does: an orderly close."""
        self._writer.close()


Play = Callable[[Exchange], Awaitable[None]]


def event(content: str) -> bytes:
    delta = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"

COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


async def chat(exchange: Exchange) -> None:
    """Answers chats, streamed or whole, as engines do."""
    if exchange.seen.body and exchange.seen.json().get("stream"):
        await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
        for word in ("one ", "two ", "three"):
            await exchange.chunk(event(word))
        await exchange.chunk(DONE)
        await exchange.send(b"0\r\n\r\n")
    else:
        await exchange.whole(200, json.dumps(COMPLETION).encode())


def answer(status: int, body: bytes, kind: str = "application/json", *extra: str) -> Play:
    async def play(exchange: Exchange) -> None:
        await exchange.whole(status, body, kind, *extra)

    return play


async def die(exchange: Exchange) -> None:
    exchange.drop()


async def loading(exchange: Exchange) -> None:
    """llama-server's answer while it loads."""
    body = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
    await exchange.whole(503, json.dumps(body).encode())


class StandInEngine:
    """Answers each request by the next of ``plays``, then by ``otherwise``.

    ``busy`` is the number of requests at work; ``freed`` is set whenever one ends.
    """

    def __init__(self, *plays: Play, otherwise: Play = chat) -> None:
        self.plays = list(plays)
        self.otherwise = otherwise
        self.requests: list[Seen] = []
        self.connections = 0
        self.busy = 0
        self.arrived = asyncio.Event()
        self.freed = asyncio.Event()
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["StandInEngine"]:
        # Of a hundred that connect at once, a shorter queue leaves some to try again a second later.
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**20, backlog=1024)
        self._server = server
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def die(self, exchange: Exchange) -> None:
        """A play: die as a process does, so that nobody listens any more."""
        assert self._server is not None
        self._server.close()
        exchange.drop()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._connection(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        try:
            while True:
                seen = await _request(reader, number)
                self.requests.append(seen)
                play = self.plays.pop(0) if self.plays else self.otherwise
                self.busy += 1
                self.arrived.set()
                try:
                    await play(Exchange(seen, reader, writer))
                finally:
                    self.busy -= 1
                    self.freed.set()
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader, connection: int) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    assert "transfer-encoding" not in headers, "engines get a plain length"
    return Seen(method, path, headers, body, connection)


def served(name: str, task: str = "generate", *, ready: bool = True) -> ServedModel:
    return ServedModel(name, 1_700_000_000, task, ready, "llama-server-cpu", 2048)


@dataclass
class InMemoryDispatcher:
    """Chooses the first replica that is not to be avoided; waits while there is none.

    ``outcomes`` has (replica, outcome) in the order of ``finished``, ``units`` what was answered; ``open``
    the replicas in use, ``begun`` those that have sent a first byte, ``without_engine`` the model of each
    request that got no engine, and how it ended.
    """

    models: list[ServedModel] = field(default_factory=lambda: [served("m")])
    replicas: dict[str, list[Endpoint]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    hints: list[RequestHints] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    without_engine: list[tuple[str, Outcome]] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    uninformed: bool = False
    waiting: int = 0
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)
    waited: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def informed(self, deadline_s: float) -> None:
        if self.uninformed:
            raise NotReady(f"nothing is known after {deadline_s:.0f} s", 7.2)

    def served(self) -> tuple[ServedModel, ...]:
        return tuple(self.models)

    async def add(self, url: str, replica_id: str, model: str = "m", pool: str = "") -> None:
        endpoint = Endpoint(url, ENGINE_KEY, replica_id, model, "llama-server-cpu", pool)
        async with self.changed:
            self.replicas.setdefault(model, []).append(endpoint)
            self.changed.notify_all()

    async def choose(
        self, model: str, *, deadline_s: float, avoid: frozenset[str], hints: RequestHints
    ) -> Endpoint:
        self.hints.append(hints)
        if all(known.name != model for known in self.models):
            raise ModelNotFound(f"no {model}")
        if model in self.failed:
            raise EngineFailed(self.failed[model], "out_of_memory", ("secret log line",))
        if model in self.refused:
            raise InvalidRequest(self.refused[model], "x-xgen-pool")
        if model in self.lost:
            raise NotReady(self.lost[model])
        try:
            async with asyncio.timeout(deadline_s), self.changed:
                while not (fit := [e for e in self.replicas.get(model, []) if e.replica_id not in avoid]):
                    self.waiting += 1
                    self.waited.set()
                    try:
                        await self.changed.wait()
                    except asyncio.CancelledError:
                        self.abandoned.set()
                        raise
                    finally:
                        self.waiting -= 1
        except TimeoutError:
            raise NotReady(f"{model} is still loading", 7.2) from None
        self.open.append(fit[0].replica_id)
        return fit[0]

    def answering(self, endpoint: Endpoint) -> None:
        self.begun.append(endpoint.replica_id)

    def finished(self, endpoint: Endpoint, outcome: Outcome, *, units: int) -> None:
        self.units.append(units)
        self.open.remove(endpoint.replica_id)
        self.outcomes.append((endpoint.replica_id, outcome))
        self.ended.set()

    def unserved(self, model: str, outcome: Outcome) -> None:
        self.without_engine.append((model, outcome))
        self.ended.set()


GPU = GPUReport(
    id=0,
    name="AMD Radeon RX 7900 XTX",
    type="rocm",
    available=True,
    memory_gb=24.0,
    memory="24GB",
    node="node-1",
    gpu_type="amd_rdna",
    label="[0] AMD Radeon RX 7900 XTX (rocm, 24GB)",
    gfx_version="gfx1100",
)
NODE = NodeReport(
    node="node-1",
    gpus=(GPU,),
    badges=("ROCm GPU",),
    gpu_type="rocm",
    recommended_backend="llama-server",
    available_backends=(Backend.LLAMA_SERVER_VULKAN,),
    backends=(BackendReport(backend=Backend.LLAMA_SERVER_VULKAN, available=True, reason="found"),),
    detection_method="amdsmi",
    detectors=(),
    cpu="A CPU",
    cpu_count=8,
    memory_total_bytes=2**35,
    memory_available_bytes=2**34,
    leases=(
        LeaseReport(
            lease="l1",
            model="tiny",
            backend=Backend.LLAMA_SERVER_VULKAN,
            state="claimed",
            devices={"ram": 2**20},
            threads=2,
        ),
    ),
    models=("tiny",),
)
SILENT = NODE.model_copy(
    update={
        "node": "node-2",
        "schedulable": False,
        "reason": "its owner has not answered in 8 s",
        "gpus": (),
        "leases": (),
        "models": (),
        "available_backends": (),
        "backends": (),
    }
)


@dataclass
class InMemoryControl:
    """A control plane whose models become ready when ``finish_loading`` is set."""

    models: dict[str, ModelStatus] = field(default_factory=dict)
    requests: list[LoadRequest] = field(default_factory=list)
    lines: dict[str, list[str]] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, set[Backend]] = field(default_factory=dict)
    finish_loading: asyncio.Event = field(default_factory=asyncio.Event)
    load_waits: asyncio.Event = field(default_factory=asyncio.Event)
    unload_waits: asyncio.Event = field(default_factory=asyncio.Event)
    wait_abandoned: asyncio.Event = field(default_factory=asyncio.Event)
    asked_for_logs: asyncio.Event = field(default_factory=asyncio.Event)
    fail_with: XgenRayError | None = None
    happened: list[EventReport] = field(default_factory=list)
    local: list[LocalModel] = field(default_factory=list)
    found: tuple[NodeReport, ...] = (NODE, SILENT)
    unreachable: XgenRayError | None = None
    broken: Exception | None = None
    looks: int = 0
    steps: tuple[float, ...] = (5.0, 10.0)
    version: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self) -> None:
        """Something is another than it was: whoever waits for a change is told."""
        self.version += 1
        self.moved.set()
        self.moved = asyncio.Event()

    def renew(self) -> None:
        """Forget everything."""
        self.models.clear()
        self.requests.clear()
        self.lines.clear()
        self.engines.clear()
        self.excluded.clear()
        self.fail_with = self.unreachable = self.broken = None
        self.happened.clear()
        self.local.clear()
        self.found = (NODE, SILENT)
        self.looks = 0
        for event in (
            self.finish_loading,
            self.load_waits,
            self.unload_waits,
            self.wait_abandoned,
            self.asked_for_logs,
        ):
            event.clear()

    async def load(self, request: LoadRequest, *, wait: bool) -> ModelStatus:
        self.requests.append(request)
        if "too-big" in request.model:
            raise PlacementRefused(
                "too-big needs 41.2 GiB; the largest free GPU has 23.6 GiB. Lower the context.",
                ({"backend": "llama-server-vulkan", "reasons": ["needs 41.2 GiB"]},),
            )
        name = request.name or request.model.rsplit("/", 1)[-1]
        self.models[name] = _status(name, request.model, Phase.LOADING)
        if wait:
            self.load_waits.set()
            try:
                await self.finish_loading.wait()
            except asyncio.CancelledError:
                self.wait_abandoned.set()
                raise
            if self.fail_with is not None:
                raise self.fail_with
            self.models[name] = _status(name, request.model, Phase.READY)
        return self.models[name]

    async def unload(self, name: str, *, wait: bool) -> ModelStatus:
        if wait:
            self.unload_waits.set()
        return self._known(name).model_copy(update={"phase": Phase.UNLOADING})

    async def restart(self, name: str) -> ModelStatus:
        before = self._known(name)
        return await self.load(LoadRequest(model=before.model, name=name), wait=False)

    async def scale(self, request: ScaleRequest) -> ModelStatus:
        wanted = request.replicas or 1
        self.models[request.name] = self._known(request.name).model_copy(update={"wanted_replicas": wanted})
        return self.models[request.name]

    async def status(self) -> StatusReport:
        return StatusReport(models=tuple(self.models.values()), version="0.1.0")

    async def logs(
        self, name: str, *, after: int, limit: int, replica_id: str | None, of: str | None
    ) -> LogPage:
        self._known(name)
        self.asked_for_logs.set()
        engine = replica_id or self.engines.get(name)
        held = self.lines.get(name, [])
        # Beyond the end of a log there is nothing, and the reader is put at its end.
        start = min(after if of in (None, engine) else 0, len(held))
        lines = tuple(held[start : start + limit])
        return LogPage(model=name, replica_id=engine, lines=lines, next=start + len(lines))

    async def plan(self, request: LoadRequest) -> PlanReport:
        fits = "too-big" not in request.model
        candidate = CandidateReport(backend=Backend.LLAMA_SERVER_CPU, fits=fits, reasons=("weighed",))
        return PlanReport(accepted=fits, model=request.model, message="weighed", candidates=(candidate,))

    async def gpus(self) -> GPUsReport:
        return GPUsReport(
            success=True,
            gpus=(GPU,),
            gpu_type="rocm",
            recommended_backend="llama-server",
            available_backends=(Backend.LLAMA_SERVER_VULKAN,),
            detection_method="amdsmi",
            nodes=(NODE,),
        )

    async def backends(self) -> BackendsReport:
        return BackendsReport(nodes={"node-1": NODE.backends})

    async def nodes(self) -> NodesReport:
        self.looks += 1
        if self.unreachable is not None:
            raise self.unreachable
        return NodesReport(nodes=self.found)

    async def memory(self) -> MemoryReport:
        return MemoryReport(lines=())

    async def local_models(self) -> LocalModelsReport:
        return LocalModelsReport(models=tuple(self.local))

    async def events(self) -> EventsReport:
        if self.broken is not None:
            raise self.broken
        return EventsReport(life="one", events=tuple(self.happened))

    async def changed(self, known: str | None) -> str:
        while known == f"one.{self.version}":
            await self.moved.wait()
        return f"one.{self.version}"

    async def figures(self, since: float) -> FiguresReport:
        points = tuple(FigurePoint(at=at, ended={Outcome.OK: 1}) for at in self.steps if at > since)
        return FiguresReport(now=12.0, started=1.0, step_s=5.0, fleet=points, models={}, streams=())

    async def metrics_targets(self) -> tuple[TargetGroup, ...]:
        return (TargetGroup(targets=("127.0.0.1:9464",), labels={"job": "xgen-ray"}),)

    async def drain(self, request: DrainRequest) -> DrainReport:
        if request.node not in (NODE.node, NODE.node_id):
            raise InvalidRequest(f"there is no node {request.node}; the nodes are: {NODE.node}", "node")
        since = None if request.lift else 7.0
        return DrainReport(node=NODE.node, drained_since=since, models=("tiny",))

    async def lift(self, request: LiftRequest) -> None:
        excluded = self.excluded.get(request.model, set())
        lifted = excluded if request.backend is None else excluded & {request.backend}
        if not lifted:
            raise ModelNotFound(f"nothing is excluded for {request.model!r}")
        self.excluded[request.model] = excluded - lifted

    def _known(self, name: str) -> ModelStatus:
        if name == "broken":
            raise RuntimeError("a fault that nobody foresaw")
        if name not in self.models:
            raise ModelNotFound(f"No model {name!r} is loaded. Loaded: {', '.join(self.models) or 'none'}.")
        return self.models[name]


def _status(name: str, model: str, phase: Phase) -> ModelStatus:
    endpoint = "http://127.0.0.1:8000/v1" if phase is Phase.READY else None
    return ModelStatus(
        name=name,
        model=model,
        origin=Origin.API,
        phase=phase,
        reason="asked",
        endpoint=endpoint,
        since=1.0,
    )
