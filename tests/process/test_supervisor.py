"""Life cycle of real children."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import uvloop

from tests.process.conftest import DEAF, EngineMaker, python, started
from tests.process.owner import CHILD
from tests.process.watching import Deaths, eventually, guards_of
from tests.stack import command_of
from xgen_ray.errors import EngineFailed, WrongState
from xgen_ray.process import ChildProcess, FailureClass, LaunchSpec, LogRing, Readiness, free_port
from xgen_ray.process.readiness import HealthProbe

SOON_S = 5.0


async def test_starts_becomes_ready_and_stops(engine: EngineMaker, deaths: Deaths) -> None:
    child = engine("--ready-after", "0.1")
    async with child:
        await child.wait_ready()
        assert child.pid is not None
        assert child.exit_code is None
        deaths.watch(child.pid, *guards_of(child.pid))
        assert "fake engine listens" in child.logs.tail()[0]
        await child.wait_ready()
    assert child.exit_code == 0
    failure = await child.wait()
    assert failure.failure is FailureClass.STOPPED
    assert deaths.alive() == set()


WITH_A_WORKER = """
import signal, subprocess, sys
WORK = "print('at work', flush=True); input(); print('done', flush=True)"
worker = subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE)
def finish(*_):
    worker.communicate(b"\\n")
    print("worker ended with", worker.returncode, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
signal.pause()
"""


@pytest.mark.parametrize(("term_group", "last_words"), [(False, "worker ended with 0"), (True, "with -15")])
async def test_workers_may_finish_where_only_the_program_is_told(term_group: bool, last_words: str) -> None:
    spec = LaunchSpec((sys.executable, "-c", WITH_A_WORKER), stop_grace_s=SOON_S, term_group=term_group)
    async with ChildProcess(spec, base_env=os.environ) as child, asyncio.timeout(SOON_S * 2):
        await eventually(lambda: "at work" in child.logs.tail())
        await child.stop()
    assert child.logs.tail()[-1].endswith(last_words)
    assert ("done" in child.logs.tail()) is not term_group


async def test_what_the_child_is_given(tmp_path: Path) -> None:
    code = """
import json, os, signal, sys
print(json.dumps({
    "env": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv[1:], "stdin": sys.stdin.read(),
    "fds": sorted(map(int, os.listdir("/proc/self/fd")))[:-1], "leads": os.getpgid(0) == os.getpid(),
    "int": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
}))
"""
    arguments = ("plain", "with space", 'quote"', "한글", "")
    spec = LaunchSpec(
        (sys.executable, "-c", code, *arguments),
        env={"ADDED": "1\n2", "CHANGED": "new", "REMOVED": None, "NEVER_THERE": None},
        cwd=str(tmp_path),
    )
    base = {"KEPT": "yes", "CHANGED": "old", "REMOVED": "x", "LD_LIBRARY_PATH": "", "BYTES": "\udcff"}
    async with ChildProcess(spec, base_env=base) as child:
        await child.wait()
        told = json.loads(child.logs.tail()[-1])
    env = {name: value for name, value in told["env"].items() if name != "LC_CTYPE"}  # Python's own
    assert env == {
        "KEPT": "yes",
        "CHANGED": "new",
        "ADDED": "1\n2",
        "LD_LIBRARY_PATH": "",
        "BYTES": "\udcff",
    }
    assert told["cwd"] == str(tmp_path)
    assert tuple(told["argv"]) == arguments
    assert told["stdin"] == ""
    assert told["fds"] == [0, 1, 2]
    assert told["leads"]
    assert told["int"]
    assert told["blocked"] == 0


async def test_a_large_environment_fits() -> None:
    """Larger than any socket buffer: a pod in a large cluster has thousands of service variables."""
    base = {f"SERVICE_{number}": "x" * 200 for number in range(5000)}
    spec = LaunchSpec((sys.executable, "-c", "import os; print(len(os.environ) >= 5000)"))
    async with ChildProcess(spec, base_env=base) as child:
        await child.wait()
        assert child.logs.tail() == ("True",)


async def test_without_cwd_the_child_runs_where_its_owner_does() -> None:
    async with python("import os; print(os.getcwd())") as child:
        await child.wait()
        assert child.logs.tail() == (str(Path.cwd()),)


async def test_term_ignored_means_kill(deaths: Deaths) -> None:
    async with python(DEAF) as child:
        deaths.watch(await started(child))
        before = time.monotonic()
        await child.stop(grace_s=0.3)
        took_s = time.monotonic() - before
        assert deaths.alive() == set()
    assert child.exit_code == -signal.SIGKILL
    failure = await child.wait()
    assert failure.failure is FailureClass.STOPPED
    assert "was killed" in failure.message
    assert 0.3 <= took_s < SOON_S


async def test_the_shortest_grace_asked_for_counts() -> None:
    async with python(DEAF, stop_grace_s=60.0) as child:
        await started(child)
        patient = asyncio.create_task(child.stop())
        await eventually(lambda: "TERM is ignored" in child.logs.tail())
        assert not patient.done()
        await asyncio.wait_for(asyncio.gather(child.stop(0.1), child.stop(30)), SOON_S)
        await patient


async def test_a_stop_after_one_that_was_cancelled_waits_for_the_end(deaths: Deaths) -> None:
    async with python(DEAF, stop_grace_s=0.2) as child:
        deaths.watch(await started(child))
        stopping = asyncio.create_task(child.stop(60.0))
        await eventually(lambda: "TERM is ignored" in child.logs.tail())
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await asyncio.wait_for(child.stop(), SOON_S)
        assert deaths.alive() == set()


async def test_stop_reaches_a_deaf_grandchild_in_its_own_session(deaths: Deaths) -> None:
    async with python(CHILD) as child:
        deaths.watch(await started(child), int(child.logs.tail()[0]))
        await child.stop()
        assert deaths.alive() == set()


async def test_stop_before_and_without_a_start(engine: EngineMaker) -> None:
    child = engine()
    await child.stop()
    await child.stop()
    with pytest.raises(WrongState, match="runs once"):
        await child.start()
    with pytest.raises(WrongState, match="not started"):
        await child.wait_ready()


async def test_a_second_start_does_nothing_and_a_run_is_one_run(engine: EngineMaker) -> None:
    child = engine()
    async with child:
        pid = child.pid
        await child.start()
        assert child.pid == pid
        await child.wait_ready()
    with pytest.raises(WrongState, match="runs once"):
        await child.start()
    with pytest.raises(EngineFailed, match="Stopped as asked"):
        await child.wait_ready()


async def test_an_end_by_itself_is_no_success_whatever_the_code() -> None:
    async with python("print('all done')") as child:
        failure = await child.wait()
    assert (failure.failure, failure.exit_code) == (FailureClass.CRASHED, 0)
    assert failure.evidence == "all done"
    assert failure.log_tail == ("all done",)


async def test_a_crash_is_classified_by_its_last_words() -> None:
    line = "CUDA error: out of memory"
    async with python(f"print('loading'); print({line!r}); raise SystemExit(1)") as child:
        failure = await child.wait()
    assert (failure.failure, failure.exit_code, failure.evidence) == (FailureClass.OUT_OF_MEMORY, 1, line)


async def test_a_death_is_not_explained_by_the_run_before() -> None:
    """A ring is kept over a second attempt on another port."""
    ring = LogRing()
    spec = LaunchSpec((sys.executable, "-c", "print('[Errno 98] Address already in use'); exit(1)"))
    async with ChildProcess(spec, ring, base_env=dict(os.environ)) as first:
        assert (await first.wait()).failure is FailureClass.PORT_IN_USE
    spec = LaunchSpec((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    async with ChildProcess(spec, ring, base_env=dict(os.environ)) as second:
        failure = await second.wait()
    assert failure.failure is FailureClass.KILLED
    assert failure.log_tail == ()
    assert ring.total == 1


async def test_segmentation_fault() -> None:
    async with python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") as child:
        failure = await child.wait()
    assert (failure.failure, failure.exit_code) == (FailureClass.CRASHED, -signal.SIGSEGV)


async def test_an_exit_after_stop_was_asked_is_no_failure() -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
print("CUDA out of memory", flush=True)
time.sleep(60)
"""
    async with python(code) as child:
        await started(child)
    assert (await child.wait()).failure is FailureClass.STOPPED
    assert child.exit_code == 3


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0, "was not found"),
        ("#!/bin/sh\n", 0o644, "may not be executed"),
        ("#!/no/such/interpreter\n", 0o755, "interpreter"),
        ("neither script nor program", 0o755, "not a program"),
    ],
)
async def test_programs_that_cannot_run(tmp_path: Path, content: str | None, mode: int, words: str) -> None:
    program = tmp_path / "engine"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    child = ChildProcess(LaunchSpec((str(program),)), base_env={})
    with pytest.raises(EngineFailed, match=words) as caught:
        await child.start()
    assert caught.value.failure == FailureClass.MISSING_BINARY
    assert str(program) in str(caught.value)
    await child.stop()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (LaunchSpec(("no-such-program-anywhere",)), "no-such-program-anywhere was not found"),
        (LaunchSpec((sys.executable,), cwd="/no/such/folder"), "cwd"),
        (LaunchSpec(()), "empty command"),
        (LaunchSpec((sys.executable, "nul\0byte")), "null byte"),
        (LaunchSpec((sys.executable,), env={"A=B": "x"}), "illegal environment variable name"),
    ],
)
async def test_commands_that_cannot_run(spec: LaunchSpec, words: str) -> None:
    with pytest.raises(EngineFailed, match=words):
        await ChildProcess(spec, base_env=dict(os.environ)).start()


