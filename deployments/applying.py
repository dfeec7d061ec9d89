"""Brings a Serve config onto a running cluster: what would change, the change, and its end.

As ``serve run --non-blocking`` does, but for two things. The config has been looked at as a whole before, and
what was deployed goes on when Serve does not take it: ``serve run`` shuts down all of Serve then.

Importing this module imports Ray, which reads ``environment`` once.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from deployments.joining import Address, ask_head, reach
from xgen_ray.errors import ConfigError, HeadUnreachable, NotReady
from xgen_ray.schema import ChangeKind, DeclaredChange
from xgen_ray.serve_config import ServeConfig, read_serve_config
from xgen_ray.settings import CONTROL_APP, CONTROL_DEPLOYMENT

DEPLOYED_IN_S: Final = 180.0
CONTROL_ANSWERS_IN_S: Final = 30.0
_ASK_AGAIN_S: Final = 0.3
_NAMESPACE: Final = "serve"
_FAILED: Final = frozenset({ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY})


def read_config(path: Path) -> ServeConfig:
    """The file, checked by Serve's schema and ours. Raises ConfigError with every fault's line and field."""
    return read_serve_config(path, ServeDeploySchema)


class Cluster:
    """A driver of the cluster at ``address``; leaving the context ends it, and nothing else."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def __aenter__(self) -> Self:
        # Ray itself would try for minutes.
        await reach(self._address)
        await ask_head(self._address, os.environ)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            self._connect()
        except (ConnectionError, RuntimeError, RayError) as error:
            told = str(error).strip().splitlines()[-1:] or ["no answer"]
            raise HeadUnreachable(f"the cluster at {self._address} cannot be reached: {told[0]}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        ray.shutdown()

    def _connect(self) -> None:
        ray.init(str(self._address), namespace=_NAMESPACE, log_to_driver=False, configure_logging=False)

    async def changes(self, config: ServeConfig) -> tuple[DeclaredChange, ...]:
        """What control would do to each model. Where it does not run yet, it loads them all."""
        if config.control is None:
            return ()
        if CONTROL_APP not in serve.status().applications:
            names = [request.loaded_as for request in config.control.models]
            return tuple(
                DeclaredChange(name=name, kind=ChangeKind.LOAD, why="newly declared") for name in names
            )
        handle: DeploymentHandle[Any] = serve.get_deployment_handle(CONTROL_DEPLOYMENT, CONTROL_APP)
        try:
            async with asyncio.timeout(CONTROL_ANSWERS_IN_S):
                found: tuple[DeclaredChange, ...] = await handle.changes.remote(config.control.models)
        except (TimeoutError, RayServeException, RayError) as error:
            raise NotReady(f"control does not answer ({type(error).__name__}); try again soon") from None
        return found

    async def deploy(self, config: ServeConfig, deadline_s: float = DEPLOYED_IN_S) -> None:
        """Return once Serve runs what the config says. Raises ConfigError when it does not take it, with
        what was deployed before in place again.
        """
        schema = ServeDeploySchema.model_validate(config.content)
        await asyncio.to_thread(self._start_serve, schema)
        client = _get_global_client(raise_if_no_controller_running=True)
        if client is None:
            raise NotReady("Serve has stopped; try again")
        before = client.get_serve_details()["applications"]
        client.deploy_apps(schema, _blocking=False)
        names = [application.name for application in schema.applications]
        try:
            async with asyncio.timeout(deadline_s):
                fault = await _outcome(names)
        except TimeoutError:
            fault = f"it was not ready after {deadline_s:g} s"
        if fault is None:
            return
        former = [_former(before[name]) for name in names if name in before]
        if kept := [one for one in former if one is not None]:
            client.deploy_apps(schema.model_copy(update={"applications": kept}), _blocking=False)
        raise ConfigError(f"Serve does not take {config.path}: {fault}. What was deployed before goes on")

    def _start_serve(self, schema: ServeDeploySchema) -> None:
        """Serve runs already, or is started as the config says."""
        serve.start(
            proxy_location=schema.proxy_location,
            http_options=schema.http_options.model_dump(),
            grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
        )


def _former(details: Mapping[str, Any]) -> ServeApplicationSchema | None:
    """None for one that no config has deployed."""
    config = details["deployed_app_config"]
    return ServeApplicationSchema.model_validate(config) if config else None


async def _outcome(names: list[str]) -> str | None:
    """None once all run; what Serve says of the first that does not come up."""
    while True:
        applications = serve.status().applications
        for name in names:
            if name in applications and applications[name].status in _FAILED:
                return f"{name}: {_last_words(applications[name].message)}"
        if all(_runs(applications.get(name)) for name in names):
            return None
        await asyncio.sleep(_ASK_AGAIN_S)


def _runs(application: ApplicationStatusOverview | None) -> bool:
    return application is not None and application.status is ApplicationStatus.RUNNING


def _last_words(message: str) -> str:
    """Of a traceback the exception, which is what follows its last indented lines."""
    lines = message.strip().splitlines()
    frames = [place for place, line in enumerate(lines) if line.startswith('  File "')]
    said = [line for line in lines[frames[-1] + 1 :] if not line.startswith("    ")] if frames else lines
    return " ".join(" ".join(said).split())[:600] or "it says nothing"
