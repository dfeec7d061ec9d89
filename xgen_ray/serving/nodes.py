"""The cluster's nodes: one owner on each, all of them asked at once."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xgen_ray import __version__
from xgen_ray.errors import NotReady
from xgen_ray.models.shelf import Shelf
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.types import Backend, Plan
from xgen_ray.schema import TargetGroup
from xgen_ray.serving.fetches import FetchState
from xgen_ray.serving.leases import NoLease
from xgen_ray.serving.node_state import NAME_LABEL, LeaseFacts, NodeIdentity, NodeState, without_leases
from xgen_ray.serving.owner_link import NAMESPACE, answer_of, find_owner, in_words, owner_name

logger = logging.getLogger(__name__)

LIST_DEADLINE_S: Final = 5.0
LOOK_DEADLINE_S: Final = 12.0
# A node that was looked at for a place may be about to get it.
REST_AFTER_S: Final = 5.0
RESTING: Final = "nothing needs it: it rests until a model does, or the autoscaler takes it back"


@dataclass(frozen=True, slots=True)
class OwnerSettings:
    """What every owner is started with. Paths are each node's own; None is that node's usual place."""

    model_dirs: tuple[Path, ...] = ()
    backend_commands: Mapping[Backend, tuple[str, ...]] = field(default_factory=dict)
    cache_dir: Path | None = None
    run_dir: Path | None = None
    hub_endpoint: str | None = None

    def key(self) -> str:
        """Another one for other settings, and for another version of the program."""
        told = sorted((backend.value, command) for backend, command in self.backend_commands.items())
        paths = (self.model_dirs, self.cache_dir, self.run_dir, self.hub_endpoint)
        return hashlib.sha256(repr((__version__, told, paths)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class SilentNode:
    """A node that is alive and whose owner does not answer, with the reason."""

    node: NodeIdentity
    reason: str


@dataclass(frozen=True, slots=True)
class NodesSeen:
    """Every alive node of the cluster is in one of both."""

    states: tuple[NodeState, ...]
    silent: tuple[SilentNode, ...]


class Nodes:
    """Keeps an owner on every alive node. ``actor`` is the class that builds one there, from the node's
    identity and the settings; its methods are those of ``NodeOwner``.

    Owners are detached: they outlive whoever started them, and are found again by name.
    """

    def __init__(self, settings: OwnerSettings, actor: Callable[..., object]) -> None:
        self._settings = settings
        self._key = settings.key()
        self._actor = ray.remote(actor)
        self._owners: dict[str, Any] = {}
        self._looks: dict[str, asyncio.Future[NodeState]] = {}
        # What each said last.
        self._states: dict[str, NodeState] = {}
        self._known_dead: frozenset[str] = frozenset()
        # The autoscaler's nodes that nothing needs, and when each node was last needed.
        self._resting: frozenset[str] = frozenset()
        self._woken_at: Mapping[str, float] = {}

    async def look(self, deadline_s: float = LOOK_DEADLINE_S, *, wake: bool = False) -> NodesSeen:
        """The state of every alive node, or why there is none. Starts owners that are missing; on nodes that
        rest with ``wake`` only: else they are as they were when they came to rest.

        Raises NotReady when Ray itself does not answer.
        """
        try:
            async with asyncio.timeout(LIST_DEADLINE_S):
                alive, dead = await asyncio.to_thread(_cluster_nodes)
        except (RayError, OSError, TimeoutError) as error:
            raise NotReady(f"Ray does not list its nodes: {error!r}") from error
        await self._forget({node.node_id for node in alive}, dead)
        if wake:
            self._resting = frozenset()
            self._woken_at = {node.node_id: time.monotonic() for node in alive}
        answers = await asyncio.gather(*(self._look_at(node, deadline_s) for node in alive))
        return NodesSeen(
            tuple(answer for answer in answers if isinstance(answer, NodeState)),
            tuple(answer for answer in answers if isinstance(answer, SilentNode)),
        )

    async def identities(self) -> tuple[NodeIdentity, ...]:
        """All alive nodes; asks no owner. Raises NotReady when Ray does not answer."""
        try:
            async with asyncio.timeout(LOOK_DEADLINE_S):
                alive, _ = await asyncio.to_thread(_cluster_nodes)
        except (RayError, OSError, TimeoutError) as error:
            raise NotReady(f"Ray does not list its nodes: {error!r}") from error
        return alive

    async def alive(self) -> Mapping[str, str]:
        """The names of all alive nodes by id."""
        return {node.node_id: node.name for node in await self.identities()}

    async def rest(self, node_ids: frozenset[str]) -> None:
        """Nothing needs these nodes: their owners end, since Ray takes no node for idle that has an actor.
        One that was woken a moment ago is left for the next time.
        """
        now = time.monotonic()
        ready = {
            one for one in node_ids if now - self._woken_at.get(one, float("-inf")) > self._patience(one)
        }
        fresh = ready - self._resting
        self._resting = frozenset(ready)
        if not fresh:
            return
        for node_id in fresh:
            self._owners.pop(node_id, None)
            if (pending := self._looks.pop(node_id, None)) is not None:
                pending.cancel()
        await asyncio.to_thread(_end_owners, fresh, "nothing needs its node")

    def _patience(self, node_id: str) -> float:
        """How long a node that was woken keeps its owner: as long as somebody waits for its answer."""
        return LOOK_DEADLINE_S if node_id in self._looks else REST_AFTER_S

    async def reserve(
        self, node_id: str, app: str, model: str, plans: Sequence[Plan], ttl_s: float
    ) -> tuple[LeaseFacts, ...] | NoLease:
        answer: tuple[LeaseFacts, ...] | NoLease = await self._ask(
            node_id, "reserve", app, model, tuple(plans), ttl_s
        )
        return answer

    async def renew(self, node_id: str, apps: Collection[str], ttl_s: float) -> frozenset[str]:
        answer: frozenset[str] = await self._ask(node_id, "renew", frozenset(apps), ttl_s)
        return answer

    async def relocate(self, node_id: str, app: str, facts: ModelFacts) -> None:
        await self._ask(node_id, "relocate", app, facts)

    async def release(self, node_id: str, app: str) -> None:
        await self._ask(node_id, "release", app)

    async def has_source(self, node_id: str, model: str) -> bool:
        answer: bool = await self._ask(node_id, "has_source", model)
        return answer

    async def facts(self, node_id: str, model: str) -> ModelFacts:
        answer: ModelFacts = await self._ask(node_id, "facts", model)
        return answer

    async def shelf(self, node_id: str) -> Shelf:
        answer: Shelf = await self._ask(node_id, "shelf")
        return answer

    async def rehearse(self, node_id: str, plan: Plan) -> tuple[str, ...]:
        answer: tuple[str, ...] = await self._ask(node_id, "rehearse", plan)
        return answer

    async def fetch(self, node_id: str, model: str, ticket: str, commit: str | None) -> FetchState:
        answer: FetchState = await self._ask(node_id, "fetch", model, ticket, commit)
        return answer

    async def fetch_progress(self, node_id: str, ticket: str) -> FetchState | None:
        answer: FetchState | None = await self._ask(node_id, "fetch_progress", ticket)
        return answer

    async def drop_fetch(self, node_id: str, ticket: str) -> None:
        await self._ask(node_id, "drop_fetch", ticket)

    async def _ask(self, node_id: str, method: str, *args: object) -> Any:
        """Raises what the owner raises, NotReady when it is not there or does not answer in time."""
        return await answer_of(self._owners.get(node_id) or await find_owner(node_id), method, *args)

    async def _look_at(self, node: NodeIdentity, deadline_s: float) -> NodeState | SilentNode:
        if node.node_id in self._resting:
            # Nothing of ours has happened there since.
            known = self._states.get(node.node_id)
            return without_leases(known) if known is not None else SilentNode(node, RESTING)
        pending = self._looks.get(node.node_id)
        # One question at a time: a node that hangs must not collect them.
        if pending is None:
            pending = asyncio.ensure_future(self._state_of(node))
            self._looks[node.node_id] = pending
        done, _ = await asyncio.wait([pending], timeout=deadline_s)
        if not done:
            return SilentNode(node, f"its owner has not answered in {deadline_s:g} s")
        self._looks.pop(node.node_id, None)
        if pending.cancelled():
            return SilentNode(node, "it has just left the cluster")
        if (error := pending.exception()) is not None:
            self._owners.pop(node.node_id, None)
            logger.warning("node owner failed: node=%s error=%r", node.name, error)
            return SilentNode(node, f"its owner failed: {in_words(error)}")
        state = pending.result()
        if state.settings == self._key:
            self._states[node.node_id] = state
            return state
        # Detached owners outlive the control that started them, with the settings and the code of then.
        if (old := self._owners.pop(node.node_id, None)) is not None:
            await asyncio.to_thread(ray.kill, old, no_restart=True)
        return SilentNode(node, "its owner is started anew with other settings")

    async def _state_of(self, node: NodeIdentity) -> NodeState:
        if node.node_id not in self._owners:
            self._owners[node.node_id] = await asyncio.to_thread(self._start, node)
        state: NodeState = await asyncio.wrap_future(self._owners[node.node_id].look.remote().future())
        return state

    def _start(self, node: NodeIdentity) -> Any:
        """The node's owner, found or started. It runs there or nowhere."""
        return self._actor.options(
            name=owner_name(node.node_id),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=1000,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        ).remote(node, self._settings, self._key)

    async def _forget(self, alive: set[str], dead: frozenset[str]) -> None:
        """Owners of dead nodes are tied to them and could never start again."""
        for node_id in (self._owners.keys() | self._looks.keys() | self._states.keys()) - alive:
            self._owners.pop(node_id, None)
            self._states.pop(node_id, None)
            if (pending := self._looks.pop(node_id, None)) is not None:
                pending.cancel()
        if dead != self._known_dead:
            await asyncio.to_thread(_end_owners, dead, "its node is dead")
            self._known_dead = dead


