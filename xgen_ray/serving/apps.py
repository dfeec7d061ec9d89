"""Our applications in Serve: starting them, stopping them, looking at them."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.api import RunTarget
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ServeStatus

from xgen_ray.serving.log_pages import Answer
from xgen_ray.serving.replica import AppSpec
from xgen_ray.serving.state import Replica, ServeState
from xgen_ray.serving.turn import APP_PREFIX

logger = logging.getLogger(__name__)

ENGINE_DEPLOYMENT = "Engine"
ASK_TIMEOUT_S = 2.0
ASK_AGAIN_S = 0.05

# Makes an engine's application; given by the composition root.
BuildEngine = Callable[[AppSpec], Application]

_STATES: Mapping[ApplicationStatus, ServeState] = {
    ApplicationStatus.NOT_STARTED: ServeState.STARTING,
    ApplicationStatus.DEPLOYING: ServeState.STARTING,
    ApplicationStatus.RUNNING: ServeState.RUNNING,
    ApplicationStatus.UNHEALTHY: ServeState.UNHEALTHY,
    ApplicationStatus.DEPLOY_FAILED: ServeState.FAILED,
    ApplicationStatus.DELETING: ServeState.STOPPING,
}


@dataclass(frozen=True, slots=True)
class AppsSeen:
    """Serve's word on our apps. ``replicas`` lacks an app whose replicas did not all answer in time."""

    states: Mapping[str, ServeState]
    messages: Mapping[str, str]
    replicas: Mapping[str, tuple[Replica, ...]]


class Handles:
    """One handle an app, from ``make``, for as long as there is the app. Belongs to one event loop."""

    def __init__(self, make: Callable[[str], DeploymentHandle[object]]) -> None:
        self._make = make
        self._handles: dict[str, DeploymentHandle[object]] = {}

    def of(self, app: str) -> DeploymentHandle[object]:
        if app not in self._handles:
            self._handles[app] = self._make(app)
        return self._handles[app]

    async def keep(self, apps: Collection[str]) -> None:
        """Ends the handles of all others. One that is only let go of would go on counting its calls."""
        for gone in self._handles.keys() - apps:
            end: Callable[[], Awaitable[None]] = self._handles.pop(gone).shutdown_async
            await end()


class Apps:
    """Asks each app through a handle of its own."""

    def __init__(self) -> None:
        self._handles = Handles(lambda app: serve.get_deployment_handle(ENGINE_DEPLOYMENT, app))
        # Serve's making and parsing of deployment configs changes a set of cloudpickle's that is global to
        # the process: two threads at it fail each other.
        self._configs = threading.Lock()

    async def start(self, app: str, build: Callable[[], Application]) -> None:
        """Asks Serve for the application; returns before it runs."""
        await asyncio.to_thread(self._start, app, build)

    async def stop(self, app: str) -> None:
        """Asks Serve to end the application, gracefully; returns at once."""
        await asyncio.to_thread(serve.delete, app, _blocking=False)

    async def look(self) -> AppsSeen:
        """Raises RayServeException or RayError when Serve itself does not answer."""
        status = await asyncio.to_thread(self._status)
        ours = {name: app for name, app in status.applications.items() if name.startswith(APP_PREFIX)}
        await self._handles.keep(ours.keys())
        counts = {name: _running(status, name) for name in ours}
        answers = await asyncio.gather(*(self._describe(name, count) for name, count in counts.items()))
        return AppsSeen(
            states={name: _STATES[app.status] for name, app in ours.items()},
            messages={name: app.message for name, app in ours.items() if app.message},
            replicas={name: found for name, found in zip(counts, answers, strict=True) if found is not None},
        )

    async def logs(
        self, app: str, after: int, limit: int, of: str | None, *, patience_s: float = 0.0
    ) -> list[Answer]:
        """Each replica's lines, for one who has read the log of ``of`` up to ``after``; of those that
        answered in time.

        A handle learns of a new replica a moment after control does: ``patience_s`` bounds the wait for it.
        """
        until = time.monotonic() + patience_s
        while True:
            answers = await self._ask(app, "logs", after, limit, of)
            if answers or time.monotonic() >= until:
                return answers
            await asyncio.sleep(ASK_AGAIN_S)

    async def doubt(self, app: str, replica_ids: frozenset[str]) -> None:
        """Has these replicas of the app look at their engines."""
        await self._ask(app, "doubt", replica_ids)

    async def _describe(self, app: str, running: int) -> tuple[Replica, ...] | None:
        if running == 0:
            return ()
        answers = await self._ask(app, "describe")
        found = tuple(answer for answer in answers if isinstance(answer, Replica))
        # A fresh handle knows no replicas yet, a dying one does not answer: neither proves an absence.
        return found if len(found) >= running else None

    async def _ask(self, app: str, method: str, *args: object) -> list[Any]:
        """What the app's replicas answer; nothing when the app is going or its handle knows none yet."""
        try:
            response = self._handles.of(app).broadcast(method, *args)
            answers = await response.results_async(timeout_s=ASK_TIMEOUT_S, return_exceptions=True)
        except (KeyError, TimeoutError, RayServeException, RayError):
            # The first is Serve's word for an app that it does not have yet, or no longer.
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _start(self, app: str, build: Callable[[], Application]) -> None:
        with self._configs:
            target = RunTarget(build(), name=app, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)

    def _status(self) -> ServeStatus:
        with self._configs:
            return serve.status()


def _running(status: ServeStatus, app: str) -> int:
    deployments = status.applications[app].deployments
    engine = deployments.get(ENGINE_DEPLOYMENT)
    states = engine.replica_states if engine is not None else {}
    return sum(count for state, count in states.items() if state == "RUNNING")
