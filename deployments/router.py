"""The router deployment: the OpenAI ingress. It follows control's table and streams bytes from engines."""

import asyncio
import logging

from ray import serve
from ray.serve.handle import DeploymentHandle

from xgen_ray.api import ApiKeys, Gateway, GatewayLimits, LocalGuard, RetryLimits
from xgen_ray.api.asgi import App
from xgen_ray.serving.control import TABLE_POLL_S
from xgen_ray.serving.dispatcher import ServeChooser, TableDispatcher
from xgen_ray.serving.table import RoutingTable
from xgen_ray.settings import CONTROL_APP, CONTROL_DEPLOYMENT, RouterSettings

logger = logging.getLogger(__name__)

FOLLOW_RETRY_S = 0.5
FOLLOW_MARGIN_S = 5.0


@serve.ingress()
class Router:
    """Serves with the last table it got when control is away."""

    def __init__(self, settings: RouterSettings, keys: ApiKeys) -> None:
        self._settings = settings
        self._keys = keys
        self._chooser = ServeChooser()
        self._dispatcher = TableDispatcher(self._chooser)
        self._follower = asyncio.get_running_loop().create_task(self._follow())

    async def __serve_build_asgi_app__(self) -> App:
        limits = GatewayLimits(retry=RetryLimits(ready_wait_s=self._settings.wait_s))
        self._gateway = Gateway(
            self._dispatcher, self._keys, limits=limits, cors_origins=self._settings.cors_origins
        )
        app: App = self._gateway
        if not self._keys.required:
            app = LocalGuard(
                app, allowed_hosts=self._settings.allowed_hosts, allowed_origins=self._settings.cors_origins
            )
        return app

    def check_health(self) -> None:
        """A router that follows no table any more must be started anew."""
        if self._follower.done():
            raise RuntimeError("the router no longer follows the routing table")

    async def __del__(self) -> None:
        """Serve calls this once running requests are done. It runs no ASGI lifespan."""
        self._follower.cancel()
        await self._gateway.aclose()

    async def _follow(self) -> None:
        handle: DeploymentHandle[object] = serve.get_deployment_handle(CONTROL_DEPLOYMENT, CONTROL_APP)
        while True:
            try:
                async with asyncio.timeout(TABLE_POLL_S + FOLLOW_MARGIN_S):
                    table = await handle.next_table.remote(self._dispatcher.stamp)
            except Exception as error:  # noqa: BLE001  # whatever Ray raises while control is away
                logger.warning("control does not answer: %s", type(error).__name__)
                await asyncio.sleep(FOLLOW_RETRY_S)
                continue
            if table.stamp not in (self._dispatcher.stamp, RoutingTable().stamp):
                self._dispatcher.apply(table)
                self._chooser.keep_only(
                    frozenset(route.pool for route in table.routes.values() if route.pool is not None)
                )
