"""llama-cpp-python inside this very process: the last rung of the ladder, where no server binary runs.

The package's own OpenAI server is served on a socket of ours, from a thread of its own. There is no
child to stop, so one process runs one model, once: an actor of its own, which a crash of the library
takes along, and nothing else.
"""

import asyncio
import json
import os
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Final, Self

import httpx
import uvicorn

from xgen_ray.backends.child_engine import engine_failed
from xgen_ray.backends.engine import EngineAddress, EngineLoad, EngineStatus, OnProgress
from xgen_ray.backends.engine_client import EngineClient
from xgen_ray.backends.launch import base_url
from xgen_ray.backends.llama_server import alias_of
from xgen_ray.errors import EngineFailed, WrongState
from xgen_ray.models.types import ModelTask
from xgen_ray.placement.types import Backend, Plan
from xgen_ray.process import Failure, FailureClass, LogRing, classify, loading_deadline
from xgen_ray.schema import Progress

STOP_GRACE_S: Final = 10.0
# The package's settings would else be read from any variable of the environment called HOST or MODEL.
_NO_ENVIRONMENT: Final = "XGEN_RAY_LLAMA_CPP_PYTHON_"
# ggml's log levels: one for debugging, very talkative, and one that goes on with the line before.
_DEBUG: Final = 1
_CONTINUES: Final = 5
# llama.cpp's numbers for them.
_POOLINGS: Final = ("none", "mean", "cls", "last", "rank")
_INSTALL: Final = "install llama-cpp-python with its server: pip install 'llama-cpp-python[server]'"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Gate:
    """Stands before the package's app: asks for the key, answers ``/health``, counts what is inside."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()
        self.inside = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == "/health":
            await _answer(send, 200, {"status": "ok"})
        elif not secrets.compare_digest(_authorization(scope), self._expected):
            await _answer(send, 401, {"error": {"message": "Invalid API key", "code": 401}})
        else:
            await self._count(scope, receive, send)

    async def _count(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass on; a request is inside until the last piece of its answer goes out, or it breaks off."""
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self.inside -= 1

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                leave()
            await send(message)

        self.inside += 1
        try:
            await self._app(scope, receive, sending)
        finally:
            leave()


def _authorization(scope: MutableMapping[str, Any]) -> bytes:
    return next((bytes(value) for name, value in scope["headers"] if name == b"authorization"), b"")


async def _answer(send: Send, status: int, body: object) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


