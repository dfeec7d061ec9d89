"""Control's loop: one task owns the state, takes events in turn and has the effects carried out."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, assert_never

from xgen_ray.errors import XgenRayError
from xgen_ray.placement import NodeType
from xgen_ray.schema import LoadRequest, Phase
from xgen_ray.serving.apps import Apps
from xgen_ray.serving.chronicle import Chronicle, note
from xgen_ray.serving.effects import (
    Answer,
    AskForNodes,
    CancelLook,
    Effect,
    Forget,
    Look,
    PrepareApp,
    Publish,
    Remember,
    RememberDrained,
    RememberLessons,
    StartApp,
    StopApp,
)
from xgen_ray.serving.events import Event, LookDone, LookFailed, Restored
from xgen_ray.serving.hands import Hands
from xgen_ray.serving.machine import step
from xgen_ray.serving.metrics.samples import FleetEvents
from xgen_ray.serving.registry import Registry
from xgen_ray.serving.state import AppPhase, ControlState
from xgen_ray.serving.supply import nodes_at_rest

logger = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_BUSY_S = 0.25
WATCH_IDLE_S = 2.0
# Several times within the life of a lease.
RENEW_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What control is started with; ``deployments.control`` fills it in."""

    state_dir: Path
    declared: tuple[LoadRequest, ...]
    costs: Mapping[str, float] = field(default_factory=dict)
    node_types: Mapping[str, NodeType] = field(default_factory=dict)


