"""The management API: what an operator, the CLI and the page ask of the fleet."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from xgen_ray import __version__
from xgen_ray.api.console import STREAM_HEADERS, add_console, require_manager
from xgen_ray.api.contracts import ControlPlane
from xgen_ray.api.errors import INVALID, ErrorReply, internal_error, reply_for
from xgen_ray.api.guard import JsonBodyGuard, KeyGuard
from xgen_ray.api.keys import ApiKeys
from xgen_ray.api.stream import Stream
from xgen_ray.errors import XgenRayError
from xgen_ray.schema import (
    LOADED_PATTERN,
    BackendsReport,
    DrainReport,
    DrainRequest,
    FiguresReport,
    GPUsReport,
    LiftRequest,
    LoadRequest,
    LogPage,
    ModelStatus,
    NodesReport,
    PlanReport,
    ScaleRequest,
    StatusReport,
    TargetGroup,
    Wire,
)

logger = logging.getLogger(__name__)

BODY_LIMIT_BYTES: Final = 1024 * 1024
BODY_TIMEOUT_S: Final = 30.0
FOLLOW_INTERVAL_S: Final = 0.5
_PROBLEMS_SHOWN: Final = 5

T = TypeVar("T")


class NameRequest(Wire):
    """An order about the model that is loaded as ``name``."""

    name: str = Field(pattern=LOADED_PATTERN)


class ErrorBody(Wire):
    """OpenAI's error; ``details`` are for operators (candidates of a refusal, an engine's last lines)."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    details: dict[str, Any] | None = None


class ErrorResponse(Wire):
    error: ErrorBody


