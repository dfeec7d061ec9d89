"""Control's hands: what takes long is done here, and comes back as an event."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from xgen_ray.errors import BadModelFile, NotReady, XgenRayError
from xgen_ray.models import ModelFacts, commit_of
from xgen_ray.placement.types import Plan
from xgen_ray.schema import Progress
from xgen_ray.serving.apps import Apps, BuildEngine
from xgen_ray.serving.autoscaler import Autoscaler
from xgen_ray.serving.effects import AskForNodes, Look, PrepareApp, StartApp, StopApp
from xgen_ray.serving.events import (
    AppPrepared,
    AppProgressed,
    AppRefused,
    AppsObserved,
    AppStartFailed,
    Event,
    LookDone,
    LookFailed,
    LookProgressed,
    NodesObserved,
    ReplicaReported,
)
from xgen_ray.serving.leases import NoLease
from xgen_ray.serving.looks import FleetReader
from xgen_ray.serving.nodes import Nodes
from xgen_ray.serving.replica import AppSpec
from xgen_ray.serving.state import App

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)

# A lease that control does not renew for so long is nobody's.
LEASE_TTL_S: Final = 45.0
# One that hangs must not make the leases of others expire.
RENEW_DEADLINE_S: Final = 5.0
FETCH_POLL_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class AppSettings:
    """What every app is started with. Its replica reports to ``control_deployment`` of ``control_app``;
    ``drain_s`` bounds the wait for running requests when an app is stopped.
    """

    control_app: str
    control_deployment: str
    cache_dir: Path
    drain_s: float


class Hands:
    """Carries out looks and what concerns apps; ``post`` takes the events that come of it.

    Everything about one app happens in the order in which it was asked for.
    """

    def __init__(
        self,
        settings: AppSettings,
        build_engine: BuildEngine,
        fleet: FleetReader,
        nodes: Nodes,
        apps: Apps,
        autoscaler: Autoscaler,
        post: Callable[[Event], None],
    ) -> None:
        self._settings = settings
        self._build_engine = build_engine
        self._fleet = fleet
        self._nodes = nodes
        self._apps = apps
        self._autoscaler = autoscaler
        self._post = post
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._looks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}

    async def look(self, effect: Look) -> None:
        name, attempt = effect.name, effect.attempt

        def progress(report: Progress) -> None:
            self._post(LookProgressed(name, attempt, report))

        with _listed(self._looks, (name, attempt)):
            try:
                facts, fleet = await self._fleet.look(effect.request.model, progress)
            except XgenRayError as error:
                self._post(LookFailed(name, attempt, error, time.time()))
            except Exception as error:  # one odd model must not take control down
                logger.exception("reading a model failed: model=%s", name)
                told = f"reading {effect.request.model} failed: {type(error).__name__}: {error}"
                self._post(LookFailed(name, attempt, XgenRayError(told), time.time()))
            else:
                self._post(LookDone(name, attempt, facts, fleet, time.time()))

    def cancel_look(self, name: str, attempt: int) -> None:
        if (work := self._looks.get((name, attempt))) is not None:
            work.cancel()

    async def prepare(self, effect: PrepareApp) -> None:
        app, node_id = effect.app, effect.node_id
        with _listed(self._preparing, app):
            async with self._locks[app]:
                try:
                    answer = await self._nodes.reserve(node_id, app, effect.name, (effect.plan,), LEASE_TTL_S)
                    if isinstance(answer, NoLease):
                        raise NotReady(answer.message)
                    plan = await self._with_files(effect, await self._fetch(effect))
                except NotReady as error:
                    self._post(AppRefused(app, error, again=True, at=time.time()))
                except XgenRayError as error:
                    self._post(AppRefused(app, error, again=False, at=time.time()))
                except Exception as error:  # one odd app must not take control down
                    logger.exception("preparing an app failed: app=%s", app)
                    told = f"preparing {effect.name} failed: {type(error).__name__}: {error}"
                    self._post(AppRefused(app, XgenRayError(told), again=False, at=time.time()))
                else:
                    self._post(AppPrepared(app, plan, time.time()))

    async def _fetch(self, effect: PrepareApp) -> ModelFacts:
        """The facts of the model's files on the app's node, once they are there: the files that the plan is
        for, whatever the hub has under their name by now.
        """
        ticket, model, commit = effect.app, effect.request.model, commit_of(effect.plan.facts.path)
        reported: Progress | None = None
        state = await self._nodes.fetch(effect.node_id, model, ticket, commit)
        try:
            while not state.is_over:
                if state.progress is not None and state.progress != reported:
                    reported = state.progress
                    self._post(AppProgressed(effect.app, reported))
                await asyncio.sleep(FETCH_POLL_S)
                # An owner that started anew knows nothing of it: asking again goes on where it was.
                answer = await self._nodes.fetch_progress(effect.node_id, ticket)
                state = answer or await self._nodes.fetch(effect.node_id, model, ticket, commit)
        finally:
            await self._drop_fetch(effect.node_id, ticket)
        if state.error is not None:
            raise state.error
        if state.facts is None:
            raise BadModelFile(f"{model} was fetched, and nothing is known of it")
        return state.facts

    async def _drop_fetch(self, node_id: str, ticket: str) -> None:
        try:
            await self._nodes.drop_fetch(node_id, ticket)
        except NotReady:
            logger.info("a fetch was not ended, its owner is away: ticket=%s", ticket)

    async def _with_files(self, effect: PrepareApp, facts: ModelFacts) -> Plan:
        """The plan with the files as its node has them; the lease as well."""
        planned = effect.plan.facts
        if facts == planned:
            return effect.plan
        if facts.weight_bytes != planned.weight_bytes:
            raise BadModelFile(
                f"{effect.request.model} is another file on the node it was to run on: {facts.weight_bytes} "
                f"bytes of weights, {planned.weight_bytes} were planned with; put the same file on all nodes",
                facts.path,
            )
        await self._nodes.relocate(effect.node_id, effect.app, facts)
        return replace(effect.plan, facts=facts)

    async def start(self, effect: StartApp) -> None:
        settings = self._settings
        spec = AppSpec(
            app=effect.app,
            model=effect.name,
            node_id=effect.node_id,
            node=effect.node,
            cache_dir=str(settings.cache_dir),
            control_app=settings.control_app,
            control_deployment=settings.control_deployment,
            drain_s=settings.drain_s,
        )
        async with self._locks[effect.app]:
            try:
                await self._apps.start(effect.app, lambda: self._build_engine(spec))
            except Exception as error:  # whatever Ray raises: one app must not take control down
                logger.exception("starting an app failed: app=%s", effect.app)
                message = f"Ray Serve did not take the application: {error}"
                self._post(AppStartFailed(effect.app, message, time.time()))

    async def stop(self, effect: StopApp) -> None:
        # Waits for a start under way: a stop that overtook it would stop nothing.
        if (preparing := self._preparing.get(effect.app)) is not None:
            preparing.cancel()
        async with self._locks[effect.app]:
            try:
                await self._apps.stop(effect.app)
            except (RayServeException, RayError) as error:
                # The next look at the apps will see it, and the stop is asked for again.
                logger.warning("stopping an app failed: app=%s error=%s", effect.app, error)
            if effect.node_id is None:
                return
            try:
                await self._nodes.release(effect.node_id, effect.app)
            except NotReady as error:
                # Its leases end by themselves, since nobody renews them.
                logger.info("leases not given back: app=%s reason=%s", effect.app, error)

    async def ask_for_nodes(self, effect: AskForNodes) -> None:
        await self._autoscaler.ask(effect.counts)

    async def observe(self, at_rest: frozenset[str]) -> None:
        """Looks at Serve and at the nodes, lets go of the nodes ``at_rest``."""
        at = time.time()
        try:
            nodes = await self._nodes.identities()
            names = {node.node_id: node.name for node in nodes}
            kinds = {node.node_id: node.node_type for node in nodes if node.node_type}
            self._post(NodesObserved(names, at, kinds))
            await self._nodes.rest(at_rest)
            await self._autoscaler.repeat()
            seen = await self._apps.look()
        except (NotReady, RayServeException, RayError) as error:
            logger.warning("the cluster does not answer: %s", error)
            return
        for app, replicas in seen.replicas.items():
            for replica in replicas:
                self._post(ReplicaReported(app, replica))
        alive = {
            app: frozenset(replica.status.replica_id for replica in replicas)
            for app, replicas in seen.replicas.items()
        }
        for app in self._locks.keys() - seen.states.keys():
            if not self._locks[app].locked():
                del self._locks[app]
        self._post(AppsObserved(seen.states, seen.messages, alive, at))

    async def renew(self, apps: Iterable[App]) -> None:
        """Keeps the leases of ``apps``, as far as their owners answer in time."""
        by_node: dict[str, set[str]] = defaultdict(set)
        for app in apps:
            by_node[app.node_id].add(app.name)

        async def renew(node_id: str, names: set[str]) -> None:
            try:
                async with asyncio.timeout(RENEW_DEADLINE_S):
                    await self._nodes.renew(node_id, names, LEASE_TTL_S)
            except TimeoutError:
                logger.info("leases not renewed: node=%s reason=no answer", node_id)
            except NotReady as error:
                logger.info("leases not renewed: node=%s reason=%s", node_id, error)

        await asyncio.gather(*(renew(node_id, names) for node_id, names in by_node.items()))


@contextmanager
def _listed(tasks: dict[Key, asyncio.Task[None]], key: Key) -> Iterator[None]:
    """The running task is found under ``key`` meanwhile, to be cancelled."""
    task = asyncio.current_task()
    if task is not None:
        tasks[key] = task
    try:
        yield
    finally:
        tasks.pop(key, None)
