"""Routes of the management API that the page asks beside the others."""

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from xgen_ray import __version__
from xgen_ray.api.contracts import ControlPlane
from xgen_ray.api.guard import CALLER
from xgen_ray.api.keys import ANONYMOUS, Caller
from xgen_ray.api.stream import Stream
from xgen_ray.console import (
    BackendChoice,
    EventsReport,
    LocalModelsReport,
    MemoryReport,
    OptionReport,
    OptionsReport,
    SessionReport,
)
from xgen_ray.errors import Forbidden
from xgen_ray.placement.menu import backends_in_order, option_rows, options_of

# A proxy that keeps the beginning of an answer back would keep all of a stream back.
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def add_console(router: APIRouter, control: ControlPlane, stream: Stream, links: Mapping[str, str]) -> None:
    """Adds them to ``router``. ``links`` lead to other pages about this fleet, by name."""

    @router.get("/session", summary="Who is asking, and what the key is good for")
    async def session(request: Request) -> SessionReport:
        caller = caller_of(request)
        name = None if caller.name == ANONYMOUS else caller.name
        return SessionReport(key=name, role=caller.role, version=__version__, links=dict(links))

    @router.get("/options", summary="What a load can be told, per backend")
    async def options() -> OptionsReport:
        """The fields of a load's ``options`` as data: type, bounds, choices, and which backend has which."""
        return _OPTIONS

    @router.get("/local-models", summary="Models under the nodes' model directories")
    async def local_models() -> LocalModelsReport:
        return await control.local_models()

    @router.get("/memory", summary="How full every memory was in the last hour")
    async def memory() -> MemoryReport:
        """GPUs and RAM of each node, in bytes; what is not known is left out."""
        return await control.memory()

    @router.get("/events", summary="What has happened lately, newest first")
    async def events() -> EventsReport:
        """Deaths with their forensics, demotions, moves, sizes, sleep, nodes that came and went."""
        return await control.events()

    @router.get(
        "/stream",
        summary="Everything that changes, as server-sent events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def follow() -> StreamingResponse:
        """A ``snapshot`` first, then ``model``, ``node``, ``gone``, ``event`` and ``figures``."""
        return StreamingResponse(stream.follow(), media_type="text/event-stream", headers=STREAM_HEADERS)


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


async def require_manager(request: Request) -> None:
    """For orders: raises Forbidden for a key that may only use models and look on."""
    caller = caller_of(request)
    if not caller.role.may_manage:
        raise Forbidden(
            f"The key {caller.name!r} may use models and look on, not change anything. Send a key whose role "
            "is 'manage'."
        )


_OPTIONS = OptionsReport(
    options=tuple(
        OptionReport(
            name=row.name,
            label=f"option.{row.name}",
            type=row.type,
            essential=row.essential,
            description=row.description,
            minimum=row.minimum,
            exclusive_minimum=row.exclusive_minimum,
            maximum=row.maximum,
            choices=row.choices,
        )
        for row in option_rows()
    ),
    backends=tuple(
        BackendChoice(
            backend=row.backend,
            engine=row.engine,
            device=row.device_api,
            formats=tuple(sorted(row.formats)),
            uses_gpus=row.needs_gpu,
            options=options_of(row.backend),
        )
        for row in backends_in_order()
    ),
)
