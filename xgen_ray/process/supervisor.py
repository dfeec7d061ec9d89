"""Runs one child process that can never outlive its owner."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xgen_ray.errors import EngineFailed, WrongState
from xgen_ray.process import guard
from xgen_ray.process.failures import (
    WINDOW_LINES,
    classify,
    guard_lost,
    not_ready_in_time,
    not_started,
    unkillable,
)
from xgen_ray.process.link import GuardLink
from xgen_ray.process.logs import LogRing
from xgen_ray.process.output import Output
from xgen_ray.process.readiness import HealthProbe, someone_listens
from xgen_ray.process.types import Failure, FailureClass, LaunchSpec, Readiness

# From the start of the guard to its answer; it takes some 50 ms on an idle machine.
START_DEADLINE_S = 30.0
# On top of what the guard itself may take: a backstop for a guard that does not answer.
STOP_MARGIN_S = 5.0


class State(StrEnum):
    """NEW -> STARTING -> RUNNING -> ENDED (the child itself has ended) -> GONE (nothing of it is left)."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"


class ChildProcess:
    """One run of one command: started once, and gone with everything it has started when it is over.

    An async context manager: entering starts the child, leaving it, also by an exception or by
    cancellation, stops it. Whatever becomes of the owner (killed, crashed, its loop closed), the guard
    ends the child (see ``guard.py``). ``base_env`` is the environment that ``spec.env`` is laid over;
    ``stuck_after_s`` is how long KILL may take to work before ``stop`` and ``wait`` give up. Belongs to
    one event loop; ``logs`` may be read from anywhere.
    """

    def __init__(
        self,
        spec: LaunchSpec,
        logs: LogRing | None = None,
        *,
        base_env: Mapping[str, str],
        stuck_after_s: float = 10.0,
    ) -> None:
        self.spec = spec
        self.logs = LogRing() if logs is None else logs
        self.logs.hide(spec.secrets)
        self.pid: int | None = None
        self.exit_code: int | None = None
        self.state = State.NEW
        self._base_env = dict(base_env)
        self._stuck_after_s = stuck_after_s
        self._link: GuardLink | None = None
        self._output: Output | None = None
        self._follower: asyncio.Task[None] | None = None
        self._started_at = 0.0
        # A ring may be shared by several runs, one after another: only this run's lines explain its end.
        self._first_line = self.logs.total
        self._stop_asked = False
        self._stuck_pids: tuple[int, ...] = ()
        self._failure: Failure | None = None
        # Set in this order at the latest: the guard has answered, the child has ended, nothing more
        # will happen (all is gone, or what is left cannot be killed).
        self._answered = asyncio.Event()
        self._ended = asyncio.Event()
        self._settled = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the child and return once its program runs; does nothing if it already does.

        Raises ``EngineFailed`` when it cannot be started, or when its port is taken already.
        """
        if self.state in (State.RUNNING, State.ENDED):
            return
        if self.state is not State.NEW:
            raise WrongState(f"a child process runs once; this one is {self.state}. Make a new ChildProcess.")
        self.state = State.STARTING
        try:
            await self._refuse_taken_port()
            async with asyncio.timeout(START_DEADLINE_S):
                await self._launch()
                await self._answered.wait()
        except TimeoutError:
            await self._abandon()
            message = f"The guard process did not answer within {START_DEADLINE_S:g} s."
            advice = "The node is overloaded: see its load and memory."
            raise _error(Failure(FailureClass.NOT_READY_IN_TIME, message, advice)) from None
        except OSError as error:
            await self._abandon()
            failure = not_started(sys.executable, "guard", error.errno, error.strerror or str(error))
            raise _error(failure) from error
        except BaseException:
            await self._abandon()
            raise
        if self.pid is None:
            raise _error(self._diagnosis())

    async def wait_ready(self) -> None:
        """Return when the child answers 200 at its health address; at once if the spec names none.

        Raises ``EngineFailed`` with the diagnosis when the child ends first, at once, or when
        ``deadline_s`` have passed since its start. In the latter case it still runs: leaving the
        context, or ``stop``, ends it.
        """
        self._require_started()
        if self.spec.readiness is not None and not self._ended.is_set():
            await self._poll(self.spec.readiness)
        if self._ended.is_set():
            raise _error(self._diagnosis())

    async def wait(self) -> Failure:
        """Wait until the child and everything it has started are gone; says why it ended."""
        self._require_started()
        await self._settled.wait()
        return self._diagnosis()

    async def stop(self, grace_s: float | None = None) -> None:
        """End the child: TERM to its group, KILL after the grace to whatever is left. Idempotent.

        Afterwards no descendant is alive. The one exception is told by ``EngineFailed``: a process
        inside a hung driver, which no signal reaches.
        """
        if self.state is State.NEW:
            self._settle()
        if self.state is State.GONE:
            return
        if not self._ended.is_set():
            self._stop_asked = True
        grace_s = self.spec.stop_grace_s if grace_s is None else grace_s
        try:
            # If even the backstop passes, the guard does not answer: told like a child that hangs.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s(grace_s)):
                    await self._answered.wait()
                    self._send({"stop": grace_s})
                    await self._settled.wait()
        except BaseException:
            # Cancelled in the middle: the guard goes on alone, and faster.
            self._let_go()
            raise
        if not self._is_gone():
            raise _error(unkillable(None, self._stuck_pids or (self.pid or 0,), self._stuck_after_s))

    # -- starting ----------------------------------------------------------------------------------

    async def _refuse_taken_port(self) -> None:
        readiness = self.spec.readiness
        if readiness is not None and await someone_listens(readiness.url):
            message = f"Another process listens at {readiness.url} already."
            raise _error(Failure(FailureClass.PORT_IN_USE, message, "Choose another port."))

    async def _launch(self) -> None:
        self._link = await GuardLink.open(self._base_env)
        self._output = Output(self._link.output, self.logs)
        self._started_at = asyncio.get_running_loop().time()
        self._first_line = self.logs.total
        self._follower = asyncio.create_task(self._follow(self._link), name="child process follower")
        self._send(
            {
                "argv": list(self.spec.argv),
                "env": child_env(self._base_env, self.spec.env),
                "cwd": self.spec.cwd,
                "grace_s": self.spec.stop_grace_s,
                "term_group": self.spec.term_group,
                "stuck_after_s": self._stuck_after_s,
            }
        )

    async def _abandon(self) -> None:
        """Give up on a start: without its owner the guard ends everything by itself."""
        if self._link is None:
            self._settle()
            return
        self._let_go()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s(guard.ORPHAN_GRACE_S)):
                await self._settled.wait()

    def _send(self, message: dict[str, Any]) -> None:
        if self._link is not None:
            self._link.send(message)

    def _let_go(self) -> None:
        if self._link is not None:
            self._link.let_go()

    def _patience_s(self, grace_s: float) -> float:
        return grace_s + guard.LINGER_S + self._stuck_after_s + STOP_MARGIN_S

    # -- following ---------------------------------------------------------------------------------

    async def _follow(self, link: GuardLink) -> None:
        """Take the guard's messages until they end: then nothing is left."""
        try:
            async for message in link.messages():
                self._take(message)
            self._drain()
            link.reap()
            self._conclude()
        except asyncio.CancelledError:
            # The loop closes under a child that nobody has stopped: its guard will.
            link.bury_later()
            raise
        finally:
            link.close()
            if self._output is not None:
                self._output.close()

    def _take(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "started":
                self.pid = message["pid"]
                self.state = State.RUNNING
                self._answered.set()
            case "failed":
                program = self.spec.argv[0] if self.spec.argv else "(an empty command)"
                there = Path(program).is_file()
                self._failure = not_started(
                    program, message["step"], message["errno"], message["text"], exists=there
                )
            case "exited":
                self.exit_code = message["exit_code"]
                self.state = State.ENDED
                self._drain()
                self._failure = classify(self.exit_code, self._recent(), stopping=self._stop_asked)
                self._ended.set()
            case "stuck":
                self._stuck_pids = tuple(message["pids"])
                self._failure = unkillable(self._failure, self._stuck_pids, self._stuck_after_s)
                self._settled.set()

    def _conclude(self) -> None:
        """The guard's messages have ended; without a word on the child's end, it was the guard that died."""
        if self._failure is None and self.pid is None:
            last_words = (self._recent() or ("it said nothing",))[-1]
            self._failure = not_started(sys.executable, "guard", None, last_words)
        elif self._failure is None:
            self.exit_code = -signal.SIGKILL
            if self._stop_asked:
                self._failure = classify(self.exit_code, self._recent(), stopping=True)
            else:
                self._failure = guard_lost(self._recent())
        self._settle()

    def _settle(self) -> None:
        self.state = State.GONE
        for event in (self._answered, self._ended, self._settled):
            event.set()

    async def _poll(self, readiness: Readiness) -> None:
        """Until ready, ended, or out of time; raises in the last case."""
        probe = HealthProbe(readiness)
        ready = asyncio.create_task(probe.until_ready(), name="health probe")
        ended = asyncio.create_task(self._ended.wait(), name="child's end")
        left_s = self._started_at + readiness.deadline_s - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({ready, ended}, timeout=max(left_s, 0), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
            elif not ended.done():
                self._drain()
                raise _error(not_ready_in_time(readiness.deadline_s, probe.last_answer, self._recent()))
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    # -- telling -----------------------------------------------------------------------------------

    def _drain(self) -> None:
        if self._output is not None:
            self._output.drain()

    def _recent(self) -> tuple[str, ...]:
        return self.logs.tail(min(WINDOW_LINES, self.logs.total - self._first_line))

    def _is_gone(self) -> bool:
        return self.state is State.GONE

    def _require_started(self) -> None:
        if self._link is None or self.state is State.STARTING:
            raise WrongState("The child process is not started: enter its context or await start() first.")

    def _diagnosis(self) -> Failure:
        if self._failure is None:
            raise WrongState("The child process has not ended.")
        return self._failure


def child_env(base: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """``changes`` laid over ``base``; None removes a variable."""
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def _error(failure: Failure) -> EngineFailed:
    message = failure.message if failure.advice is None else f"{failure.message} {failure.advice}"
    return EngineFailed(message, failure.failure.value, failure.log_tail)
