"""Node owners in a real Ray cluster of two nodes on this machine."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from deployments.node_owner import NodeOwnerActor
from tests.models.build import write_gguf
from tests.serving.lease_builders import cpu_plan
from xgen_ray.errors import ModelNotFound, NotReady, WrongState
from xgen_ray.placement.claims import RAM
from xgen_ray.serving.leases import Lease, LeaseState, NoLease
from xgen_ray.serving.node_state import LeaseFacts, NodeState
from xgen_ray.serving.nodes import RESTING, Nodes, NodesSeen, OwnerSettings
from xgen_ray.serving.owner_link import OwnerLink, owner_name

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

GIB = 2**30


@dataclass
class Fleet:
    cluster: Any
    settings: OwnerSettings
    folder: Path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "models").mkdir()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "object_store_memory": 80 * 2**20,
            "labels": {"xgen-ray/name": "desk", "xgen-ray/gpu-type": "cpu"},
        },
    )
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        yield Fleet(
            cluster,
            OwnerSettings(
                model_dirs=(folder / "models",), cache_dir=folder / "cache", run_dir=folder / "run"
            ),
            folder,
        )
    finally:
        ray.shutdown()
        end: Callable[[], None] = cluster.shutdown
        end()


@pytest.fixture
def nodes(fleet: Fleet) -> Nodes:
    """Control's view, as a control that has just started has it."""
    return Nodes(fleet.settings, NodeOwnerActor)


@pytest.fixture
def start_process() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate(timeout=10)


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := await condition()):
        assert time.monotonic() < deadline, "it has not come true"
        await asyncio.sleep(0.1)
    return answer


async def all_answer(nodes: Nodes) -> NodesSeen:
    async def seen() -> NodesSeen | None:
        found = await nodes.look()
        return found if len(found.states) == 2 else None

    # The first look starts both owners at once.
    found: NodesSeen = await until(seen, 150.0)
    return found


async def leases_of(nodes: Nodes, node_id: str) -> tuple[LeaseFacts, ...]:
    async def seen() -> list[NodeState]:
        return [state for state in (await nodes.look()).states if state.node.node_id == node_id]

    found: list[NodeState] = await until(seen)
    return found[0].leases


def owner_process(fleet: Fleet, node_id: str) -> psutil.Process:
    """The owner is the one that keeps its journal's lock."""
    lock = str(fleet.folder / "run" / node_id / "owner.lock")
    for process in psutil.process_iter(["name"]):
        # One that is about to end has no files to tell of.
        with contextlib.suppress(psutil.Error):
            if "NodeOwner" in (process.info["name"] or "") and any(
                file.path == lock for file in process.open_files()
            ):
                return process
    raise AssertionError(f"nobody keeps {lock}")


def granted(answer: Lease | NoLease) -> Lease:
    assert not isinstance(answer, NoLease), answer
    return answer


async def test_every_node_has_an_owner_that_knows_its_node(fleet: Fleet, nodes: Nodes) -> None:
    early = await nodes.look(0.01)
    assert early.states == ()
    assert {silent.reason for silent in early.silent} == {"its owner has not answered in 0.01 s"}
    states = (await all_answer(nodes)).states
    desk, plain = sorted(states, key=lambda state: not state.node.tagged)
    assert (desk.node.name, desk.node.tagged) == ("desk", True)
    assert (plain.node.name, plain.node.tagged) == (os.uname().nodename, False)
    assert {state.node.node_id for state in states} == {
        node.node_id for node in fleet.cluster.list_all_nodes()
    }
    assert desk.node.host == fleet.cluster.head_node.node_ip_address
    assert desk.versions.ray == ray.__version__
    assert desk.snapshot.host.memory_total_bytes > GIB
    assert desk.usage.memory_available_bytes > 0
    assert {status.backend for status in desk.statuses}
    # A control that starts anew finds the same owners.
    before = {state.node.node_id: owner_process(fleet, state.node.node_id).pid for state in states}
    await all_answer(Nodes(fleet.settings, NodeOwnerActor))
    assert before == {node_id: owner_process(fleet, node_id).pid for node_id in before}


async def test_files_are_told_by_the_node_that_has_them(fleet: Fleet, nodes: Nodes) -> None:
    (desk,) = [state for state in (await all_answer(nodes)).states if state.node.tagged]
    path = str(write_gguf(fleet.folder / "models" / "tiny.gguf"))
    assert await nodes.has_source(desk.node.node_id, path)
    assert (await nodes.facts(desk.node.node_id, path)).path == path
    with pytest.raises(ModelNotFound, match=r"^node desk: "):
        await nodes.facts(desk.node.node_id, path.replace("tiny", "none"))


