"""Control's hands: one task owns the state, takes events in turn and has the effects carried out."""

import asyncio
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from xgen_ray.errors import XgenRayError
from xgen_ray.models import default_name, parse_source
from xgen_ray.schema import LoadRequest, Phase, Progress
from xgen_ray.serving.inventory import InventoryReader
from xgen_ray.serving.machine import step
from xgen_ray.serving.pools import BuildEngine, Pools
from xgen_ray.serving.registry import Registry
from xgen_ray.serving.replica import PoolSpec
from xgen_ray.serving.sources import SourceFinder
from xgen_ray.serving.state import (
    Answer,
    CancelResolve,
    ControlState,
    Effect,
    Event,
    Forget,
    PoolsObserved,
    PoolStartFailed,
    Publish,
    Remember,
    ReplicaReported,
    Resolve,
    Restored,
    SourceFailed,
    SourceProgressed,
    SourceResolved,
    StartPool,
    StopPool,
)

logger = logging.getLogger(__name__)

WATCH_BUSY_S = 0.25
WATCH_IDLE_S = 2.0


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What control is started with; ``deployments.control`` fills it in.

    ``app`` and ``deployment`` name control itself, for replicas to report to. ``drain_s`` bounds the
    wait for running requests when a model is unloaded.
    """

    app: str
    deployment: str
    base_url: str
    state_dir: Path
    cache_dir: Path
    engine_host: str
    engine_env: Mapping[str, str]
    drain_s: float
    declared: tuple[LoadRequest, ...]


class ControlLoop:
    """Owns the state. Others post events and read ``state``; nobody else changes it."""

    def __init__(
        self,
        settings: LoopSettings,
        build_engine: BuildEngine,
        inventory: InventoryReader,
        sources: SourceFinder,
        pools: Pools,
    ) -> None:
        self.state = ControlState()
        self.table_changed = asyncio.Event()
        self._settings = settings
        self._build_engine = build_engine
        self._inventory = inventory
        self._sources = sources
        self._pools = pools
        self._registry = Registry(settings.state_dir / "models.db")
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._resolving: dict[tuple[str, int], threading.Event] = {}
        self._pool_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None

    async def start(self) -> None:
        """Reads the registry, looks at what runs, and takes up from there."""
        records, unreadable = self._registry.records()
        for sentence in unreadable:
            logger.error("registry: %s", sentence)
        seen = await self._pools.look()
        restored = Restored(
            records=records,
            declared={name_of(request): request for request in self._settings.declared},
            pools=seen.states,
            epoch=uuid.uuid4().hex[:8],
            at=time.time(),
        )
        self.post(restored)
        self._spawn(self._run())
        self._spawn(self._keep_watch())

    async def stop(self) -> None:
        """Ends control itself. What runs stays: the next life takes it over."""
        for cancelled in self._resolving.values():
            cancelled.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._registry.close()

    def check_health(self) -> None:
        """Raises when a task of control's own has died: Serve then starts control anew."""
        if self._broken is not None:
            raise RuntimeError("control's loop has died") from self._broken

    def post(self, event: Event) -> None:
        self._events.put_nowait(event)

    def caller(self) -> tuple[str, asyncio.Future[None]]:
        """An id for an event that will be answered, and the answer to wait for: None, or its error."""
        caller = uuid.uuid4().hex
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[caller] = outcome
        outcome.add_done_callback(lambda _: self._waiting.pop(caller, None))
        return caller, outcome

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of control died", exc_info=error)
            self._broken = error

    async def _run(self) -> None:
        while True:
            event = await self._events.get()
            before = self.state
            self.state, effects = self._judge(event)
            _log_transitions(before, self.state)
            for effect in effects:
                await self._carry_out(effect)

    def _judge(self, event: Event) -> tuple[ControlState, tuple[Effect, ...]]:
        try:
            return step(self.state, event)
        except Exception as error:
            if not isinstance(event, SourceResolved):
                raise
            # One odd model must not take control down, now and at every restart.
            logger.exception("planning failed: model=%s", event.name)
            internal = XgenRayError(f"planning {event.name} failed: {type(error).__name__}: {error}")
            return step(self.state, SourceFailed(event.name, event.attempt, internal, event.at))

    async def _carry_out(self, effect: Effect) -> None:
        """In order. What takes long is started here and comes back as an event."""
        match effect:
            case Remember(record=record):
                await asyncio.to_thread(self._registry.remember, record)
            case Forget(name=name):
                await asyncio.to_thread(self._registry.forget, name)
            case Resolve():
                self._spawn(self._resolve(effect))
            case CancelResolve(name=name, attempt=attempt):
                if cancelled := self._resolving.get((name, attempt)):
                    cancelled.set()
            case StartPool():
                self._spawn(self._start_pool(effect))
            case StopPool(pool=pool):
                self._spawn(self._stop_pool(pool))
            case Publish():
                self.table_changed.set()
                self.table_changed = asyncio.Event()
            case Answer(caller=caller, error=error):
                self._answer(caller, error)
            case _:
                assert_never(effect)

    def _answer(self, caller: str, error: XgenRayError | None) -> None:
        outcome = self._waiting.get(caller)
        if outcome is None or outcome.done():
            return
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)
            outcome.exception()  # marks it as read: a caller may have gone

    async def _resolve(self, effect: Resolve) -> None:
        name, attempt = effect.name, effect.attempt
        cancelled = self._resolving[(name, attempt)] = threading.Event()
        loop = asyncio.get_running_loop()

        def progress(report: Progress) -> None:
            loop.call_soon_threadsafe(self.post, SourceProgressed(name, attempt, report))

        try:
            facts = await asyncio.to_thread(self._sources.fetch, effect.request.model, progress, cancelled)
            inventory = await self._inventory.read()
            self.post(SourceResolved(name, attempt, facts, inventory, time.time()))
        except XgenRayError as error:
            self.post(SourceFailed(name, attempt, error, time.time()))
        except Exception as error:  # one odd model must not take control down
            logger.exception("resolving failed: model=%s", name)
            internal = XgenRayError(f"reading {effect.request.model} failed: {type(error).__name__}: {error}")
            self.post(SourceFailed(name, attempt, internal, time.time()))
        finally:
            del self._resolving[(name, attempt)]

    async def _start_pool(self, effect: StartPool) -> None:
        settings = self._settings
        spec = PoolSpec(
            pool=effect.pool,
            model=effect.name,
            plan=effect.plan,
            host=settings.engine_host,
            cache_dir=str(settings.cache_dir),
            engine_env=settings.engine_env,
            control_app=settings.app,
            control_deployment=settings.deployment,
            drain_s=settings.drain_s,
        )
        async with self._pool_locks[effect.pool]:
            try:
                await self._pools.start(effect.pool, lambda: self._build_engine(spec, effect.replicas))
            except Exception as error:  # whatever Ray raises: one pool must not take control down
                logger.exception("starting a pool failed: pool=%s", effect.pool)
                message = f"Ray Serve did not take the application: {error}"
                self.post(PoolStartFailed(effect.pool, message, time.time()))

    async def _stop_pool(self, pool: str) -> None:
        # Waits for a start under way: a stop that overtook it would stop nothing.
        async with self._pool_locks[pool]:
            try:
                await self._pools.stop(pool)
            except (RayServeException, RayError) as error:
                # The next look at the pools will see it, and the stop is asked for again.
                logger.warning("stopping a pool failed: pool=%s error=%s", pool, error)

    async def _keep_watch(self) -> None:
        while True:
            await self._look()
            steady = (Phase.READY, Phase.FAILED)
            busy = self.state.stray_pools or any(
                model.phase not in steady for model in self.state.models.values()
            )
            await asyncio.sleep(WATCH_BUSY_S if busy else WATCH_IDLE_S)

    async def _look(self) -> None:
        at = time.time()
        try:
            seen = await self._pools.look()
        except (RayServeException, RayError) as error:
            logger.warning("Serve does not answer: %s", error)
            return
        for pool, replicas in seen.replicas.items():
            for status in replicas:
                self.post(ReplicaReported(pool, status))
        alive = {
            pool: frozenset(status.replica_id for status in replicas)
            for pool, replicas in seen.replicas.items()
        }
        for pool in self._pool_locks.keys() - seen.states.keys():
            if not self._pool_locks[pool].locked():
                del self._pool_locks[pool]
        self.post(PoolsObserved(seen.states, seen.messages, alive, at))


def name_of(request: LoadRequest) -> str:
    """The name that a model is served under. Raises InvalidRequest for a source that cannot be read."""
    return request.name or default_name(parse_source(request.model))


def _log_transitions(before: ControlState, after: ControlState) -> None:
    for name, model in after.models.items():
        old = before.models.get(name)
        if old is None or old.phase is not model.phase:
            logger.info("model=%s phase=%s reason=%s", name, model.phase.value, model.reason)
    for name in before.models.keys() - after.models.keys():
        logger.info("model=%s phase=gone", name)