async def test_a_program_is_looked_for_on_the_childs_own_path(tmp_path: Path) -> None:
    program = tmp_path / "my-engine"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    async with ChildProcess(
        LaunchSpec(("my-engine",), env={"PATH": str(tmp_path)}), base_env=dict(os.environ)
    ) as child:
        await child.wait()
        assert child.logs.tail() == ("found",)


async def test_death_ends_the_wait_for_readiness_at_once(engine: EngineMaker) -> None:
    line = "error: invalid argument: --mlock"
    before = time.monotonic()
    async with engine("--print", line, "--exit-code", "1", deadline_s=60.0) as child:
        with pytest.raises(EngineFailed, match="does not accept the option --mlock") as caught:
            await child.wait_ready()
    assert caught.value.failure == "unknown_flag"
    assert caught.value.log_tail == (line,)
    assert time.monotonic() - before < SOON_S


@contextlib.asynccontextmanager
async def answering_health(answer: bytes | None, deadline_s: float = 2.0) -> AsyncIterator[ChildProcess]:
    """A running child that is asked until the deadline; its health address gives ``answer``, or none at all.

    The deadline counts from the start of its guard: an answer needs time.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            if answer is None:
                await reader.read()
            else:
                writer.write(b"HTTP/1.1 " + answer)
                await writer.drain()

    port = free_port()
    health = Readiness(f"http://127.0.0.1:{port}/health", deadline_s, interval_s=0.02)
    async with contextlib.AsyncExitStack() as stack:
        child = await stack.enter_async_context(python("import time; time.sleep(60)", readiness=health))
        # Not before the child: it would be taken for another's engine.
        await stack.enter_async_context(await asyncio.start_server(handle, "127.0.0.1", port))
        yield child


async def test_never_ready_tells_the_deadline_and_the_last_answer() -> None:
    async with answering_health(b"503 X\r\ncontent-length: 13\r\n\r\nLoading model") as child:
        with pytest.raises(EngineFailed, match=r"not ready after 2 s.*503.*Loading model") as caught:
            await child.wait_ready()
        assert caught.value.failure == "not_ready_in_time"
        assert child.exit_code is None, "that is for the owner to decide"
    assert child.exit_code == -signal.SIGTERM


async def test_an_unhealthy_answer_is_not_ready_yet_but_told() -> None:
    async with answering_health(b"500 X\r\ncontent-length: 8\r\n\r\nnot well") as child:
        with pytest.raises(EngineFailed, match=r"500.*not well"):
            await child.wait_ready()


async def test_a_silent_health_address_does_not_hang_the_wait() -> None:
    async with answering_health(None, deadline_s=0.4) as child:
        with pytest.raises(EngineFailed, match=r"not ready after 0\.4 s"):
            await asyncio.wait_for(child.wait_ready(), SOON_S)


async def test_readiness_headers_go_with_each_probe(engine: EngineMaker) -> None:
    async with engine("--api-key", "sesame") as child:
        await child.wait_ready()
        assert child.spec.readiness is not None
        url = child.spec.readiness.url.replace("/health", "/v1/models")
        await asyncio.wait_for(
            HealthProbe(Readiness(url, 5.0, {"authorization": "Bearer sesame"})).until_ready(), SOON_S
        )
        keyless = HealthProbe(Readiness(url, 5.0))
        asking = asyncio.create_task(keyless.until_ready())
        await eventually(lambda: keyless.last_answer is not None)
        assert not asking.done()
        asking.cancel()
        assert keyless.last_answer is not None
        assert keyless.last_answer.startswith("401 ")


async def test_a_taken_port_is_refused_before_the_start(engine: EngineMaker) -> None:
    """Otherwise the other's answer would count as this one's readiness."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        child = engine(port=other.getsockname()[1])
        with pytest.raises(EngineFailed, match="listens at") as caught:
            await child.start()
    assert caught.value.failure == "port_in_use"
    assert child.pid is None