class LlamaCppPython:
    """``EngineAdapter`` over llama-cpp-python. ``pid`` is this process's own."""

    def __init__(self, plan: Plan, *, host: str, alias: str | None = None) -> None:
        self._plan = plan
        self._host = host
        self._alias = alias or alias_of(plan.facts.path)
        self._logs = LogRing()
        self._load: asyncio.Future[ASGIApp] | None = None
        self._gate: Gate | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._client: EngineClient | None = None
        self._ended = asyncio.Event()
        self._stopping = False
        self._loaded = False

    @property
    def backend(self) -> Backend:
        return self._plan.backend

    @property
    def is_loaded(self) -> bool:
        return self._loaded and not self._ended.is_set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping, self._loaded = True, False
        if self._load is not None and not self._load.done():
            # The library cannot be interrupted. What is still loading then ends with the process.
            await asyncio.wait({self._load}, timeout=STOP_GRACE_S)
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            await asyncio.to_thread(self._thread.join, STOP_GRACE_S)
        self._ended.set()
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
            self._client = None

    async def load(self, on_progress: OnProgress) -> EngineAddress:
        if self._load is not None:
            raise WrongState("an engine is loaded once; make a new adapter in a new process")
        facts = self._plan.facts
        deadline_s = loading_deadline(facts.weight_bytes)
        on_progress(Progress(stage="start", message=f"starting {self.backend}"))
        self._load = asyncio.get_running_loop().run_in_executor(None, self._make_app)
        on_progress(Progress(stage="load", message="reading the model", total_bytes=facts.weight_bytes))
        try:
            async with asyncio.timeout(deadline_s):
                app = await asyncio.shield(self._load)
        except TimeoutError:
            message = f"the model was not loaded after {deadline_s:g} s"
            raise EngineFailed(message, FailureClass.NOT_READY_IN_TIME, self._logs.tail()) from None
        address = self._serve(app)
        on_progress(Progress(stage="canary", message="computing a first answer"))
        self._client = EngineClient(address)
        await self._client.canary(facts, self._plan.options.task, deadline_s)
        self._loaded = True
        return address

    async def health(self) -> bool:
        return self.is_loaded and self._client is not None and await self._client.healthy()

    async def status(self) -> EngineStatus:
        load = None
        if self.is_loaded and self._gate is not None:
            inside = self._gate.inside
            # It computes one request at a time; the others stand in line inside.
            load = EngineLoad(running=min(inside, 1), waiting=max(inside - 1, 0), slots=1)
        return EngineStatus(os.getpid(), self.is_loaded, load)

    async def trouble(self, patience_s: float) -> str | None:
        if not self.is_loaded or self._client is None:
            return None
        try:
            return await self._client.trouble(self._plan.facts, self._plan.options.task, patience_s)
        except (TimeoutError, httpx.TransportError):
            return None

    async def wait(self) -> Failure:
        await self._ended.wait()
        return classify(None, self._logs.tail(), stopping=self._stopping)

    def logs(self) -> LogRing:
        return self._logs

    def _make_app(self) -> ASGIApp:
        """Load the model. Runs in a thread; raises ``EngineFailed``."""
        try:
            import llama_cpp
            from llama_cpp.server.app import create_app, get_server_settings
            from llama_cpp.server.settings import ModelSettings, ServerSettings
        except (ImportError, OSError, RuntimeError) as error:
            message = f"llama-cpp-python cannot be imported ({error}); {_INSTALL}"
            raise EngineFailed(message, FailureClass.MISSING_LIBRARY) from error
        keep_log(llama_cpp, self._logs)
        server = ServerSettings(
            _env_prefix=_NO_ENVIRONMENT,
            # A new request would else break off the stream of the one before it.
            interrupt_requests=False,
        )
        try:
            app: ASGIApp = create_app(
                server_settings=server,
                model_settings=[ModelSettings(_env_prefix=_NO_ENVIRONMENT, **self._settings())],
            )
        except Exception as error:  # whatever the library raises, the model was not loaded
            self._logs.append(f"{type(error).__name__}: {error}")
            raise engine_failed(classify(1, self._logs.tail())) from error
        if next(get_server_settings()) is not server:
            raise EngineFailed(
                "the variable CONFIG_FILE makes llama-cpp-python serve another model; unset it on this node",
                FailureClass.CRASHED,
            )
        return app

    def _settings(self) -> dict[str, Any]:
        options = self._plan.options
        return {
            "model": self._plan.facts.path,
            "model_alias": self._alias,
            "n_ctx": options.context,
            "n_batch": options.batch,
            "n_ubatch": options.ubatch,
            "n_threads": options.threads,
            "n_threads_batch": options.threads,
            "n_gpu_layers": 0,
            "use_mlock": options.memory_lock,
            "flash_attn": bool(options.flash_attention),
            "embedding": options.task is ModelTask.EMBED,
            # The package has no setting for it, but takes corrections of what the file says.
            "kv_overrides": _pooling_override(self._plan),
            # The logits of every token of a context would take gigabytes.
            "logits_all": False,
            # Quiet, it redirects the whole process's output while it loads; the log is taken over anyway.
            "verbose": True,
        }

    def _serve(self, app: ASGIApp) -> EngineAddress:
        """Serve ``app`` from a thread with an event loop of its own, so that neither holds up the other."""
        key = secrets.token_hex(24)
        self._gate = Gate(app, key)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, 0), family=family)
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._gate,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(STOP_GRACE_S / 2),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener, asyncio.get_running_loop()), daemon=True
        )
        self._thread.start()
        return EngineAddress(base_url(self._host, port), key)

    def _run(self, server: uvicorn.Server, listener: socket.socket, owner: asyncio.AbstractEventLoop) -> None:
        try:
            with listener:
                server.run(sockets=[listener])
        finally:
            if not owner.is_closed():
                owner.call_soon_threadsafe(self._ended.set)


def _pooling_override(plan: Plan) -> list[str] | None:
    pooling, architecture = plan.options.pooling, plan.facts.architecture
    if plan.options.task is not ModelTask.EMBED or pooling is None or architecture is None:
        return None
    return [f"{architecture}.pooling_type=int:{_POOLINGS.index(pooling)}"]


def keep_log(llama_cpp: Any, logs: LogRing) -> None:
    """From now on, what the library says goes to ``logs`` instead of this process's stderr."""
    rest = ""
    wanted = True

    def keep(level: int, text: bytes, _data: object) -> None:
        nonlocal rest, wanted
        if level != _CONTINUES:
            wanted = level != _DEBUG
        if not wanted:
            return
        # Progress comes in pieces of a line.
        *lines, rest = (rest + text.decode("utf-8", "replace")).split("\n")
        for line in lines:
            logs.append(line)

    callback = llama_cpp.llama_log_callback(keep)
    # The library holds a bare pointer: the function must live as long as the library does.
    llama_cpp.xgen_ray_log_callback = callback
    llama_cpp.llama_log_set(callback, None)
