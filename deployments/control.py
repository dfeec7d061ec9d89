"""The control deployment: the management API, and the one place where models are decided on."""

import asyncio
import dataclasses
import gc
import os
import platform

import ray
from ray import serve

from deployments.engine import engine_application
from deployments.environment import metrics_wanted
from deployments.logs import log_transitions
from deployments.node_owner import NodeOwnerActor
from xgen_ray import __version__
from xgen_ray.api import ApiKeys, KeyFile, LocalGuard, PageFiles, create_management_app
from xgen_ray.api.asgi import App
from xgen_ray.placement import DEFAULT_POLICY, NodeType, Observation, PlacementPolicy
from xgen_ray.schema import DeclaredChange, FailureReport, LoadRequest
from xgen_ray.serving.apps import Apps
from xgen_ray.serving.autoscaler import Autoscaler
from xgen_ray.serving.control import Control as ControlPlane
from xgen_ray.serving.hands import AppSettings, Hands
from xgen_ray.serving.looks import FleetReader
from xgen_ray.serving.loop import LoopSettings
from xgen_ray.serving.metrics.export import keep_exporting
from xgen_ray.serving.metrics.rows import Source
from xgen_ray.serving.node_state import Versions
from xgen_ray.serving.nodes import Nodes, OwnerSettings
from xgen_ray.serving.sources import SourceFinder
from xgen_ray.serving.state import Replica
from xgen_ray.serving.table import RoutingTable
from xgen_ray.serving.traffic import RouterReport
from xgen_ray.settings import CONTROL_APP, CONTROL_DEPLOYMENT, ControlSettings, read_api_keys


@serve.ingress()
class Control:
    """One replica, on the head node, where the registry is."""

    def __init__(self, settings: ControlSettings, keys: ApiKeys) -> None:
        log_transitions()
        self._settings = settings
        self._keys = keys
        sources = SourceFinder(
            settings.model_dirs, settings.cache_dir / "hub", settings.hub_endpoint, os.environ.get("HF_TOKEN")
        )
        owners = OwnerSettings(
            model_dirs=settings.model_dirs,
            backend_commands=settings.backend_commands,
            cache_dir=settings.cache_dir,
            hub_endpoint=settings.hub_endpoint,
        )
        nodes = Nodes(owners, NodeOwnerActor)
        apps = Apps()
        versions = Versions(__version__, ray.__version__, platform.python_version())
        fleet = FleetReader(nodes, sources, policy_of(settings), versions)
        app_settings = AppSettings(CONTROL_APP, CONTROL_DEPLOYMENT, settings.cache_dir, settings.drain_s)
        node_types = {
            name: NodeType(name, kind.resources, kind.labels, kind.max_workers)
            for name, kind in settings.node_types.items()
        }
        self._control = ControlPlane(
            LoopSettings(settings.state_dir, settings.models, settings.node_costs, node_types),
            settings.base_url,
            apps,
            fleet,
            lambda post: Hands(
                app_settings, engine_application, fleet, nodes, apps, Autoscaler(node_types), post
            ),
        )

    async def __serve_build_asgi_app__(self) -> App:
        """Called once, after the constructor: what must be awaited at the start is awaited here."""
        await self._control.start()
        loop = asyncio.get_running_loop()
        if self._settings.api_keys_file is not None:
            file = KeyFile(self._settings.api_keys_file, self._keys, read_api_keys)
            self._key_reader = loop.create_task(file.follow())
        if metrics_wanted(os.environ):
            self._exporter = loop.create_task(keep_exporting(Source.CONTROL, self._control.samples))
        # What is loaded by now stays: the collector need not look at it again in the middle of a decision.
        gc.freeze()
        api = create_management_app(self._control, self._keys, links=self._settings.links)
        app: App = PageFiles(api)
        if not self._keys.required:
            app = LocalGuard(
                app, allowed_hosts=self._settings.allowed_hosts, allowed_origins=self._settings.cors_origins
            )
        return app

    async def next_table(self, known: tuple[str, int], report: RouterReport) -> RoutingTable:
        """For routers."""
        return await self._control.next_table(known, report)

    async def changes(self, declared: tuple[LoadRequest, ...]) -> tuple[DeclaredChange, ...]:
        """For ``xgen-ray apply``."""
        return self._control.changes(declared)

    async def wake(self, names: frozenset[str]) -> None:
        """For routers."""
        await self._control.wake(names)

    async def hear_doubts(self, replica_ids: frozenset[str]) -> None:
        """For routers."""
        await self._control.hear_doubts(replica_ids)

    async def hear_replica(
        self,
        app: str,
        replica: Replica,
        failure: FailureReport | None,
        observations: tuple[Observation, ...],
    ) -> None:
        """For engine replicas."""
        await self._control.hear_replica(app, replica, failure, observations)

    def check_health(self) -> None:
        self._control.check_health()

    async def __del__(self) -> None:
        await self._control.stop()


def policy_of(settings: ControlSettings) -> PlacementPolicy:
    """The defaults, with what the operator says instead or first."""
    gfx = settings.vllm_rocm_gfx
    return dataclasses.replace(
        DEFAULT_POLICY,
        vllm_rocm_gfx=DEFAULT_POLICY.vllm_rocm_gfx if gfx is None else frozenset(gfx),
        profiles=(*(one.row() for one in settings.profiles), *DEFAULT_POLICY.profiles),
    )