def _cluster_nodes() -> tuple[tuple[NodeIdentity, ...], frozenset[str]]:
    """The alive nodes, and the ids of the dead ones."""
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    nodes = list_nodes()
    alive = tuple(_identity(node) for node in nodes if node["Alive"])
    return alive, frozenset(node["NodeID"] for node in nodes if not node["Alive"])


async def metrics_targets() -> tuple[TargetGroup, ...]:
    """The nodes that serve metrics, as Prometheus wants to be told of them."""
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    return targets_of(await asyncio.to_thread(list_nodes))


def targets_of(nodes: Iterable[Mapping[str, Any]]) -> tuple[TargetGroup, ...]:
    """Of nodes as Ray lists them, those that are alive and serve metrics."""
    return tuple(
        TargetGroup(
            targets=(f"{_identity(node).host}:{node['MetricsExportPort']}",),
            labels={"job": "xgen-ray", "xgen_node": _identity(node).name},
        )
        for node in nodes
        if node["Alive"] and node.get("MetricsExportPort", 0) > 0
    )


def _identity(node: Mapping[str, Any]) -> NodeIdentity:
    labels = {str(key): str(value) for key, value in (node.get("Labels") or {}).items()}
    return NodeIdentity(
        node_id=node["NodeID"],
        name=labels.get(NAME_LABEL) or node["NodeManagerHostname"],
        host=node["NodeManagerAddress"],
        labels=labels,
    )


def _end_owners(nodes: Collection[str], reason: str) -> None:
    names = {owner_name(node_id) for node_id in nodes}
    for row in list_named_actors(all_namespaces=True):
        if row["namespace"] == NAMESPACE and row["name"] in names:
            try:
                ray.kill(ray.get_actor(row["name"], namespace=NAMESPACE), no_restart=True)
            except ValueError:
                continue
            logger.info("owner ended: owner=%s reason=%s", row["name"], reason)
