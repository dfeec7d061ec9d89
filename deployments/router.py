"""The router deployment: the OpenAI ingress. It follows control's table and streams bytes from engines."""

import asyncio
import logging
import os
from collections.abc import Iterable

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.environment import metrics_wanted
from deployments.logs import log_transitions
from xgen_ray.api import ApiKeys, Gateway, GatewayLimits, KeyFile, LocalGuard, RetryLimits
from xgen_ray.api.asgi import App
from xgen_ray.api.tracing import OTLPTracing
from xgen_ray.serving.control import TABLE_POLL_S
from xgen_ray.serving.dispatcher import TableDispatcher
from xgen_ray.serving.metrics.export import keep_exporting
from xgen_ray.serving.metrics.rows import Sample, Source
from xgen_ray.serving.table import RoutingTable
from xgen_ray.settings import CONTROL_APP, CONTROL_DEPLOYMENT, RouterSettings, read_api_keys

logger = logging.getLogger(__name__)

FOLLOW_RETRY_S = 0.5
FOLLOW_MARGIN_S = 5.0
CONTROL_DEADLINE_S = 5.0
# Many requests may fail at once; it takes one word to have their engine looked at.
DOUBTS_EVERY_S = 0.5
# Likewise for a model that sleeps; the table says soon that it no longer does.
WAKE_EVERY_S = 0.2


@serve.ingress()
class Router:
    """Serves with the last table it got when control is away."""

    def __init__(self, settings: RouterSettings, keys: ApiKeys) -> None:
        log_transitions()
        self._settings = settings
        self._keys = keys
        self._dispatcher = TableDispatcher()
        self._control: DeploymentHandle[object] = serve.get_deployment_handle(CONTROL_DEPLOYMENT, CONTROL_APP)
        loop = asyncio.get_running_loop()
        self._follower = loop.create_task(self._follow())
        self._doubter = loop.create_task(self._tell_doubts())
        self._waker = loop.create_task(self._wake())
        self._key_reader: asyncio.Task[None] | None = None
        if settings.api_keys_file is not None:
            file = KeyFile(settings.api_keys_file, keys, read_api_keys)
            self._key_reader = loop.create_task(file.follow())
        self._exporter: asyncio.Task[None] | None = None
        if metrics_wanted(os.environ):
            self._exporter = loop.create_task(keep_exporting(Source.ROUTER, self._samples))

    async def __serve_build_asgi_app__(self) -> App:
        limits = GatewayLimits(retry=RetryLimits(ready_wait_s=self._settings.wait_s))
        self._gateway = Gateway(
            self._dispatcher,
            self._keys,
            limits=limits,
            cors_origins=self._settings.cors_origins,
            tracing=OTLPTracing(self._settings.otlp_endpoint) if self._settings.otlp_endpoint else None,
            # Ray Serve puts an id on every request and its answer.
            answers_request_id=False,
        )
        app: App = self._gateway
        if not self._keys.required:
            app = LocalGuard(
                app, allowed_hosts=self._settings.allowed_hosts, allowed_origins=self._settings.cors_origins
            )
        return app

    def check_health(self) -> None:
        """A router that follows no table any more must be started anew."""
        if self._follower.done() or self._doubter.done() or self._waker.done():
            raise RuntimeError("the router no longer talks to control")

    async def __del__(self) -> None:
        """Serve calls this once running requests are done. It runs no ASGI lifespan."""
        self._follower.cancel()
        self._doubter.cancel()
        self._waker.cancel()
        for task in (self._key_reader, self._exporter):
            if task is not None:
                task.cancel()
        await self._gateway.aclose()

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(TABLE_POLL_S + FOLLOW_MARGIN_S):
                    table = await self._control.next_table.remote(
                        self._dispatcher.stamp, self._dispatcher.report()
                    )
            except Exception as error:  # noqa: BLE001  # whatever Ray raises while control is away
                logger.warning("control does not answer: error=%s", type(error).__name__)
                await asyncio.sleep(FOLLOW_RETRY_S)
                continue
            if table.stamp not in (self._dispatcher.stamp, RoutingTable().stamp):
                self._dispatcher.apply(table)

    async def _samples(self) -> Iterable[Sample]:
        return self._dispatcher.samples()

    async def _wake(self) -> None:
        """Has models woken that requests wait for. What gets lost here, the next request asks for again."""
        while True:
            sleeping = await self._dispatcher.woken()
            await self._tell(self._control.wake, sleeping)
            await asyncio.sleep(WAKE_EVERY_S)

    async def _tell_doubts(self) -> None:
        """Has engines looked at that fail requests. What gets lost here, the next failure tells again."""
        while True:
            doubted = await self._dispatcher.doubted()
            await self._tell(self._control.hear_doubts, doubted)
            await asyncio.sleep(DOUBTS_EVERY_S)

    async def _tell(self, method: DeploymentHandle[object], names: frozenset[str]) -> None:
        try:
            async with asyncio.timeout(CONTROL_DEADLINE_S):
                await method.remote(names)
        except Exception as error:  # noqa: BLE001  # whatever Ray raises while control is away
            logger.warning("control did not hear: names=%s error=%s", ", ".join(names), type(error).__name__)
