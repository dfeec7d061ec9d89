"""The owner of one node: a real journal, real processes that hold leases and die, a described machine."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.fakes.hub import Repo, StandInHub
from tests.models.build import write_gguf
from tests.serving.lease_builders import GIB, card, cpu_plan, gpu_plan, snapshot, usage
from xgen_ray.errors import DiskFull, ModelNotFound, WrongState
from xgen_ray.hardware import GPUProcess, GPUProcesses, NodeSnapshot, NodeUsage
from xgen_ray.placement.claims import RAM, Claim
from xgen_ray.placement.types import BackendStatus, Plan
from xgen_ray.serving.fetches import FetchState
from xgen_ray.serving.lease_journal import LeaseJournal
from xgen_ray.serving.leases import Lease, LeaseState, NoLease
from xgen_ray.serving.node_owner import NodeOwner
from xgen_ray.serving.node_state import LeaseFacts, NodeIdentity, Versions
from xgen_ray.serving.sources import SourceFinder

CARD = card()


@dataclass
class DescribedMachine:
    """A machine with one card and what is in use of it. A reading that is asked to wait has looked at the
    figures before it waits, as a slow driver has.
    """

    node: NodeSnapshot = field(default_factory=lambda: snapshot(CARD))
    used: dict[int, int] = field(default_factory=dict)
    ram_used: int = 0
    on_gpu: list[GPUProcess] = field(default_factory=list)
    readings: int = 0
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event | None = None

    async def rehearse(self, plan: Plan) -> tuple[str, ...]:
        return (*plan.command, "--rehearsed")

    async def hardware(self) -> tuple[NodeSnapshot, tuple[BackendStatus, ...]]:
        return self.node, ()

    async def usage(self) -> NodeUsage:
        self.readings += 1
        figures = usage(self.node, used=dict(self.used), ram_used=self.ram_used)
        if (gate := self.go_on) is not None:
            self.go_on = None
            self.reading.set()
            await gate.wait()
        return figures

    async def processes(self) -> GPUProcesses:
        return GPUProcesses(tuple(self.on_gpu))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """One owner at a time over one run directory."""

    folder: Path
    machine: DescribedMachine = field(default_factory=DescribedMachine)
    clock: Clock = field(default_factory=Clock)
    hub: str | None = None
    owner: NodeOwner | None = None

    async def start(self) -> NodeOwner:
        if self.owner is not None:
            await self.owner.close()
        self.owner = NodeOwner(
            NodeIdentity("abc123", "box-7", "127.0.0.1", {"xgen-ray/gpu-type": "nvidia"}),
            self.machine,
            SourceFinder((self.folder / "models",), self.folder / "hub", self.hub, None),
            LeaseJournal(self.folder / "run"),
            Versions("1", "2", "3"),
            clock=self.clock,
            grace_s=20.0,
        )
        await self.owner.start()
        return self.owner


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "models").mkdir()
    world = World(tmp_path)
    yield world
    if world.owner is not None:
        await world.owner.close()


@pytest.fixture
def start_process() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Replicas: processes that live until somebody kills them."""
    children: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-c", "print('up', flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate(timeout=10)


def some(answer: tuple[LeaseFacts, ...] | NoLease) -> tuple[LeaseFacts, ...]:
    assert not isinstance(answer, NoLease), answer
    return answer


def got(answer: Lease | NoLease) -> Lease:
    assert not isinstance(answer, NoLease), answer
    return answer


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    """For what only a look can tell."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert asyncio.get_running_loop().time() < deadline, "it has not come true"
        await asyncio.sleep(0.02)


async def test_a_look_has_everything_and_crosses_processes(world: World) -> None:
    owner = await world.start()
    some(await owner.reserve("p", "m", [gpu_plan((CARD, 10 * GIB), ram_bytes=GIB)], 30.0))
    state = await owner.look()
    assert pickle.loads(pickle.dumps(state)) == state  # noqa: S301  # what Ray does
    assert (state.node.name, state.node.tagged, state.versions.ray) == ("box-7", True, "2")
    (lease,) = state.leases
    assert (lease.lease_id, lease.state, lease.expires_in_s) == ("p.0", LeaseState.RESERVED, 30.0)
    assert state.outstanding.claims == (Claim("GPU-0", 10 * GIB), Claim(RAM, GIB))
    assert (state.taken, state.leased) == (frozenset(), ("GPU-0",))


async def test_live_figures_are_read_once_a_second_at_most(world: World) -> None:
    owner = await world.start()
    await asyncio.gather(owner.look(), owner.look(), owner.look())
    await owner.look()
    assert world.machine.readings == 1
    world.clock.now += 1.1
    await owner.look()
    assert world.machine.readings == 2


async def test_two_loads_at_the_same_moment_never_get_the_same_memory(world: World) -> None:
    owner = await world.start()
    plan = gpu_plan((CARD, 14 * GIB))
    answers = await asyncio.gather(*(owner.reserve(app, app, [plan], 30.0) for app in "abcd"))
    assert sum(not isinstance(answer, NoLease) for answer in answers) == 1
    refusals = [answer.message for answer in answers if isinstance(answer, NoLease)]
    assert all("14.0 GiB wanted, 10.0 GiB to be had" in message for message in refusals)


async def test_figures_from_before_a_load_never_stand_for_the_time_after_it(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    owner = await world.start()
    some(await owner.reserve("a", "a", [gpu_plan((CARD, 14 * GIB))], 30.0))
    replica = start_process()
    lease = got(await owner.claim("a", "r1", replica.pid))
    world.clock.now += 1.1
    # A reading that began while the card was empty ends after the engine has loaded and settled.
    gate = world.machine.go_on = asyncio.Event()
    asked = asyncio.create_task(owner.reserve("b", "b", [gpu_plan((CARD, 14 * GIB))], 30.0))
    await world.machine.reading.wait()
    world.machine.used[0] = 14 * GIB
    settled = asyncio.create_task(owner.settle(lease.lease_id, replica.pid))
    await asyncio.sleep(0)
    gate.set()
    await settled
    assert isinstance(await asked, NoLease)
    assert isinstance(await owner.reserve("c", "c", [gpu_plan((CARD, 14 * GIB))], 30.0), NoLease)


FULL = gpu_plan((CARD, 14 * GIB))


async def fill_and_release(world: World, owner: NodeOwner, pid: int) -> None:
    """An engine has loaded and has the whole card; then nobody wants it any more, and its replica ends."""
    some(await owner.reserve("a", "a", [FULL], 30.0))
    lease = got(await owner.claim("a", "r1", pid))
    world.machine.used[0] = 14 * GIB
    await owner.settle(lease.lease_id, pid)
    await owner.release("a")


async def test_what_an_engine_had_is_free_as_soon_as_it_is_gone(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """Figures of a moment ago have it still, and its lease is over: it would be taken for a stranger's."""
    owner, replica = await world.start(), start_process()
    await fill_and_release(world, owner, replica.pid)
    replica.kill()
    replica.wait(10)
    world.machine.used[0] = 0
    some(await owner.reserve("b", "b", [FULL], 30.0))


async def test_what_an_engine_had_is_free_while_its_replica_still_ends(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    owner, replica = await world.start(), start_process()
    await fill_and_release(world, owner, replica.pid)
    assert isinstance(await owner.reserve("b", "b", [FULL], 30.0), NoLease)
    world.machine.used[0] = 0
    some(await owner.reserve("b", "b", [FULL], 30.0))


async def test_what_an_engine_has_is_measured(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    owner = await world.start()
    some(await owner.reserve("p", "m", [gpu_plan((CARD, 10 * GIB), ram_bytes=GIB)], 30.0))
    replica = start_process()
    lease = got(await owner.claim("p", "r1", replica.pid))
    world.machine.on_gpu = [
        GPUProcess(replica.pid, 0, CARD.uuid, CARD.pci_bus_id, 8 * GIB),
        GPUProcess(1, 0, CARD.uuid, CARD.pci_bus_id, 5 * GIB),
    ]
    world.machine.used[0] = 13 * GIB
    settled = await owner.settle(lease.lease_id, replica.pid)
    assert settled.planned == (Claim("GPU-0", 10 * GIB), Claim(RAM, GIB))
    on_card, in_ram = settled.use.claims
    assert on_card == Claim("GPU-0", 8 * GIB)
    assert 2**20 < in_ram.size_bytes < 2**26
    state = await owner.look()
    assert state.leases[0].state is LeaseState.SETTLED
    assert state.outstanding.claims == (Claim(RAM, GIB - settled.use.ram_shown_bytes),)


async def test_a_driver_that_lists_no_processes_leaves_the_cards_growth(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    owner = await world.start()
    world.machine.used[0] = 3 * GIB
    some(await owner.reserve("p", "m", [gpu_plan((CARD, 5 * GIB)), gpu_plan((CARD, 6 * GIB))], 30.0))
    replica, other = start_process(), start_process()
    first = got(await owner.claim("p", "r1", replica.pid))
    world.machine.used[0] = 7 * GIB
    settled = await owner.settle(first.lease_id, replica.pid)
    assert settled.use.claims[0] == Claim("GPU-0", 4 * GIB)
    # Somebody else is loading on the card: growth says nothing of either.
    second = got(await owner.claim("p", "r2", other.pid))
    world.machine.used[0] = 12 * GIB
    assert "GPU-0" not in {one.device for one in (await owner.settle(first.lease_id, replica.pid)).use.claims}
    assert Claim("GPU-0", 5 * GIB) in (await owner.settle(second.lease_id, other.pid)).use.claims


async def test_two_that_load_at_once_cannot_be_told_apart_by_growth(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    owner = await world.start()
    some(await owner.reserve("p", "m", [gpu_plan((CARD, 5 * GIB)), gpu_plan((CARD, 6 * GIB))], 30.0))
    for name in ("r1", "r2"):
        replica = start_process()
        got(await owner.claim("p", name, replica.pid))
    world.machine.used[0] = 7 * GIB
    for lease_id in ("p.0", "p.1"):
        settled = await owner.settle(lease_id, replica.pid)
        assert [one.device for one in settled.use.claims] == [RAM]


async def test_a_killed_holders_lease_is_its_apps_again_and_ends_in_time(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    owner = await world.start()
    plan = cpu_plan(30 * GIB)
    some(await owner.reserve("p", "m", [plan], 5.0))
    replica = start_process()
    lease = got(await owner.claim("p", "r1", replica.pid))
    world.clock.now += 100.0
    (report,) = (await owner.look()).leases
    assert (report.state, report.replica_id, report.expires_in_s) == (LeaseState.HELD, "r1", None)
    os.kill(replica.pid, signal.SIGKILL)
    # The owner's own watch, without anybody asking it.
    await until(lambda: '"reserved"' in (world.folder / "run" / "p.0.lease").read_text())
    (report,) = (await owner.look()).leases
    assert (report.state, report.replica_id, report.expires_in_s) == (LeaseState.RESERVED, None, 20.0)
    assert isinstance(await owner.reserve("q", "q", [plan], 5.0), NoLease)
    heir = start_process()
    again = got(await owner.claim("p", "r2", heir.pid))
    assert (again.lease_id, again.plan) == (lease.lease_id, plan)
    heir.kill()
    heir.wait(timeout=10)
    assert [one.replica_id for one in (await owner.look()).leases] == [None]
    world.clock.now += 20.0
    assert (await owner.look()).leases == ()
    some(await owner.reserve("q", "q", [plan], 5.0))


async def test_a_release_that_overtakes_its_reservation_leaves_nothing_behind(world: World) -> None:
    owner = await world.start()
    world.machine.go_on = gate = asyncio.Event()
    reserving = asyncio.create_task(owner.reserve("p", "m", [cpu_plan(GIB)], 30.0))
    await asyncio.wait_for(world.machine.reading.wait(), 10)
    await owner.release("p")
    gate.set()
    assert await reserving == NoLease("p was released on this node: nobody wants it any more")
    assert (await owner.look()).leases == ()
    some(await owner.reserve("q", "m", [cpu_plan(GIB)], 30.0))


async def test_a_claim_needs_a_process_that_is_here(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    owner = await world.start()
    some(await owner.reserve("p", "m", [cpu_plan(GIB)], 30.0))
    gone = start_process()
    gone.kill()
    gone.wait(timeout=10)
    answer = await owner.claim("p", "r1", gone.pid)
    assert answer == NoLease(f"replica r1 has no process {gone.pid} on node box-7")
    with pytest.raises(WrongState, match=r"nobody holds a lease p\.0 on node box-7"):
        await owner.settle("p.0", os.getpid())


async def test_a_restarted_owner_rebuilds_its_book_from_what_runs(
    world: World, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    owner = await world.start()
    some(await owner.reserve("p", "m", [cpu_plan(GIB), cpu_plan(GIB)], 60.0))
    lives, dies = start_process(), start_process()
    got(await owner.claim("p", "r1", lives.pid))
    got(await owner.claim("p", "r2", dies.pid))
    before = (await owner.look()).leases
    dies.kill()
    dies.wait(timeout=10)
    owner = await world.start()
    first, second = (await owner.look()).leases
    assert first == before[0]
    assert (second.state, second.replica_id) == (LeaseState.RESERVED, None)
    assert second == replace(
        before[1], state=LeaseState.RESERVED, replica_id=None, pid=None, expires_in_s=60.0
    )


async def test_renewing_says_which_apps_have_leases_here(world: World) -> None:
    owner = await world.start()
    some(await owner.reserve("p", "m", [cpu_plan(GIB)], 5.0))
    world.clock.now += 4.0
    assert await owner.renew(["p", "lost"], 5.0) == {"p"}
    world.clock.now += 4.0
    assert await owner.renew([], 5.0) == frozenset()
    assert len((await owner.look()).leases) == 1
    await owner.release("p")
    assert (await owner.look()).leases == ()


async def test_what_cannot_be_written_down_is_not_promised(world: World) -> None:
    owner = await world.start()
    blocker = world.folder / "run" / "p.1.new"
    blocker.mkdir()
    plans = [cpu_plan(GIB), cpu_plan(GIB)]
    with pytest.raises(DiskFull, match="node box-7 cannot write its leases down"):
        await owner.reserve("p", "m", plans, 60.0)
    assert (await owner.look()).leases == ()
    blocker.rmdir()
    await until(lambda: not list((world.folder / "run").glob("*.lease")))
    assert len(some(await owner.reserve("p", "m", plans, 60.0))) == 2


async def test_files_on_this_node(world: World) -> None:
    owner = await world.start()
    path = write_gguf(world.folder / "models" / "tiny.gguf")
    missing = str(world.folder / "models" / "none.gguf")
    assert await owner.has_source(str(path))
    assert (await owner.facts(str(path))).path == str(path)
    assert not await owner.has_source(missing)
    assert not await owner.has_source("hf:org/name")
    with pytest.raises(ModelNotFound, match=r"^node box-7: .*none\.gguf"):
        await owner.facts(missing)


async def fetched(
    owner: NodeOwner, ticket: str, reached: Callable[[FetchState], bool] = lambda state: state.is_over
) -> FetchState:
    async def there() -> bool:
        state = await owner.fetch_progress(ticket)
        return state is not None and reached(state)

    await until(there, 20.0)
    state = await owner.fetch_progress(ticket)
    assert state is not None
    return state


async def test_a_file_is_fetched_once_for_all_who_ask(world: World, tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "big.gguf", elements=600_000).read_bytes()
    hub = StandInHub()
    hub.repos["o/n"] = Repo({"big.gguf": content})
    release = hub.faults.stall["big.gguf"] = threading.Event()
    with hub.running():
        world.hub = hub.endpoint
        owner = await world.start()
        await owner.fetch("hf:o/n", "t1")
        assert await asyncio.to_thread(hub.stalled.wait, 10)
        state = await owner.fetch("hf:o/n", "t2")
        assert not state.is_over
        await owner.drop_fetch("t1")
        assert await owner.fetch_progress("t1") is None
        state = await fetched(owner, "t2", lambda state: bool(state.progress and state.progress.done_bytes))
        assert state.progress is not None
        assert (state.progress.stage, state.progress.total_bytes) == ("download", len(content))
        release.set()
        state = await fetched(owner, "t2")
        assert state.error is None
        assert state.facts is not None
        assert len(hub.requests("GET", "storage/o/n/big.gguf")) == 1
        assert await owner.has_source("hf:o/n")
        await owner.fetch("hf:o/none", "t3")
        failed = await fetched(owner, "t3")
        assert isinstance(failed.error, ModelNotFound)
        assert pickle.loads(pickle.dumps(failed)).error.message == failed.error.message  # noqa: S301


async def test_a_release_ends_the_download_for_the_app(world: World, tmp_path: Path) -> None:
    hub = StandInHub()
    hub.repos["o/n"] = Repo({"big.gguf": write_gguf(tmp_path / "big.gguf", elements=600_000).read_bytes()})
    release = hub.faults.stall["big.gguf"] = threading.Event()
    with hub.running():
        world.hub = hub.endpoint
        owner = await world.start()
        await owner.fetch("hf:o/n", "app")
        await owner.fetch("hf:o/n", "other")
        assert await asyncio.to_thread(hub.stalled.wait, 10)
        await owner.release("app")
        assert await owner.fetch_progress("app") is None
        assert await owner.fetch_progress("other") is not None, "another app waits for the same files"
        with pytest.raises(WrongState, match="app was released on this node"):
            await owner.fetch("hf:o/n", "app")
        release.set()
        assert (await fetched(owner, "other")).error is None
