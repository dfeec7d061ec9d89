"""The OpenAI gateway: a bare ASGI application, because every request passes through it.

It knows HTTP and OpenAI's vocabulary; which engine serves a model is the dispatcher's business.
"""

import asyncio
import dataclasses
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from xgen_ray.api.asgi import ClientGone, Headers, Receive, Scope, Send, path_of, read_body, require_json
from xgen_ray.api.client import ClientWatch, Reply
from xgen_ray.api.contracts import Dispatcher
from xgen_ray.api.cors import Cors
from xgen_ray.api.errors import INVALID, ErrorReply, internal_error, reply_for
from xgen_ray.api.keys import ApiKeys
from xgen_ray.api.relay import Relay, RetryLimits
from xgen_ray.api.routes import BY_PATH, GENERATE, HEALTH_PATH, MODELS_PATH, Route, methods_of
from xgen_ray.api.tracing import Trace, Tracing
from xgen_ray.api.upstream import Call, Upstream
from xgen_ray.api.validation import ParsedBody, parse_body
from xgen_ray.errors import InvalidRequest, ModelNotFound, XgenRayError
from xgen_ray.schema import Outcome, RequestHints, ServedModel

logger = logging.getLogger(__name__)

REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

# What an engine is told of the client's headers, besides its body's type. Never authorization.
FORWARDED_HEADERS: Final = (
    b"accept",
    b"anthropic-beta",
    b"anthropic-version",
    b"traceparent",
    b"tracestate",
    b"x-session-id",
)
# Relative, so that it also holds behind a proxy that serves all of this below a path of its own.
PAGE_LOCATION: Final = b"api/"
_NAMES_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Bounds of one request.

    ``engine_silence_s`` is the longest gap in an engine's answer, its first byte included (a long
    prompt on a CPU takes minutes); ``client_stall_s`` how long a client may leave an answer unread.
    """

    body_bytes: int = 32 * 1024 * 1024
    body_timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    engine_silence_s: float = 1800.0
    client_stall_s: float = 300.0
    retry: RetryLimits = field(default_factory=RetryLimits)


class Gateway:
    """The ASGI application. One instance belongs to one event loop.

    ``answers_request_id`` False: the server around it puts ``x-request-id`` on requests and answers itself.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        keys: ApiKeys,
        *,
        limits: GatewayLimits | None = None,
        cors_origins: Iterable[str] = (),
        answers_request_id: bool = True,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._answers_request_id = answers_request_id
        self._dispatcher = dispatcher
        self._keys = keys
        self._limits = limits or GatewayLimits()
        self._cors = Cors(cors_origins)
        self._upstream = Upstream(
            connect_s=self._limits.connect_timeout_s, silence_s=self._limits.engine_silence_s
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "lifespan":
                await self._lifespan(receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1008})

    async def aclose(self) -> None:
        """Close the connections to the engines. The lifespan does it; for servers that have none."""
        await self._upstream.aclose()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = _request_id(headers)
        own = [(b"x-request-id", request_id)] if self._answers_request_id else []
        reply = Reply(send, [*own, *self._cors.headers_for(headers)])
        begun = time.monotonic()
        note = _Note()
        if self._tracing is not None:
            note.trace = self._tracing.begin(f"{scope['method']} {_span_name(scope)}", headers)
        outcome = "answered"
        try:
            whole = await self._serve(scope, receive, headers, request_id, reply, note)
            outcome = "answered" if whole else "broken off"
        except ClientGone:
            outcome = "answered" if note.answered else "client left"
        except XgenRayError as error:
            outcome = error.code
            if reply.started and not reply.early:
                return
            await reply.error(reply_for(error), typed=note.typed)
        except Exception:
            outcome = "internal error"
            logger.exception("request failed", extra={"fields": {"request_id": request_id.decode()}})
            if reply.started and not reply.early:
                # Returning leaves the answer unfinished, so the server closes the connection.
                return
            await reply.error(internal_error(request_id.decode()), typed=note.typed)
        finally:
            # Probes ask every second, and their answer is always the same.
            told = logger.isEnabledFor(logging.INFO) and path_of(scope) != HEALTH_PATH
            if told or note.trace is not None:
                fields = {
                    "request_id": request_id.decode(),
                    **self._unfit_id(headers, request_id),
                    "path": scope["path"],
                    "key": note.key,
                    "model": note.model,
                    "replica": note.replica,
                    "chosen": note.chosen,
                    "status": reply.status,
                    "outcome": outcome,
                    "bytes": reply.bytes_sent,
                    "seconds": round(time.monotonic() - begun, 6),
                }
                if told:
                    logger.info("request", extra={"fields": fields})
                if note.trace is not None:
                    note.trace.end(fields)

    def _unfit_id(self, headers: Mapping[bytes, bytes], request_id: bytes) -> Mapping[str, str]:
        """The client's own id where it is unfit for an engine, but the server around us answers with it: it
        is what the client will ask about. Cut, since it is as long as the client likes.
        """
        answered = request_id if self._answers_request_id else headers.get(b"x-request-id", request_id)
        return {} if answered == request_id else {"answered_id": answered[:128].decode("latin-1")}

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        headers: dict[bytes, bytes],
        request_id: bytes,
        reply: Reply,
        note: "_Note",
    ) -> bool:
        """Answer one request. False: it could not be answered to the end, the connection must go."""
        path, method = path_of(scope), scope["method"]
        if path == HEALTH_PATH and method in ("GET", "HEAD"):
            await reply.json(200, b'{"status":"ok"}')
            return True
        if path == "/" and method in ("GET", "HEAD"):
            # Whoever has only the address gets to the page, which is control's.
            await reply.start(307, [(b"location", PAGE_LOCATION)])
            await reply.body(b"", more=False)
            return True
        if method == "OPTIONS":
            await self._options(path, headers, reply)
            return True
        note.key = self._keys.admit(headers)
        allowed = methods_of(path)
        if method not in allowed:
            await reply.error(*_not_here(path, method, allowed))
            return True
        await self._dispatcher.informed(self._limits.retry.ready_wait_s)
        route = BY_PATH.get(path)
        if route is None:
            await self._models(path, reply)
            return True
        note.typed = route.events_have_types
        require_json(headers)
        limits = self._limits
        body = await read_body(
            headers, receive, limit_bytes=limits.body_bytes, timeout_s=limits.body_timeout_s
        )
        parsed = parse_body(body, route.rules, self._names)
        note.model = parsed.model
        self._check_task(parsed.model, route, path)
        passed = _engine_headers(headers, request_id)
        if note.trace is not None:
            passed["traceparent"] = note.trace.traceparent
        call = Call(parsed.model, route.upstream, passed, parsed.content)
        relay = Relay(
            call,
            reply,
            self._dispatcher,
            self._upstream,
            limits.retry,
            _hints(headers, parsed, route),
            typed=route.events_have_types,
            trace=note.trace,
        )
        try:
            async with ClientWatch(receive, reply, stall_s=limits.client_stall_s):
                return await relay.run()
        except BaseException as error:
            outcome = _without_engine(error)
            if relay.endpoint is None and outcome is not None:
                self._dispatcher.unserved(parsed.model, outcome)
            if isinstance(error, ModelNotFound):
                raise self._unknown(parsed.model) from None
            raise
        finally:
            note.answered = relay.answered
            if relay.endpoint is not None:
                note.replica, note.chosen = relay.endpoint.replica_id, relay.endpoint.why

    async def _options(self, path: str, headers: Mapping[bytes, bytes], reply: Reply) -> None:
        allowed = methods_of(path) or ("GET", "POST", "OPTIONS")
        await reply.start(204, [_allow(allowed), *self._cors.preflight_for(headers)])
        await reply.body(b"", more=False)

    async def _models(self, path: str, reply: Reply) -> None:
        served = self._dispatcher.served()
        if path == MODELS_PATH:
            listed = {"object": "list", "data": [_listing(model) for model in served]}
            await reply.json(200, json.dumps(listed).encode())
            return
        name = path.removeprefix(MODELS_PATH + "/")
        for model in served:
            if model.name == name:
                await reply.json(200, json.dumps(_listing(model)).encode())
                return
        raise self._unknown(name)

    def _check_task(self, name: str, route: Route, path: str) -> None:
        """An embedding model cannot chat: say so in words that its engine lacks."""
        if not route.tasks:
            return
        for model in self._dispatcher.served():
            if model.name == name and model.task not in route.tasks:
                able = " or ".join(sorted(route.tasks))
                raise InvalidRequest(
                    f"{name!r} is loaded for {model.task}, but {path} needs a model for {able}. "
                    "Name another model, or load this one with that task.",
                    "model",
                )

    def _unknown(self, name: str) -> ModelNotFound:
        return ModelNotFound(f"The model {name!r} is not served here. {self._names()}")

    def _names(self) -> str:
        """The models that exist, for a client that named none of them."""
        names = [model.name for model in self._dispatcher.served()]
        if not names:
            return "No model is loaded yet: load one with POST /api/management/load."
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return f"Served: {', '.join(names[:_NAMES_SHOWN])}{more}."


