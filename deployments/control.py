"""The control deployment: the management API, and the one place where models are decided on."""

import dataclasses
import logging
import os
import platform

from ray import serve

from deployments.engine import engine_application
from xgen_ray.api import ApiKeys, LocalGuard, create_management_app
from xgen_ray.api.asgi import App
from xgen_ray.placement import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.schema import FailureReport, ReplicaStatus
from xgen_ray.serving.control import Control as ControlPlane
from xgen_ray.serving.inventory import InventoryReader
from xgen_ray.serving.loop import LoopSettings
from xgen_ray.serving.sources import SourceFinder
from xgen_ray.serving.table import RoutingTable
from xgen_ray.settings import CONTROL_APP, CONTROL_DEPLOYMENT, ControlSettings, engine_environment

ENGINE_HOST = "127.0.0.1"


@serve.ingress()
class Control:
    """One replica, on the head node, where the registry is."""

    def __init__(self, settings: ControlSettings, keys: ApiKeys) -> None:
        logging.getLogger("xgen_ray").setLevel(logging.INFO)
        self._settings = settings
        self._keys = keys
        # The environment of the node that control runs on is what counts, not that of whoever deployed it.
        env = engine_environment(os.environ)
        inventory = InventoryReader(
            node=platform.node(),
            env=env,
            commands=settings.backend_commands,
            cache_dir=settings.cache_dir,
            policy=_policy(settings),
        )
        sources = SourceFinder(
            settings.model_dirs, settings.cache_dir / "hub", settings.hub_endpoint, os.environ.get("HF_TOKEN")
        )
        self._control = ControlPlane(
            LoopSettings(
                app=CONTROL_APP,
                deployment=CONTROL_DEPLOYMENT,
                base_url=settings.base_url,
                state_dir=settings.state_dir,
                cache_dir=settings.cache_dir,
                engine_host=ENGINE_HOST,
                engine_env=env,
                drain_s=settings.drain_s,
                declared=settings.models,
            ),
            engine_application,
            inventory,
            sources,
        )

    async def __serve_build_asgi_app__(self) -> App:
        """Called once, after the constructor: what must be awaited at the start is awaited here."""
        await self._control.start()
        app: App = create_management_app(self._control, self._keys)
        if not self._keys.required:
            app = LocalGuard(
                app, allowed_hosts=self._settings.allowed_hosts, allowed_origins=self._settings.cors_origins
            )
        return app

    async def next_table(self, known: tuple[str, int]) -> RoutingTable:
        """For routers."""
        return await self._control.next_table(known)

    async def hear_replica(self, pool: str, status: ReplicaStatus, failure: FailureReport | None) -> None:
        """For engine replicas."""
        await self._control.hear_replica(pool, status, failure)

    def check_health(self) -> None:
        self._control.check_health()

    async def __del__(self) -> None:
        await self._control.stop()


def _policy(settings: ControlSettings) -> PlacementPolicy:
    if settings.vllm_rocm_gfx is None:
        return DEFAULT_POLICY
    return dataclasses.replace(DEFAULT_POLICY, vllm_rocm_gfx=frozenset(settings.vllm_rocm_gfx))
