"""The composition root: settings become the two applications that ``serve run`` and ``xgen-ray up`` start.

    serve run cluster_configs/one-machine.yaml

names ``deployments.app:control`` and ``deployments.app:router``; ``args:`` of each is validated into
its settings.
"""

from ray import serve
from ray.serve import Application

from deployments.control import Control
from deployments.router import Router
from xgen_ray.api import ApiKeys
from xgen_ray.settings import CONTROL_DEPLOYMENT, ControlSettings, RouterSettings, Settings, read_api_keys

# Serve waits this long for requests that run when it stops a router.
ROUTER_DRAIN_S = 30.0
# Ray gives the head this resource. The registry is there, and so is the proxy that routers stand behind.
ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}


# No ``from __future__ import annotations`` here: Serve reads the builders' annotations at run time.
def control(args: ControlSettings) -> Application:
    """The control application: the management API under its route, one replica on the head node."""
    return build_control(args, _keys(args))


def router(args: RouterSettings) -> Application:
    """The router application: the OpenAI API, any number of replicas."""
    return build_router(args, _keys(args))


def build_control(settings: ControlSettings, keys: ApiKeys) -> Application:
    deployment = serve.deployment(
        name=CONTROL_DEPLOYMENT,
        num_replicas=1,
        max_ongoing_requests=10_000,  # routers hold one call each, callers of a load another
        ray_actor_options=ON_HEAD,
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2,
    )(Control)
    return deployment.bind(settings, keys)


def build_router(settings: RouterSettings, keys: ApiKeys) -> Application:
    deployment = serve.deployment(
        num_replicas=settings.replicas,
        max_ongoing_requests=10_000,
        ray_actor_options=ON_HEAD,
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=ROUTER_DRAIN_S,
    )(Router)
    return deployment.bind(settings, keys)


def _keys(settings: Settings) -> ApiKeys:
    return ApiKeys(of_file=read_api_keys(settings.api_keys_file) if settings.api_keys_file else ())