async def test_a_port_taken_meanwhile_is_the_childs_own_failure(engine: EngineMaker) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # bound, but it does not listen yet
        async with engine(port=other.getsockname()[1]) as child:
            with pytest.raises(EngineFailed) as caught:
                await child.wait_ready()
    assert caught.value.failure == "port_in_use"


async def test_cancelling_the_owning_task_stops_the_child(deaths: Deaths) -> None:
    nowhere = Readiness(f"http://127.0.0.1:{free_port()}/health", 60.0)
    child = python(DEAF, stop_grace_s=0.1, readiness=nowhere)

    async def own() -> None:
        async with child:
            await child.wait_ready()

    task = asyncio.create_task(own())
    await eventually(lambda: bool(child.logs.tail()))
    assert child.pid is not None
    deaths.watch(child.pid, *guards_of(child.pid))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, SOON_S)
    assert deaths.alive() == set()


async def test_cancelling_a_start_leaves_nothing(deaths: Deaths) -> None:
    me = psutil.Process()
    before = {process.pid for process in me.children()}
    for turns in (0, 1, 2, 3, 5, 8):
        child = python("import time; time.sleep(60)")
        task = asyncio.create_task(child.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=SOON_S)
        assert task.done()
        if not task.cancelled():
            # It had started before it was told.
            await child.stop()
    assert {process.pid for process in me.children()} <= before


