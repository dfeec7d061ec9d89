"""One machine's stack: a Ray of its own, Serve, and the two applications. Started and stopped as one.

Set ``deployments.environment`` before importing this module: Ray reads it once.
"""

import logging
import threading
import time

import ray
from ray import serve
from ray.serve.api import RunTarget
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from deployments.app import build_control, build_router
from deployments.environment import OBJECT_STORE_BYTES
from xgen_ray.api import ApiKeys
from xgen_ray.placement.tags import NodeTags
from xgen_ray.settings import CONTROL_APP, ROUTER_APP, ControlSettings, RouterSettings

# A replica must not close an idle connection in the moment that HAProxy reuses it: the client would see a
# disconnect. HAProxy lets go of them after seconds, long before this.
KEEP_ALIVE_S = 3600
POLL_S = 0.05


class LocalStack:
    """Blocking calls, from one thread. ``start`` may raise whatever Ray raises; ``stop`` never fails."""

    def __init__(self, host: str, port: int, *, dashboard: bool, metrics_port: int | None = None) -> None:
        self._host = host
        self._port = port
        self._dashboard = dashboard
        self._metrics_port = metrics_port
        self._serves = False

    def start(self, control: ControlSettings, router: RouterSettings, keys: ApiKeys, tags: NodeTags) -> None:
        """Returns when both applications answer. ``tags`` are this machine's."""
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        # Routers write a line of ours for each request, and control is asked all the time.
        quiet = LoggingConfig(enable_access_log=False)
        ray.init(
            address="local",
            # Which GPUs there are is in the tags: Ray itself knows one vendor a node.
            num_gpus=0,
            resources=dict(tags.resources),
            labels=dict(tags.labels),
            include_dashboard=self._dashboard,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _metrics_export_port=self._metrics_port,
        )
        serve.start(
            http_options=HTTPOptions(host=self._host, port=self._port, keep_alive_timeout_s=KEEP_ALIVE_S),
            logging_config=quiet,
        )
        serve.run_many(
            [
                RunTarget(
                    build_control(control, keys),
                    name=CONTROL_APP,
                    route_prefix="/api",
                    logging_config=quiet,
                ),
                RunTarget(
                    build_router(router, keys), name=ROUTER_APP, route_prefix="/", logging_config=quiet
                ),
            ]
        )
        self._serves = True

    def drain(self, deadline_s: float, hurry: threading.Event) -> None:
        """Takes the router out: no new requests, and those that run may finish until the deadline, or
        until ``hurry`` is set. Does nothing to a stack that has not started: without a Ray of its own Serve
        would take the router out of another one that it finds on this machine.
        """
        if not self._serves:
            return
        serve.delete(ROUTER_APP, _blocking=False)
        until = time.monotonic() + deadline_s
        while ROUTER_APP in serve.status().applications and time.monotonic() < until:
            if hurry.wait(POLL_S):
                return

    def stop(self) -> None:
        """Ends everything at once: after the drain nothing is left that deserves a goodbye. Engines die
        with their replicas, by their guards.
        """
        ray.shutdown()
