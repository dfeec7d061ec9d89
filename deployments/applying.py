"""Brings a Serve config onto a running cluster: what would change, the change, and its end.

``serve run`` does not look at the config as a whole before, and shuts down all of Serve when that does not
take it; here what was deployed before goes on.

Importing this module imports Ray, which reads ``environment`` once.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import ray
from ray import serve
from ray._private.services import find_node_ids
from ray.exceptions import RayError
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.common import DeploymentStatus
from ray.serve.config import HTTPOptions, gRPCOptions
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
from xgen_ray.errors import ConfigError, HeadUnreachable, NotInTime, NotReady, XgenRayError
from xgen_ray.schema import ChangeKind, DeclaredChange
from xgen_ray.serve_config import ServeConfig, read_serve_config
from xgen_ray.settings import CONTROL_APP, CONTROL_DEPLOYMENT

DEPLOYED_IN_S: Final = 180.0
CONTROL_ANSWERS_IN_S: Final = 30.0
_ASK_AGAIN_S: Final = 0.3
_NAMESPACE: Final = "serve"
# What Ray says when none of the nodes on this machine is one of the cluster's.
_NO_NODE_HERE: Final = "No node info found"
_FAILED: Final = frozenset({ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY})
_DEPLOYMENT_FAILED: Final = frozenset({DeploymentStatus.DEPLOY_FAILED, DeploymentStatus.UNHEALTHY})


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
        if not find_node_ids():  # type: ignore[no-untyped-call]
            raise self._no_node_here()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            self._connect()
        except (ConnectionError, RuntimeError, RayError) as error:
            if _NO_NODE_HERE in str(error):
                raise self._no_node_here() from None
            told = str(error).strip().splitlines()[-1:] or ["no answer"]
            raise HeadUnreachable(f"the cluster at {self._address} cannot be reached: {told[0]}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        ray.shutdown()

    def _connect(self) -> None:
        ray.init(str(self._address), namespace=_NAMESPACE, log_to_driver=False, configure_logging=False)

    def _no_node_here(self) -> ConfigError:
        return ConfigError(
            f"this machine is no node of the cluster at {self._address}, and only from a node can it be "
            "changed. Run this on the head, or make this machine a node: xgen-ray node --address "
            f"{self._address}"
        )

    def require_same_door(self, config: ServeConfig) -> None:
        """Raises ConfigError where Serve listens already and elsewhere than the config says: it would go on
        doing so, and what is safe to offer at the one address need not be at the other.
        """
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is not None:
            require_door(config, client.http_config)

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
        """Return once Serve runs what the config says. Raises ConfigError when it does not take it, NotInTime
        at the deadline, with what configs had deployed before in place again.
        """
        schema = ServeDeploySchema.model_validate(config.content)
        await asyncio.to_thread(self._start_serve, schema)
        self.require_same_door(config)
        client = _get_global_client(raise_if_no_controller_running=True)
        if client is None:
            raise NotReady("Serve has stopped; try again")
        former = of_configs(client.get_serve_details()["applications"])
        fault = await _deployed(client, schema, deadline_s)
        if fault is None:
            return
        told = f"Serve does not take {config.path}: {fault.why}."
        # A second attempt at the same finds the first one's remains.
        if _said(former) in ([], _said(schema.applications)):
            raise fault.kind(f"{told} Nothing else was deployed before")
        undone = await _deployed(client, schema.model_copy(update={"applications": former}), deadline_s)
        if undone is not None:
            raise fault.kind(
                f"{told} What was deployed before was put back, and does not come up: {undone.why}"
            )
        raise fault.kind(f"{told} What was deployed before is in place again")

    def _start_serve(self, schema: ServeDeploySchema) -> None:
        """Serve runs already, or is started as the config says."""
        try:
            serve.start(
                proxy_location=schema.proxy_location,
                http_options=schema.http_options.model_dump(),
                grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
            )
        except TimeoutError as error:
            raise NotInTime(f"Serve does not start: {error}") from None


def require_door(config: ServeConfig, door: HTTPOptions) -> None:
    """Raises ConfigError where Serve, which listens at ``door``, would have to listen elsewhere."""
    asked = ServeDeploySchema.model_validate(config.content).http_options
    if (asked.host, asked.port) != (door.host, door.port):
        raise ConfigError(
            f"{config.path} has Serve listen on {Address(asked.host, asked.port)}, and it listens on "
            f"{Address(str(door.host), door.port)} already, which cannot be changed while it runs. Stop the "
            "head and start it with this file, or write the address that it has into http_options"
        )


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why Serve does not run what it was given, and what kind of error that is."""

    why: str
    kind: type[XgenRayError] = ConfigError


def of_configs(applications: Mapping[str, Mapping[str, Any]]) -> list[ServeApplicationSchema]:
    """The applications that configs have deployed, as those said, out of Serve's details of all. Also those
    that the next config no longer has: Serve has let go of them when it refuses that.
    """
    configs = [details["deployed_app_config"] for details in applications.values()]
    return [ServeApplicationSchema.model_validate(config) for config in configs if config]


def _said(applications: Iterable[ServeApplicationSchema]) -> list[dict[str, Any]]:
    return sorted((one.model_dump() for one in applications), key=lambda one: str(one["name"]))


async def _deployed(
    client: ServeControllerClient, schema: ServeDeploySchema, deadline_s: float
) -> _Fault | None:
    """None once all of it runs; why not, when Serve gives it up or the deadline has passed."""
    client.deploy_apps(schema, _blocking=False)
    try:
        async with asyncio.timeout(deadline_s):
            return await _outcome([application.name for application in schema.applications])
    except TimeoutError:
        return _Fault(f"it was not ready after {deadline_s:g} s", NotInTime)


async def _outcome(names: list[str]) -> _Fault | None:
    """None once all run; what Serve says of the first that does not come up."""
    while True:
        applications = serve.status().applications
        for name in names:
            if name in applications and applications[name].status in _FAILED:
                return _Fault(f"{name}: {why_failed(applications[name])}")
        if all(_runs(applications.get(name)) for name in names):
            return None
        await asyncio.sleep(_ASK_AGAIN_S)


def _runs(application: ApplicationStatusOverview | None) -> bool:
    return application is not None and application.status is ApplicationStatus.RUNNING


def why_failed(application: ApplicationStatusOverview) -> str:
    """In the words of the deployment that failed, where one did: the application only says which."""
    failed = [one.message for one in application.deployments.values() if one.status in _DEPLOYMENT_FAILED]
    return _last_words(next(filter(None, failed), application.message))


def _last_words(message: str) -> str:
    """Of a traceback the exception, which is what follows its last indented lines."""
    lines = message.strip().splitlines()
    frames = [place for place, line in enumerate(lines) if line.startswith('  File "')]
    said = [line for line in lines[frames[-1] + 1 :] if not line.startswith("    ")] if frames else lines
    return " ".join(" ".join(said).split())[:600] or "it says nothing"
