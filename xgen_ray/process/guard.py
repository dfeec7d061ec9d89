"""Two tiny processes between an owner and its child, so that no descendant outlives any of them.

    owner ──socket──► keeper ──fork──► guard ──fork/exec──► child ──► its descendants

Run as a script (``python -I -S guard.py SOCKET_FD OWNER_PID``); standard library only, since it must
start in milliseconds whatever the owner has installed.

* The *guard* is the child's parent and does the work: it starts the child, tells the owner of its
  end, and stops it when told to, or when the owner is gone.
* The *keeper* only waits for the guard. Were the guard killed, the kernel kills the child (its
  parent-death signal) and hands the rest to the keeper, which kills them. Were the keeper killed, the
  guard notices and stops everything.

Both are child subreapers: descendants whose parents die, also those in sessions of their own, come
back to them instead of going to init. "No children left" is thus the kernel's own word that nothing
is left. Both are single-threaded on purpose: a parent-death signal fires when the *thread* that
forked dies. Each has its own session, so neither Ctrl-C nor a kill of the owner's group reaches them.

Messages are JSON lines. In: first ``{"argv", "env", "cwd", "grace_s", "term_group", "stuck_after_s"}``,
then any number of ``{"stop": grace_s}``. Out: ``started`` or ``failed``, ``exited``, ``stuck`` (kills had
no effect), and the end of the stream once nothing is left. Not on Linux: no subreaper and no parent-death
signal, so only the child's process group is covered.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would double the start-up time
    from typing import Any, NoReturn

LINUX = sys.platform == "linux"
# With the owner gone nobody is served by a long farewell, and the GPU's memory is waited for.
ORPHAN_GRACE_S = 2.0
# What a dead child leaves behind (workers, trackers of shared memory) gets this long to end by itself.
LINGER_S = 0.5
TICK_S = 0.02
SLOW_TICK_S = 1.0

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def set_process_option(option: int, value: int) -> None:
    """``prctl``, where there is one."""
    if LINUX:
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl failed")


def parents() -> dict[int, int]:
    """Parent of every process that can be seen, by process id. Empty where there is no /proc."""
    found: dict[int, int] = {}
    if not LINUX:
        return found
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        # One that ended meanwhile is not there, or gives an error, or nothing.
        with contextlib.suppress(OSError, ValueError):
            found[pid] = parent_of(pid)
    return found


def parent_of(pid: int) -> int:
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    try:
        stat = os.read(fd, 4096)
    finally:
        os.close(fd)
    # The name in brackets may hold anything, brackets too: read from the last one on.
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def descendants() -> list[int]:
    """Every process below this one."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def send_signal(pid: int, number: int, *, group: bool = False) -> None:
    # Gone, or not ours to signal: the next look at the children tells.
    with contextlib.suppress(OSError):
        (os.killpg if group else os.kill)(pid, number)


def kill_all_and_reap() -> None:
    """End every descendant; returns when the kernel knows of no child any more."""
    pause_s = TICK_S
    while True:
        for pid in descendants():
            send_signal(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            return
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, SLOW_TICK_S)


