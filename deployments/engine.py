"""The engine deployment: an application of its own for each engine, started by control."""

import asyncio
import os

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from deployments.environment import metrics_wanted
from deployments.logs import log_transitions
from xgen_ray.serving.apps import ENGINE_DEPLOYMENT
from xgen_ray.serving.metrics.export import keep_exporting
from xgen_ray.serving.metrics.rows import Source
from xgen_ray.serving.replica import AppSpec, EngineReplica
from xgen_ray.settings import engine_environment

# Serve's own time on top of the drain: the engine's stop, and the destructor.
STOP_MARGIN_S = 15.0
# Ray gives every node this label, with the id that ``ray.nodes()`` has.
NODE_ID_LABEL = "ray.io/node-id"


class Engine(EngineReplica):
    """The environment of the node that it runs on is what its engine gets."""

    def __init__(self, spec: AppSpec) -> None:
        log_transitions()
        super().__init__(spec, engine_environment(os.environ))
        if metrics_wanted(os.environ):
            export = keep_exporting(Source.ENGINE, self.samples)
            self._exporter = asyncio.get_running_loop().create_task(export)


def engine_application(spec: AppSpec) -> Application:
    """One engine, on the node that has its lease."""
    deployment = serve.deployment(
        name=ENGINE_DEPLOYMENT,
        num_replicas=1,
        # Control's questions only: requests go past the actor, and the engine does its own queueing.
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0, "label_selector": {NODE_ID_LABEL: spec.node_id}},
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=spec.drain_s + STOP_MARGIN_S,
        # Control asks every engine about twice a second. A Serve config does not reach what control starts.
        logging_config=LoggingConfig(enable_access_log=False),
    )(Engine)
    return deployment.bind(spec)