@dataclass(slots=True)
class _Note:
    """What becomes known of a request while it is served, for its log line."""

    key: str | None = None
    model: str | None = None
    replica: str | None = None
    chosen: str | None = None
    typed: bool = False
    answered: bool = False
    trace: Trace | None = None


def _span_name(scope: Scope) -> str:
    """The path if it is one of ours: a trace's name must not be a client's invention."""
    path = path_of(scope)
    return path if path in BY_PATH else "another path"


def _request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The client's own id if it is fit for headers and logs, else a new one."""
    sent = headers.get(b"x-request-id", b"")
    return sent if REQUEST_ID.fullmatch(sent) else b"req_" + secrets.token_hex(12).encode()


def _hints(headers: Mapping[bytes, bytes], parsed: ParsedBody, route: Route) -> RequestHints:
    """What of a request bears on who should answer it."""
    session, pool = headers.get(b"x-session-id"), headers.get(b"x-xgen-pool")
    # What can be streamed is written; of the rest, embedding and ranking read their input.
    writes = "stream" in route.rules.optional
    return RequestHints(
        session=session.decode("latin-1") if session else parsed.session,
        pool=pool.decode("latin-1") if pool else None,
        body=parsed.content,
        max_tokens=parsed.max_tokens,
        reads=writes or bool(route.tasks - GENERATE),
        generates=writes,
        streamed=writes and parsed.streamed,
    )