class Guard:
    """Owns one child from its start until nothing of it is left. One thread, one loop, no callbacks."""

    def __init__(self, owner: int, owner_process: int | None, keeper: int) -> None:
        self.owner = owner
        self.child = 0
        self.child_alive = False
        self.orphan_grace_s = ORPHAN_GRACE_S
        self.term_group = True
        self.stuck_after_s = 0.0
        self.kill_at: float | None = None
        self.told_stuck = False
        self.told_to_stop_by_signal = False
        self.incoming = b""
        self.poll = select.poll()
        # Whichever of these ends first means that nobody is left to guard for.
        self.lifelines = {fd for fd in (owner_process, keeper) if fd is not None}
        wake_read, self.wake_write = os.pipe()
        self.wake = wake_read
        for fd in (wake_read, self.wake_write, owner):
            os.set_blocking(fd, False)
        for fd in (owner, wake_read, *self.lifelines):
            self.poll.register(fd, select.POLLIN)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.on_terminate)

    def on_terminate(self, *_: object) -> None:
        self.told_to_stop_by_signal = True

    def run(self) -> None:
        request = None
        while request is None:
            self.wait(None)
            if self.kill_at is not None:
                return  # told to stop, or alone, before there was anything to start
            request = self.next_message()
        self.orphan_grace_s = min(ORPHAN_GRACE_S, request["grace_s"])
        self.stuck_after_s = request["stuck_after_s"]
        self.term_group = request["term_group"]
        self.tell(**self.start(request))
        while self.reap():
            for message in iter(self.next_message, None):
                self.stop_within(message["stop"])
            now = time.monotonic()
            if self.kill_at is not None and now >= self.kill_at:
                self.kill(now - self.kill_at)
            self.wait(self.pause(now))

    # -- what can happen ---------------------------------------------------------------------------

    def pause(self, now: float) -> float | None:
        if self.kill_at is None:
            return None
        if self.told_stuck:
            return SLOW_TICK_S
        return max(self.kill_at - now, TICK_S)

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until something happens; the owner's and the keeper's end count as an order to stop."""
        for fd, _ in self.poll.poll(None if timeout_s is None else timeout_s * 1000):
            if fd == self.wake:
                os.read(fd, 4096)
            elif fd == self.owner:
                self.receive()
            else:
                self.lost(fd)
        if self.told_to_stop_by_signal:
            self.told_to_stop_by_signal = False
            self.stop_within(self.orphan_grace_s)

    def receive(self) -> None:
        try:
            data = os.read(self.owner, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.incoming += data
        if not data:
            self.lost(self.owner)

    def lost(self, lifeline: int) -> None:
        self.poll.unregister(lifeline)
        self.stop_within(self.orphan_grace_s)

    def next_message(self) -> dict[str, Any] | None:
        line, newline, rest = self.incoming.partition(b"\n")
        if not newline:
            return None
        self.incoming = rest
        message: dict[str, Any] = json.loads(line)
        return message

    def reap(self) -> bool:
        """Bury the dead; False when no child is left, which on Linux means no descendant."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self.child:
                    self.child_ended(os.waitstatus_to_exitcode(status))
        except ChildProcessError:
            return False

    def child_ended(self, exit_code: int) -> None:
        self.child_alive = False
        self.tell(event="exited", exit_code=exit_code)
        if not LINUX:
            send_signal(self.child, signal.SIGKILL, group=True)
        for pid in descendants():
            send_signal(pid, signal.SIGTERM)
        self.kill_no_later_than(time.monotonic() + LINGER_S)

    # -- what is done about it ---------------------------------------------------------------------

    def stop_within(self, grace_s: float) -> None:
        """TERM to the child (and its group), once; KILL for everything when the shortest grace is over."""
        if self.kill_at is None and self.child_alive:
            send_signal(self.child, signal.SIGTERM, group=self.term_group)
        self.kill_no_later_than(time.monotonic() + grace_s)

    def kill_no_later_than(self, when: float) -> None:
        self.kill_at = when if self.kill_at is None else min(self.kill_at, when)

    def kill(self, since_s: float) -> None:
        if self.child_alive:
            send_signal(self.child, signal.SIGKILL, group=True)
        left = descendants()
        for pid in left:
            send_signal(pid, signal.SIGKILL)
        if since_s > self.stuck_after_s and not self.told_stuck:
            self.told_stuck = True
            self.tell(event="stuck", pids=left)

    def tell(self, **message: object) -> None:
        # Nobody may be listening any more; the owner's end is noticed by itself.
        with contextlib.suppress(OSError):
            os.write(self.owner, json.dumps(message).encode() + b"\n")

    def start(self, request: dict[str, Any]) -> dict[str, object]:
        """Start the child; answers with its id, or with what went wrong on which step."""
        report_read, report_write = os.pipe()
        guard = os.getpid()
        pid = os.fork()
        if pid == 0:
            become_child(request, guard, report_write)
        os.close(report_write)
        problem = b""
        while chunk := os.read(report_read, 65536):
            problem += chunk
        os.close(report_read)
        if problem:
            os.waitpid(pid, 0)
            return {"event": "failed", **json.loads(problem)}
        self.child = pid
        self.child_alive = True
        return {"event": "started", "pid": pid}


def become_child(request: dict[str, Any], guard: int, report: int) -> NoReturn:
    """In the forked child: leave the guard's group, tie its life to the guard's, become the program."""
    step = "prepare"
    problem: dict[str, object] = {"step": step, "errno": None, "text": "the guard's child failed"}
    try:
        os.setpgid(0, 0)
        set_process_option(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)  # the guard died before the line above
        # Ignored signals stay ignored across exec: the program gets the usual ones.
        for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGTERM", "SIGXFSZ"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        step = "cwd"
        if request["cwd"] is not None:
            os.chdir(request["cwd"])
        step = "exec"
        os.execvpe(request["argv"][0], request["argv"], request["env"])  # noqa: S606
    except OSError as error:
        problem = {"step": step, "errno": error.errno, "text": error.strerror}
    except (ValueError, IndexError) as error:
        problem = {"step": step, "errno": None, "text": str(error)}
    finally:  # whatever happened, this process must never go on as a second guard
        os.write(report, json.dumps(problem).encode())
        os._exit(1)


def open_process(pid: int) -> int | None:
    """A descriptor that becomes readable when the owner ends, also where its socket leaked to others."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def main() -> None:
    owner, owner_pid = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(owner, False)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    set_process_option(_PR_SET_CHILD_SUBREAPER, 1)
    owner_process = open_process(owner_pid)
    if os.getppid() != owner_pid:
        return  # the owner is gone already, and its id may be another's by now
    keeper_read, keeper_write = os.pipe()
    guard = os.fork()
    if guard == 0:
        os.close(keeper_write)
        os.setsid()  # a kill of one's group spares the other
        set_process_option(_PR_SET_CHILD_SUBREAPER, 1)
        Guard(owner, owner_process, keeper_read).run()
        os._exit(0)
    os.close(keeper_read)
    while os.waitpid(-1, 0)[0] != guard:
        pass
    kill_all_and_reap()


if __name__ == "__main__":
    main()