async def test_cancelling_a_stop_hurries_it_in_the_background(deaths: Deaths) -> None:
    async with python(DEAF, stop_grace_s=0.2) as child:
        deaths.watch(await started(child))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(child.stop(60.0), 0.1)
        await asyncio.wait_for(child.wait(), SOON_S)
        assert deaths.alive() == set()


async def test_an_exception_in_the_body_stops_the_child(deaths: Deaths) -> None:
    async def own() -> None:
        async with python(DEAF, stop_grace_s=0.1) as child:
            deaths.watch(await started(child))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await own()
    assert deaths.alive() == set()


async def test_logs_can_be_followed(engine: EngineMaker) -> None:
    ring = LogRing()
    arguments = [word for number in range(5) for word in ("--print", f"line {number}")]
    async with engine(*arguments, logs=ring) as child:
        assert child.logs is ring
        await child.wait_ready()
        lines, after = ring.read(limit=3)
        assert lines == ("line 0", "line 1", "line 2")
        more, after = ring.read(after)
        assert more[:2] == ("line 3", "line 4")
        await child.stop()
    assert ring.read(after) == ((), after)


async def test_secrets_never_come_out(engine: EngineMaker) -> None:
    key = "sk-very-secret-0123456789"
    words = f"CUDA out of memory for {key}"
    async with engine("--api-key", key, "--print", words, "--exit-code", "1", secrets=(key,)) as child:
        with pytest.raises(EngineFailed) as caught:
            await child.wait_ready()
        failure = await child.wait()
        command_lines = [command_of(process) for process in psutil.Process().children(recursive=True)]
    shown = f"{caught.value!r} {caught.value} {caught.value.log_tail} {failure!r} {child.logs.tail()}"
    assert key not in shown
    assert "CUDA out of memory for ***" in shown
    assert key not in str(command_lines), "the guard must not show the child's command line either"


