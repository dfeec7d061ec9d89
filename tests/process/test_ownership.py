"""Nothing outlives its owner: not when the owner, the guard or the keeper is killed, in any order."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.process.conftest import DEAF, python, started
from tests.process.owner import CHILD
from tests.process.watching import Deaths, eventually, guards_of
from xgen_ray.process import FailureClass

REPOSITORY = Path(__file__).parents[2]
SOON_S = 10.0


@contextlib.contextmanager
def owner() -> Iterator[subprocess.Popen[str]]:
    """``owner.py``, starting, in a session of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.process.owner"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_an_owner_killed_takes_everything_along(deaths: Deaths) -> None:
    """Whatever the child does, whichever guard dies with the owner, whoever has a copy of its sockets.

    One owner is killed by itself and one with its group, as Ray does: at once, since what is deaf has two
    seconds.
    """
    bystanders: list[int] = []
    families = {}
    try:
        with owner() as alone, owner() as grouped:
            for process, kill in ((alone, os.kill), (grouped, os.killpg)):
                assert process.stdout is not None
                told = json.loads(process.stdout.readline())
                bystanders += told["bystanders"]
                families[kill.__name__] = told["families"]
                plain, deaf, loses_guard, loses_keeper = told["families"]
                deaths.watch(*plain, *deaf, *loses_guard, *loses_keeper)
                os.kill(loses_keeper[3], signal.SIGKILL)
                kill(process.pid, signal.SIGKILL)
                kill_all([loses_guard[2]])
            assert deaths.survivors(SOON_S) == set(), f"of {families}"
            for bystander in bystanders:
                os.kill(bystander, 0)
    finally:
        kill_all([*bystanders, *deaths.alive()])


@pytest.mark.parametrize("which", [0, 1], ids=["guard", "keeper"])
async def test_either_guard_killed_takes_everything_along(deaths: Deaths, which: int) -> None:
    """A killed keeper is what Ray's worker leaves of its direct children when it ends in good order."""
    async with python(CHILD) as child:
        pid = await started(child)
        guards = guards_of(pid)
        deaths.watch(pid, int(child.logs.tail()[0]))
        os.kill(guards[which], signal.SIGKILL)
        await asyncio.wait_for(child.wait(), SOON_S)
        assert deaths.alive() == set()
    # The other guard may be on its last instructions.
    for guard in guards:
        with contextlib.suppress(ProcessLookupError):
            deaths.watch(guard)
    assert deaths.survivors(SOON_S) == set()


async def test_both_guards_killed_take_the_child_along(deaths: Deaths) -> None:
    """Nobody is left to look for workers, but the kernel itself ends the child."""
    async with python(DEAF) as child:
        pid = await started(child)
        deaths.watch(pid)
        guard, keeper = guards_of(pid)
        os.kill(keeper, signal.SIGSTOP)
        os.kill(guard, signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
        assert deaths.survivors(SOON_S) == set()


def test_an_owner_that_stops_first_is_no_owner_in_time(tmp_path: Path, deaths: Deaths) -> None:
    """An owner that dies between the start of the guard and its first message leaves no guard."""
    code = """
import os, socket, subprocess, sys
from xgen_ray.process import guard
ours, theirs = socket.socketpair()
child = subprocess.Popen([sys.executable, "-I", "-S", guard.__file__, str(theirs.fileno()), str(os.getpid())],
                         pass_fds=[theirs.fileno()], start_new_session=True, stdout=2)
print(child.pid, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        deaths.watch(int(process.stdout.readline()))
        process.communicate("\n")
    assert deaths.survivors(SOON_S) == set()


async def test_a_killed_guard_is_diagnosed() -> None:
    async with python(DEAF) as child:
        guard, _ = guards_of(await started(child))
        os.kill(guard, signal.SIGKILL)
        failure = await asyncio.wait_for(child.wait(), SOON_S)
        assert (failure.failure, failure.exit_code) == (FailureClass.KILLED, -signal.SIGKILL)
        assert "guard" in failure.message


async def test_ctrl_c_is_the_owners_to_decide(deaths: Deaths) -> None:
    async with python(DEAF, stop_grace_s=0.1) as child:
        pid = await started(child)
        guards = guards_of(pid)
        deaths.watch(pid, *guards)
        for guard in guards:
            os.kill(guard, signal.SIGINT)
            os.kill(guard, signal.SIGHUP)
        assert deaths.survivors(0.2) == {pid, *guards}
        assert len({os.getsid(other) for other in (0, *guards)}) == 3


@pytest.mark.parametrize("which", [0, 1], ids=["guard", "keeper"])
async def test_term_to_either_guard_ends_the_child_in_good_order(which: int) -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("up", flush=True)
time.sleep(60)
"""
    async with python(code) as child:
        os.kill(guards_of(await started(child))[which], signal.SIGTERM)
        failure = await asyncio.wait_for(child.wait(), SOON_S)
    assert failure.exit_code == 0
    assert failure.failure is FailureClass.CRASHED, "nobody had asked this owner for it"


def test_a_loop_that_ends_without_stopping_leaves_nothing(deaths: Deaths) -> None:
    async def careless() -> None:
        pid = await started(python(DEAF))
        deaths.watch(pid, *guards_of(pid))

    asyncio.run(careless())
    assert deaths.survivors(SOON_S) == set()


async def test_workers_of_a_dead_engine_go_with_it(tmp_path: Path, deaths: Deaths) -> None:
    """A main process that dies leaves workers in sessions of their own, some of them grandchildren whose
    parent has gone before."""
    pids = tmp_path / "pids"
    worker = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(60)"
    )
    code = f"""
import os, subprocess, sys, time
command = [sys.executable, "-c", {worker!r}, {str(pids)!r}]
subprocess.Popen(command, start_new_session=True)
if os.fork() == 0:
    os.setsid()
    subprocess.Popen(command, start_new_session=True)
    os._exit(0)
time.sleep(60)
"""

    def all_up() -> bool:
        return pids.exists() and pids.read_text().count("\n") == 2

    async with python(code) as child:
        await eventually(all_up)
        assert child.pid is not None
        workers = [int(pid) for pid in pids.read_text().split()]
        deaths.watch(*workers)
        os.kill(child.pid, signal.SIGKILL)
        failure = await asyncio.wait_for(child.wait(), SOON_S)
        assert deaths.alive() == set()
    assert failure.failure is FailureClass.KILLED