def create_management_app(
    control: ControlPlane,
    keys: ApiKeys,
    *,
    follow_interval_s: float = FOLLOW_INTERVAL_S,
    stream: Stream | None = None,
    links: Mapping[str, str] = MappingProxyType({}),
) -> FastAPI:
    """The app, with its routes under ``/management``; to be mounted at ``/api``.

    With keys, every route needs one, and orders one whose role is to manage. ``links`` lead to other pages
    about the fleet (``ray``, ``grafana``), for the page. There are no documentation pages, since those load
    scripts from elsewhere; ``/management/openapi.json`` has the whole description.
    """
    app = FastAPI(
        title="xgen-ray management",
        version=__version__,
        description="Load, unload and watch models on a fleet. Errors have OpenAI's shape.",
        openapi_url="/management/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    router = APIRouter(prefix="/management")
    _add_questions(router, control, follow_interval_s)
    add_console(router, control, stream or Stream(control), links)
    app.include_router(router)
    app.include_router(_orders(control))
    # The last one added is the outermost: keys are checked before a body is read.
    app.add_middleware(JsonBodyGuard, limit_bytes=BODY_LIMIT_BYTES, timeout_s=BODY_TIMEOUT_S)
    app.add_middleware(KeyGuard, keys=keys)
    app.add_exception_handler(XgenRayError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _unforeseen)
    return app


def _add_questions(router: APIRouter, control: ControlPlane, follow_interval_s: float) -> None:
    @router.get("/gpus", summary="GPUs, and what can run on them")
    async def gpus() -> GPUsReport:
        """All GPUs of the fleet with the backends they can use, and the same per node with reasons."""
        return await control.gpus()

    @router.get("/backends", summary="Backends per node, available or why not")
    async def backends() -> BackendsReport:
        return await control.backends()

    @router.get("/nodes", summary="Nodes: hardware, tags, leases, live figures, models")
    async def nodes() -> NodesReport:
        return await control.nodes()

    @router.get("/status", summary="Models: state, replicas, backend and why")
    async def status() -> StatusReport:
        return await control.status()

    @router.get("/figures", summary="Requests, tokens and times of the last hour, by model")
    async def figures(
        since: Annotated[
            float, Query(ge=0, description="Only steps that ended after this, in Unix seconds.")
        ] = 0.0,
    ) -> FiguresReport:
        return await control.figures(since)

    @router.get("/metrics/targets", summary="For Prometheus' HTTP discovery: nodes that serve metrics")
    async def metrics_targets() -> tuple[TargetGroup, ...]:
        return await control.metrics_targets()

    @router.get(
        "/logs",
        summary="An engine's output",
        response_model=LogPage,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def logs(
        model: Annotated[str, Query(min_length=1, max_length=128, description="The model's name.")],
        after: Annotated[int, Query(ge=0, description="Lines up to this one are known already.")] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 200,
        replica: Annotated[str | None, Query(max_length=256, description="One replica only.")] = None,
        of: Annotated[
            str | None,
            Query(
                max_length=256,
                description="Whose lines ``after`` counts; another's log is read from its start.",
            ),
        ] = None,
        follow: Annotated[
            bool, Query(description="Server-sent events, a LogPage each, until the client leaves.")
        ] = False,
    ) -> Any:
        page = await control.logs(model, after=after, limit=limit, replica_id=replica, of=of)
        if not follow:
            return page
        events = _follow(control, page, limit, replica, follow_interval_s)
        return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)

    @router.post("/plan", summary="What a load would do, without doing it")
    async def plan(body: LoadRequest) -> PlanReport:
        """Always 200 for a well-formed request: ``accepted`` false is an answer, with its reasons."""
        return await control.plan(body)


def _orders(control: ControlPlane) -> APIRouter:
    """What changes the fleet: only for keys that may."""
    router = APIRouter(prefix="/management", dependencies=[Depends(require_manager)])

    @router.post("/lift", status_code=204, summary="Give excluded backends another chance")
    async def lift(body: LiftRequest) -> None:
        """A backend that failed on a model is left out until this is called; its status says which."""
        await control.lift(body)

    @router.post("/drain", summary="Take a node out of service, or put it back")
    async def drain(body: DrainRequest) -> DrainReport:
        """Nothing new goes to a drained node, and what runs there is started elsewhere before it is stopped.

        The answer comes at once; ``nodes`` says what is still there, and a model that has no other place goes
        on there, with its ``shortfall``. It lasts until it is lifted, also when the node starts again.
        """
        return await control.drain(body)

    @router.post(
        "/load", summary="Load a model", responses={202: {"model": ModelStatus, "description": "Loading"}}
    )
    async def load(
        body: LoadRequest,
        request: Request,
        response: Response,
        wait: Annotated[bool, Query(description="Answer when the model is ready; else at once.")] = True,
    ) -> ModelStatus:
        """Find a place for a model, start it, and return its state with the ``endpoint`` that serves it.

        A client that stops waiting does not stop the load.
        """
        if not wait:
            response.status_code = 202
            return await control.load(body, wait=False)
        return await _while_connected(request, control.load(body, wait=True))

    @router.post(
        "/unload",
        summary="Stop serving a model",
        responses={202: {"model": ModelStatus, "description": "Unloading"}},
    )
    async def unload(
        body: NameRequest,
        request: Request,
        response: Response,
        wait: Annotated[bool, Query(description="Answer when its engines are gone; else at once.")] = True,
    ) -> ModelStatus:
        """Requests that run may finish before.

        A client that stops waiting does not stop the unload.
        """
        if not wait:
            response.status_code = 202
            return await control.unload(body.name, wait=False)
        return await _while_connected(request, control.unload(body.name, wait=True))

    @router.post("/restart", summary="Start a model's engines anew")
    async def restart(body: NameRequest) -> ModelStatus:
        """As it was asked for. Requests that run may finish, others wait."""
        return await control.restart(body.name)

    @router.post("/scale", summary="Change how many replicas a model has")
    async def scale(body: ScaleRequest) -> ModelStatus:
        """A fixed number, or a rule for it. What runs goes on; the state says how far it has come."""
        return await control.scale(body)

    return router


async def _follow(
    control: ControlPlane, page: LogPage, limit: int, replica: str | None, interval_s: float
) -> AsyncIterator[bytes]:
    """Pages as events, first the one already read. An error ends the stream as ``event: error``."""
    while True:
        if page.lines:
            yield f"id: {page.next}\ndata: {page.model_dump_json()}\n\n".encode()
        if len(page.lines) < limit:
            await asyncio.sleep(interval_s)
        try:
            page = await control.logs(
                page.model, after=page.next, limit=limit, replica_id=replica, of=page.replica_id
            )
        except XgenRayError as error:
            yield b"event: error\ndata: " + reply_for(error).encode(with_details=True) + b"\n\n"
            return


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """The outcome of ``work``, given up when the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(499, "The client left.")
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(reply: ErrorReply) -> JSONResponse:
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return JSONResponse(
        json.loads(reply.encode(with_details=True)), status_code=reply.status, headers=headers
    )


async def _known(_request: Request, error: Exception) -> Response:
    return _json(reply_for(error) if isinstance(error, XgenRayError) else internal_error("unknown"))


async def _unforeseen(request: Request, error: Exception) -> Response:
    logger.error("request failed", exc_info=error, extra={"fields": {"path": request.url.path}})
    message = "The server failed to handle this request. Its log says why."
    return _json(ErrorReply(500, "server_error", message, "internal_error"))


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.url.path
    match status:
        case 404:
            reply = ErrorReply(404, INVALID, f"There is no {path} here.", "unknown_url")
        case 405:
            reply = ErrorReply(405, INVALID, f"{path} does not take {request.method}.", "method_not_allowed")
        case _:
            detail = str(error.detail) if isinstance(error, HTTPException) else "failed"
            reply = ErrorReply(status, INVALID, detail, "invalid_request")
    response = _json(reply)
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


async def _invalid(_request: Request, error: Exception) -> Response:
    """pydantic's findings in one sentence; ``param`` is the path of the first."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    described = [_describe(problem) for problem in problems[:_PROBLEMS_SHOWN]]
    more = f"; and {len(problems) - len(described)} more" if len(problems) > len(described) else ""
    message = "; ".join(text for _, text in described) + more + "."
    param = described[0][0] if described else None
    return _json(ErrorReply(400, INVALID, message, "invalid_request", param))


def _describe(problem: dict[str, Any]) -> tuple[str | None, str]:
    """The field's path, and what is wrong with it."""
    where, *path = problem["loc"]
    if problem["type"] == "json_invalid":
        position = f" at byte {path[0]}" if path else ""
        return None, f"The body is not valid JSON{position}: {problem['ctx']['error']}"
    name = ".".join(str(part) for part in path)
    if not name:
        return None, f"The {where}: {problem['msg']}"
    given = problem.get("input")
    shown = f" (got {given!r})" if isinstance(given, bool | int | float) else ""
    return name, f"{name}: {problem['msg']}{shown}"
