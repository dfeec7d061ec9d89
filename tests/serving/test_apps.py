"""Handles of applications, made of Serve's own parts as far as these go without a cluster."""

import asyncio
from collections.abc import Callable
from typing import Any

from ray.serve._private.common import DeploymentHandleSource, DeploymentID
from ray.serve._private.router import AsyncioRouter, CurrentLoopRouter, RouterMetricsManager
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Gauge

from xgen_ray.serving.apps import Handles

# There is none; it would be asked for a deployment that Serve itself scales.
CONTROLLER: Any = None
TAGS = ("deployment", "application", "handle", "actor_id")


class LonelyRouter(CurrentLoopRouter):
    """Serve's router of a handle, which knows of no controller."""

    def __init__(self, deployment: DeploymentID) -> None:
        self._asyncio_loop = asyncio.get_running_loop()
        self._asyncio_router = AsyncioRouter.__new__(AsyncioRouter)
        self._asyncio_router._metrics_manager = RouterMetricsManager(
            deployment,
            "handle",
            "actor",
            DeploymentHandleSource.UNKNOWN,
            CONTROLLER,
            Counter("requests", tag_keys=(*TAGS, "route")),
            Gauge("queued", tag_keys=TAGS),
            Gauge("running", tag_keys=TAGS),
            self._asyncio_loop,
        )


def handle_of(app: str) -> DeploymentHandle[object]:
    def router(*, deployment_id: DeploymentID, **_: object) -> LonelyRouter:
        return LonelyRouter(deployment_id)

    create: Any = router
    handle: DeploymentHandle[object] = DeploymentHandle("Engine", app, _create_router=create)
    begin: Callable[[], None] = handle._init
    begin()
    return handle


async def tasks_beside(own: set[asyncio.Task[object]]) -> int:
    # The router begins its task in the loop's next turn.
    await asyncio.sleep(0)
    return len(asyncio.all_tasks() - own)


async def test_what_counts_the_calls_of_an_app_ends_with_it() -> None:
    own = asyncio.all_tasks()
    handles = Handles(handle_of)
    first = handles.of("a")
    handles.of("b")
    assert handles.of("a") is first
    assert await tasks_beside(own) == 2
    await handles.keep({"a", "c"})
    assert await tasks_beside(own) == 1
    assert handles.of("a") is first
    await handles.keep(())
    assert await tasks_beside(own) == 0