async def test_leases_over_deaths_of_owner_and_holder(
    fleet: Fleet, nodes: Nodes, start_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    (desk,) = [state for state in (await all_answer(nodes)).states if state.node.tagged]
    node_id, link = desk.node.node_id, OwnerLink(desk.node.node_id)
    # More than half of what models get, on a machine with 4 GiB available as well.
    plan = cpu_plan(int((desk.usage.memory_available_bytes - 2 * GIB) * 0.85), threads=1)

    answers = await asyncio.gather(*(nodes.reserve(node_id, app, app, [plan], 60.0) for app in "ab"))
    (refusal,) = [answer for answer in answers if isinstance(answer, NoLease)]
    assert "RAM: " in refusal.message
    (winner,) = [answer[0].app for answer in answers if not isinstance(answer, NoLease)]

    replica = start_process()
    lease = granted(await link.claim(winner, "r1", replica.pid))
    assert lease.plan == plan
    settled = await link.settle(lease.lease_id, replica.pid)
    assert [one.device for one in settled.use.claims] == [RAM]
    with pytest.raises(WrongState, match="nobody holds a lease other"):
        await link.settle("other", replica.pid)

    # The owner dies, the holder lives on: nothing is lost.
    (before,) = await leases_of(nodes, node_id)
    old = owner_process(fleet, node_id).pid
    os.kill(old, signal.SIGKILL)
    (after,) = await leases_of(nodes, node_id)
    assert owner_process(fleet, node_id).pid != old
    assert after == before
    assert isinstance(await nodes.reserve(node_id, "c", "c", [plan], 60.0), NoLease)

    # The holder dies: its lease waits for the next replica.
    os.kill(replica.pid, signal.SIGKILL)
    (report,) = await until(lambda: _reserved(nodes, node_id))
    assert (report.app, report.replica_id) == (winner, None)
    heir = start_process()
    again = granted(await link.claim(winner, "r2", heir.pid))
    assert again.plan == plan

    # Nobody wants the app any more: free when its last replica is gone.
    await nodes.release(node_id, winner)
    assert [one.released for one in await leases_of(nodes, node_id)] == [True]
    os.kill(heir.pid, signal.SIGKILL)
    assert await until(lambda: _no_leases(nodes, node_id))


async def _no_leases(nodes: Nodes, node_id: str) -> bool:
    return await leases_of(nodes, node_id) == ()


async def _reserved(nodes: Nodes, node_id: str) -> tuple[LeaseFacts, ...]:
    leases = await leases_of(nodes, node_id)
    return leases if all(one.state is LeaseState.RESERVED for one in leases) else ()


async def test_a_reservation_that_nobody_renews_ends(nodes: Nodes) -> None:
    node_id = (await all_answer(nodes)).states[0].node.node_id
    answer = await nodes.reserve(node_id, "p", "m", [cpu_plan(2**20, threads=1)], 0.5)
    assert not isinstance(answer, NoLease)

    async def gone() -> bool:
        return not await leases_of(nodes, node_id)

    assert await until(gone, 10.0)


async def test_a_node_that_rests_has_no_owner_until_it_is_woken(fleet: Fleet, nodes: Nodes) -> None:
    states = (await all_answer(nodes)).states
    plain = next(state.node.node_id for state in states if not state.node.tagged)
    await nodes.rest(frozenset({plain}))
    assert len((await nodes.look()).states) == 2, "what it has is known"
    await until_gone(fleet, plain)
    stranger = Nodes(fleet.settings, NodeOwnerActor)
    await stranger.rest(frozenset({plain}))
    seen = await stranger.look()
    assert [(silent.node.node_id, silent.reason) for silent in seen.silent] == [(plain, RESTING)]

    async def woken() -> bool:
        return len((await nodes.look(wake=True)).states) == 2

    await until(woken)
    await nodes.rest(frozenset({plain}))
    assert len((await nodes.look()).states) == 2, "it was looked at for a place a moment ago"


async def until_gone(fleet: Fleet, node_id: str) -> None:
    async def gone() -> bool:
        try:
            owner_process(fleet, node_id)
        except AssertionError:
            return True
        return False

    await until(gone)


async def test_owners_with_other_settings_are_started_anew_and_those_of_dead_nodes_end(
    fleet: Fleet, nodes: Nodes
) -> None:
    plain, desk = sorted((await all_answer(nodes)).states, key=lambda state: state.node.tagged)
    node_id = desk.node.node_id
    await nodes.reserve(node_id, "p", "m", [cpu_plan(2**20, threads=1)], 60.0)
    old = owner_process(fleet, node_id).pid
    fleet.cluster.remove_node(
        next(node for node in fleet.cluster.worker_nodes if node.node_id == plain.node.node_id)
    )
    nodes = Nodes(replace(fleet.settings, hub_endpoint="http://127.0.0.1:9"), NodeOwnerActor)
    (lease,) = await leases_of(nodes, node_id)
    assert (lease.app, lease.state) == ("p", LeaseState.RESERVED)
    assert owner_process(fleet, node_id).pid != old

    async def alone() -> bool:
        seen = await nodes.look()
        names = ray.util.list_named_actors(all_namespaces=True)
        return len(seen.states) == 1 and owner_name(plain.node.node_id) not in {row["name"] for row in names}

    assert await until(alone)
    with pytest.raises(NotReady, match="has left the cluster"):
        await nodes.renew(plain.node.node_id, ["p"], 1.0)

    # An owner that cannot start says why, and starts when it can.
    blocked = fleet.folder / "blocked"
    blocked.write_text("")
    nodes = Nodes(replace(fleet.settings, run_dir=blocked), NodeOwnerActor)

    async def refused() -> bool:
        reasons = [silent.reason for silent in (await nodes.look()).silent]
        return any(f"the run directory {blocked}/{node_id} of" in reason for reason in reasons)

    assert await until(refused)
    blocked.unlink()
    assert await leases_of(nodes, node_id) == ()
