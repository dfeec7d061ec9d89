"""A line to a node's owner: found by the node's id, asked with a deadline, its errors as they were there."""

import asyncio
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from xgen_ray.errors import NotReady, XgenRayError
from xgen_ray.serving.leases import Lease, NoLease
from xgen_ray.serving.node_state import Settled

NAMESPACE: Final = "xgen-ray"
OWNER_PREFIX: Final = "xgen-node-"
ASK_DEADLINE_S: Final = 15.0


class OwnerLink:
    """A replica's line to the owner of the node that it runs on."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id

    async def claim(self, app: str, replica_id: str, pid: int) -> Lease | NoLease:
        answer: Lease | NoLease = await self._ask("claim", app, replica_id, pid)
        return answer

    async def settle(self, lease_id: str, engine_pid: int) -> Settled:
        answer: Settled = await self._ask("settle", lease_id, engine_pid)
        return answer

    async def _ask(self, method: str, *args: object) -> Any:
        return await answer_of(await find_owner(self._node_id), method, *args)


def owner_name(node_id: str) -> str:
    return f"{OWNER_PREFIX}{node_id}"


async def find_owner(node_id: str) -> Any:
    try:
        return await asyncio.to_thread(ray.get_actor, owner_name(node_id), namespace=NAMESPACE)
    except ValueError as error:
        raise NotReady(
            f"node {node_id} has no owner: it has left the cluster, or has just joined it"
        ) from error


async def answer_of(owner: Any, method: str, *args: object) -> Any:
    """What the owner answers. Its own errors are raised as they were there; Ray's become NotReady."""
    try:
        async with asyncio.timeout(ASK_DEADLINE_S):
            return await asyncio.wrap_future(getattr(owner, method).remote(*args).future())
    except RayTaskError as error:
        if isinstance(error.cause, XgenRayError):
            raise error.cause from None
        raise NotReady(f"the node's owner failed at {method}: {in_words(error)}") from error
    except TimeoutError as error:
        raise NotReady(f"the node's owner has not answered {method} in {ASK_DEADLINE_S:g} s") from error
    except RayError as error:
        raise NotReady(f"the node's owner cannot be reached: {in_words(error)}") from error


def in_words(error: BaseException) -> str:
    if isinstance(error, RayTaskError):
        return f"{error.cause}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, RayActorError):
        # What its constructor raised stands behind the traceback.
        return lines[-1].strip() if "creation task" in lines[0] else "its process has ended"
    return lines[0]