class ControlLoop:
    """Owns the state. Others post events and read ``state`` and its ``chronicle``; nobody else changes them.
    ``stepped`` is set at the end of each step, ``table_changed`` when there is another table: waiters take
    the one of the moment.

    ``make_hands`` is given the loop's ``post``.
    """

    def __init__(
        self,
        settings: LoopSettings,
        apps: Apps,
        make_hands: Callable[[Callable[[Event], None]], Hands],
    ) -> None:
        self.state = ControlState()
        self.counts = FleetEvents()
        self.table_changed = asyncio.Event()
        self.chronicle = Chronicle()
        self.steps = 0
        self.stepped = asyncio.Event()
        self._settings = settings
        self._apps = apps
        self._hands = make_hands(self.post)
        self._registry = Registry(settings.state_dir / "models.db")
        # Of its own, to be waited for: a write that is cancelled goes on in its thread.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._posted = 0
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None

    async def start(self) -> None:
        """Reads the registry, looks at what runs, and takes up from there."""
        records, unreadable = self._registry.records()
        for sentence in unreadable:
            logger.error("registry: %s", sentence)
        exclusions, observations = self._registry.lessons()
        self.chronicle = Chronicle(self._registry.events())
        seen = await self._apps.look()
        restored = Restored(
            records=records,
            declared={request.loaded_as: request for request in self._settings.declared},
            apps=seen.states,
            epoch=uuid.uuid4().hex[:8],
            at=time.time(),
            exclusions=exclusions,
            observations=observations,
            costs=self._settings.costs,
            node_types=self._settings.node_types,
            drained=self._registry.drained(),
        )
        self.post(restored)
        self._spawn(self._run())
        self._spawn(self._keep_watch())
        self._spawn(self._keep_leases())

    async def stop(self) -> None:
        """Ends control itself. What runs stays: the next life takes it over."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._writer.shutdown)
        self._registry.close()

    def check_health(self) -> None:
        """Raises when a task of control's own has died: Serve then starts control anew."""
        if self._broken is not None:
            # Serve keeps this sentence and drops its cause; what a process had logged may go with it.
            raise RuntimeError(f"control's loop has died: {self._broken!r}") from self._broken

    def post(self, event: Event) -> None:
        self._posted += 1
        self._events.put_nowait(event)

    def caller(self) -> tuple[str, asyncio.Future[None]]:
        """An id for an event that will be answered, and the answer to wait for: None, or its error."""
        caller = uuid.uuid4().hex
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[caller] = outcome
        outcome.add_done_callback(lambda _: self._waiting.pop(caller, None))
        return caller, outcome

    async def caught_up(self) -> None:
        """Returns once every event that was posted until now has been judged, and what came of it carried
        out: written down, or begun.
        """
        posted = self._posted
        while self.steps < posted:
            await self.stepped.wait()

    async def ask(self, make: Callable[[str], Event]) -> None:
        """Posts what ``make`` makes for a caller, and waits for its answer. Raises the error in it."""
        caller, outcome = self.caller()
        self.post(make(caller))
        await outcome

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
            chronicle, self.chronicle = self.chronicle, note(self.chronicle, before, self.state, time.time())
            for effect in effects:
                await self._carry_out(effect)
            if self.chronicle.told != chronicle.told:
                new = self.chronicle.events[: self.chronicle.told - chronicle.told]
                self.counts.count(new)
                await self._write(self._registry.add_events, new)
            self.steps += 1
            self.stepped.set()
            self.stepped = asyncio.Event()
            # Many events in a row must not keep routers and callers waiting for all of them.
            await asyncio.sleep(0)

    def _judge(self, event: Event) -> tuple[ControlState, tuple[Effect, ...]]:
        try:
            return step(self.state, event)
        except Exception as error:
            if not isinstance(event, LookDone):
                raise
            # One odd model must not take control down, now and at every restart.
            logger.exception("planning failed: model=%s", event.name)
            internal = XgenRayError(f"planning {event.name} failed: {type(error).__name__}: {error}")
            return step(self.state, LookFailed(event.name, event.attempt, internal, event.at))

    async def _carry_out(self, effect: Effect) -> None:
        """In order. What takes long is started here and comes back as an event."""
        match effect:
            case Remember() | Forget() | RememberLessons() | RememberDrained():
                await self._write(self._write_down, effect)
            case Look():
                self._spawn(self._hands.look(effect))
            case CancelLook(name=name, attempt=attempt):
                self._hands.cancel_look(name, attempt)
            case PrepareApp():
                self._spawn(self._hands.prepare(effect))
            case StartApp():
                self._spawn(self._hands.start(effect))
            case StopApp():
                self._spawn(self._hands.stop(effect))
            case AskForNodes():
                self._spawn(self._hands.ask_for_nodes(effect))
            case Publish():
                self.table_changed.set()
                self.table_changed = asyncio.Event()
            case Answer(caller=caller, error=error):
                self._answer(caller, error)
            case _:
                assert_never(effect)

    async def _write(self, write: Callable[[T], None], what: T) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, write, what)

    def _write_down(self, effect: Remember | Forget | RememberLessons | RememberDrained) -> None:
        match effect:
            case Remember(record=record):
                self._registry.remember(record)
            case Forget(name=name):
                self._registry.forget(name)
            case RememberLessons(exclusions=exclusions, observations=observations):
                self._registry.remember_lessons(exclusions, observations)
            case RememberDrained(drained=drained):
                self._registry.remember_drained(drained)

    def _answer(self, caller: str, error: XgenRayError | None) -> None:
        outcome = self._waiting.get(caller)
        if outcome is None or outcome.done():
            return
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)
            outcome.exception()  # marks it as read: a caller may have gone

    async def _keep_watch(self) -> None:
        while True:
            await self._hands.observe(nodes_at_rest(self.state))
            steady = (Phase.READY, Phase.FAILED, Phase.SLEEPING)
            busy = self.state.stray_apps or any(
                model.phase not in steady
                or model.looking
                or any(app.phase is not AppPhase.SERVING for app in model.apps.values())
                for model in self.state.models.values()
            )
            await asyncio.sleep(WATCH_BUSY_S if busy else WATCH_IDLE_S)

    async def _keep_leases(self) -> None:
        """Beside the watch: what that waits for must not make a lease expire."""
        while True:
            await self._hands.renew([app for model in self.state.models.values() for app in model.live])
            await asyncio.sleep(RENEW_EVERY_S)


def _log_transitions(before: ControlState, after: ControlState) -> None:
    for name, model in after.models.items():
        old = before.models.get(name)
        if old is None or old.phase is not model.phase:
            logger.info("model changed: model=%s phase=%s reason=%s", name, model.phase.value, model.reason)
    for name in before.models.keys() - after.models.keys():
        logger.info("model gone: model=%s", name)