@pytest.mark.parametrize("piece", [b"x" * 65536, b"a short line\n" * 5000], ids=["endless line", "lines"])
async def test_a_flood_neither_blocks_the_child_nor_eats_memory_nor_the_loop(piece: bytes) -> None:
    flood_bytes = 50 * 2**20
    last = "the last words"
    code = f"""
import os, sys
for _ in range({flood_bytes // len(piece)}):
    os.write(2, {piece[:13]!r} * {len(piece) // 13})
print()
print({last!r})
sys.exit(3)
"""
    me = psutil.Process()
    before = most = me.memory_info().rss
    lag_s = 0.0

    async def measure() -> None:
        nonlocal lag_s, most
        while True:
            asked = time.monotonic()
            await asyncio.sleep(0.005)
            lag_s = max(lag_s, time.monotonic() - asked)
            most = max(most, me.memory_info().rss)

    async with python(code) as child:
        meter = asyncio.create_task(measure())
        failure = await asyncio.wait_for(child.wait(), 30)
        meter.cancel()
    assert failure.exit_code == 3
    assert failure.evidence == last
    assert most - before < 30 * 2**20
    assert lag_s < 1.0
    assert len(child.logs.tail(10000)) <= 4000


async def test_an_endless_flood_can_be_stopped() -> None:
    async with python("import os\nwhile True: os.write(1, b'x' * 65536)") as child:
        await eventually(lambda: child.state == "running")
        await asyncio.wait_for(child.stop(), SOON_S)
    assert child.exit_code == -signal.SIGTERM


async def test_a_child_that_closes_its_output_goes_on() -> None:
    async with python("import os, time; os.close(1); os.close(2); time.sleep(0.2); os._exit(5)") as child:
        failure = await child.wait()
    assert failure.exit_code == 5
    assert child.logs.tail() == ()


async def test_twenty_rounds_leak_nothing() -> None:
    async def one_round() -> None:
        async with python("import time; print('up', flush=True); time.sleep(60)"):
            pass

    await one_round()
    me = psutil.Process()
    descriptors = me.num_fds()
    children = {process.pid for process in me.children(recursive=True)}
    threads = me.num_threads()
    for _ in range(20):
        await one_round()
    # What an earlier test has left may end meanwhile.
    assert me.num_fds() <= descriptors
    assert {process.pid for process in me.children(recursive=True)} <= children
    assert me.num_threads() <= threads


async def test_a_process_that_no_signal_ends_is_told() -> None:
    """A dead process stays with whoever traces it until that one has looked: to its parent it looks like
    one that hangs inside a driver."""
    spec = LaunchSpec(("sleep", "60"), stop_grace_s=0.1)
    child = ChildProcess(spec, base_env=dict(os.environ), stuck_after_s=0.3)
    await child.start()
    assert child.pid is not None
    if (problem := trace(child.pid)) is not None:
        await child.stop()
        pytest.skip(f"tracing is not allowed here: {problem}")
    try:
        for _ in range(2):
            with pytest.raises(EngineFailed, match=rf"KILL had no effect on process {child.pid} for 0\.3 s"):
                await child.stop()
        failure = await asyncio.wait_for(child.wait(), SOON_S)
        assert failure.failure is FailureClass.KILLED
    finally:
        untrace(child.pid)
    await eventually(lambda: child.state == "gone")
    await child.stop()


def trace(pid: int) -> str | None:
    """Become the tracer of a process; says why not."""
    ptrace_seize = 0x4206
    libc = ctypes.CDLL(None, use_errno=True)
    return None if libc.ptrace(ptrace_seize, pid, 0, 0) == 0 else os.strerror(ctypes.get_errno())


def untrace(pid: int) -> None:
    """Look at a dead one, which lets it go."""
    all_threads = 0x40000000
    os.waitpid(pid, all_threads)


async def live_and_stop() -> None:
    async with python(DEAF, stop_grace_s=0.1) as child:
        await started(child)
    assert child.exit_code == -signal.SIGKILL
    assert child.logs.tail()[0] == "up"
    with pytest.raises(EngineFailed, match="was not found"):
        await ChildProcess(LaunchSpec(("/no/such/engine",)), base_env={}).start()


def test_works_on_uvloop() -> None:
    uvloop.run(live_and_stop())


def test_works_outside_the_main_thread() -> None:
    """Where a Serve replica runs its code."""
    outcomes: list[BaseException | None] = []

    def run() -> None:
        try:
            asyncio.run(live_and_stop())
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(SOON_S * 2)
    assert outcomes == [None]


async def test_the_guards_are_small_and_quick() -> None:
    before = time.monotonic()
    async with python("import time; time.sleep(60)") as child:
        took_s = time.monotonic() - before
        assert child.pid is not None
        sizes = [psutil.Process(pid).memory_full_info().pss for pid in guards_of(child.pid)]
    assert sum(sizes) < 20 * 2**20
    assert took_s < 2.0