def _without_engine(error: BaseException) -> Outcome | None:
    """How a request ended that got no engine. None: it was wrong, so there was none to be had for it."""
    if isinstance(error, InvalidRequest | ModelNotFound):
        return None
    # Servers also tell that the client has left by cancelling.
    left = isinstance(error, ClientGone | asyncio.CancelledError)
    return Outcome.CANCELLED if left else Outcome.UNSERVED


def _engine_headers(headers: Mapping[bytes, bytes], request_id: bytes) -> dict[str, str]:
    passed = {"content-type": "application/json", "x-request-id": request_id.decode()}
    for name in FORWARDED_HEADERS:
        if (value := headers.get(name)) is not None:
            passed[name.decode()] = value.decode("latin-1")
    return passed


def _allow(methods: tuple[str, ...]) -> tuple[bytes, bytes]:
    return (b"allow", ", ".join(methods).encode())


def _not_here(path: str, method: str, allowed: tuple[str, ...]) -> tuple[ErrorReply, Headers]:
    if not allowed:
        message = f"There is no {quote(path)} here. The OpenAI API is under /v1, for example /v1/models."
        return ErrorReply(404, INVALID, message, "unknown_url"), ()
    message = f"{quote(path)} takes {' or '.join(allowed[:-1])}, not {method}."
    return ErrorReply(405, INVALID, message, "method_not_allowed"), (_allow(allowed),)


def _listing(model: ServedModel) -> dict[str, object]:
    """A model as OpenAI lists it; the fields after ``owned_by`` are ours (``max_model_len`` as in vLLM)."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "xgen-ray",
        "task": model.task,
        "ready": model.ready,
        "backend": model.backend,
        "max_model_len": model.context,
        "pools": [dataclasses.asdict(pool) for pool in model.pools],
    }
