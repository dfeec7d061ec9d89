"""The engine deployment: one application a pool, started by control."""

from ray import serve
from ray.serve import Application

from xgen_ray.serving.dispatcher import ENGINE_DEPLOYMENT
from xgen_ray.serving.replica import EngineReplica, PoolSpec

# Serve's own time on top of the drain: the engine's stop, and the destructor.
STOP_MARGIN_S = 15.0


def engine_application(spec: PoolSpec, replicas: int) -> Application:
    """A pool of ``replicas`` engines."""
    deployment = serve.deployment(
        name=ENGINE_DEPLOYMENT,
        num_replicas=replicas,
        # Control's questions only: requests go past the actor, and the engine does its own queueing.
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=spec.drain_s + STOP_MARGIN_S,
        max_constructor_retry_count=3,
    )(EngineReplica)
    return deployment.bind(spec)
