"""The owner of one node's memory: its lease book, what is there to lease, and the files of models."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from xgen_ray.errors import DiskFull, ModelNotFound, WrongState
from xgen_ray.hardware import GPUProcesses, NodeSnapshot, NodeUsage
from xgen_ray.models.shelf import Shelf
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.claims import RAM, Claim
from xgen_ray.placement.types import BackendStatus, Plan
from xgen_ray.serving import leases
from xgen_ray.serving.fetches import Fetches, FetchState
from xgen_ray.serving.holders import process_start
from xgen_ray.serving.lease_journal import LeaseJournal, is_held
from xgen_ray.serving.leases import Book, Ground, Holder, Lease, LeaseState, NoLease
from xgen_ray.serving.measure import Growth, engine_use, gpus_of, ram_of, tree_of
from xgen_ray.serving.node_state import LeaseFacts, NodeIdentity, NodeState, Settled, Versions, lease_facts
from xgen_ray.serving.sources import SourceFinder

logger = logging.getLogger(__name__)

# More than can still have words of control on the way.
KEPT_RELEASED: Final = 256
USAGE_AGE_S: Final = 1.0
WATCH_S: Final = 0.5


class Machine(Protocol):
    """What the owner asks of its node: facts that hardly change, live figures, who has GPU memory, and what
    would start a plan.
    """

    async def hardware(self) -> tuple[NodeSnapshot, tuple[BackendStatus, ...]]: ...

    async def usage(self) -> NodeUsage: ...

    async def processes(self) -> GPUProcesses: ...

    async def rehearse(self, plan: Plan) -> tuple[str, ...]: ...


class LiveUsage:
    """The node's live figures, read once for all who ask within a second."""

    def __init__(self, machine: Machine, clock: Callable[[], float]) -> None:
        self._machine = machine
        self._clock = clock
        self._lock = asyncio.Lock()
        self._known: tuple[int, float, NodeUsage] | None = None
        self._changes = 0

    def outdate(self) -> None:
        """Something has changed that the figures must show: those begun before now are not used again."""
        self._changes += 1

    async def read(self) -> NodeUsage:
        """Figures that were begun at most a second ago, and after the last change."""
        async with self._lock:
            if self._known is not None and self._clock() - self._known[1] > USAGE_AGE_S:
                self._known = None
            while self._known is None or self._known[0] != self._changes:
                changes, began = self._changes, self._clock()
                self._known = changes, began, await self._machine.usage()
            return self._known[2]


class NodeOwner:
    """Belongs to one event loop. A book is never left half-changed: between reading it, deciding and
    writing it down there is no await, so callers take their turns by themselves.

    ``start`` first; then every method may be called at any time, also again after a lost answer.
    """

    def __init__(
        self,
        node: NodeIdentity,
        machine: Machine,
        sources: SourceFinder,
        journal: LeaseJournal,
        versions: Versions,
        *,
        settings: str = "",
        clock: Callable[[], float] = time.monotonic,
        grace_s: float = leases.RESTART_GRACE_S,
    ) -> None:
        self._node = node
        self._machine = machine
        self._sources = sources
        self._journal = journal
        self._versions = versions
        self._settings = settings
        self._clock = clock
        self._grace_s = grace_s
        self._usage = LiveUsage(machine, clock)
        self._growth = Growth()
        self._fetches = Fetches(sources)
        self._book = Book()
        # The apps that were released last. A name is never used twice, so nothing more is due to them.
        self._released: deque[str] = deque(maxlen=KEPT_RELEASED)
        self._unsaved = False
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Takes the book over from the last owner, as far as what it says still runs."""
        self._book = self._journal.read(self._clock(), self._grace_s)
        if self._book.leases:
            logger.info("lease book read: node=%s leases=%d", self._node.name, len(self._book.leases))
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        self._fetches.close()
        self._journal.close()

    async def look(self) -> NodeState:
        """Everything that control needs of this node. The first look takes seconds: engines are tried."""
        snapshot, statuses = await self._machine.hardware()
        usage = await self._figures()
        now = self._clock()
        return NodeState(
            node=self._node,
            snapshot=snapshot,
            statuses=statuses,
            usage=usage,
            leases=tuple(lease_facts(lease, now) for lease in self._book.leases.values()),
            outstanding=leases.outstanding(self._book, Ground(snapshot, usage).unseen()),
            taken=leases.taken(self._book),
            leased=leases.leased_gpus(self._book),
            versions=self._versions,
            settings=self._settings,
        )

    async def reserve(
        self, app: str, model: str, plans: Sequence[Plan], ttl_s: float
    ) -> tuple[LeaseFacts, ...] | NoLease:
        """One lease per plan for ``ttl_s``, checked against what is free now; all of them, or none and why.

        Raises DiskFull if the leases cannot be written down.
        """
        snapshot, _ = await self._machine.hardware()
        usage = await self._figures()
        if app in self._released:
            return _released(app)
        now = self._clock()
        book = leases.reserve(
            self._book, Ground(snapshot, usage), app, model, plans, now=now, expires_at=now + ttl_s
        )
        if isinstance(book, NoLease):
            logger.info("lease refused: app=%s reason=%s", app, book.message)
            return book
        self._promise(book)
        return tuple(lease_facts(lease, now) for lease in book.of(app))

    async def renew(self, apps: Collection[str], ttl_s: float) -> frozenset[str]:
        """Control still wants ``apps``. Returns those that have leases here."""
        self._sweep()
        self._keep(leases.renew(self._book, apps, self._clock() + ttl_s))
        return frozenset(lease.app for lease in self._book.leases.values() if lease.app in apps)

    async def release(self, app: str) -> None:
        """Nobody wants ``app`` any more, nor the files that are fetched for it; what its replicas hold is
        free once they are gone. What was asked for it before and is still on its way comes to nothing.
        """
        if app not in self._released:
            self._released.append(app)
        self._fetches.drop(app)
        self._sweep()
        self._keep(leases.release(self._book, app))

    async def relocate(self, app: str, facts: ModelFacts) -> None:
        """The files of ``app``'s model are here: replicas that claim from now on are told where."""
        self._sweep()
        self._keep(leases.relocate(self._book, app, facts))

    async def claim(self, app: str, replica_id: str, pid: int) -> Lease | NoLease:
        """A lease of ``app`` for the replica whose process is ``pid``, until that process is gone."""
        usage = await self._figures()
        started = process_start(pid)
        if started is None:
            return NoLease(f"replica {replica_id} has no process {pid} on node {self._node.name}")
        answer = leases.claim(self._book, app, Holder(replica_id, pid, started))
        if isinstance(answer, NoLease):
            return answer
        book, lease = answer
        if book is not self._book:
            self._promise(book)
            self._watch_growth(lease, usage)
        return lease

    async def settle(self, lease_id: str, engine_pid: int) -> Settled:
        """The engine has loaded: measures what it has. Raises WrongState for a lease that nobody holds."""
        held = self._held(lease_id)
        pids = await asyncio.to_thread(tree_of, engine_pid)
        ram = await asyncio.to_thread(ram_of, pids)
        on_gpus = any(one.device != RAM for one in held.claims)
        processes = (await self._machine.processes()).processes if on_gpus else ()
        # Soon the figures speak for the lease, so they must be of a time when its engine had loaded.
        self._usage.outdate()
        grown = self._growth.read(lease_id, await self._usage.read()) if on_gpus else {}
        use = engine_use(held.claims, ram, gpus_of(pids, processes), grown)
        if self._held(lease_id).holder != held.holder:
            raise WrongState(f"lease {lease_id} has changed hands while its engine was measured")
        self._keep(leases.settle(self._book, lease_id, use))
        return Settled(held.claims, use)

    async def shelf(self) -> Shelf:
        """What lies in this node's model directories."""
        return await asyncio.to_thread(self._sources.shelf)

    async def has_source(self, model: str) -> bool:
        """Whether the files of ``model`` are on this node."""
        return await asyncio.to_thread(self._sources.present, model)

    async def facts(self, model: str) -> ModelFacts:
        """Read from the files on this node. Raises ModelNotFound, with the node's name, without them."""
        try:
            return await asyncio.to_thread(self._sources.facts_if_present, model)
        except ModelNotFound as error:
            raise ModelNotFound(f"node {self._node.name}: {error.message}") from error

    async def rehearse(self, plan: Plan) -> tuple[str, ...]:
        """The command that would start ``plan`` here. Raises what the start would be refused with."""
        return await self._machine.rehearse(plan)

    async def fetch(self, model: str, ticket: str, commit: str | None = None) -> FetchState:
        """Brings the files of ``model`` here, as they were at ``commit``; returns at once. ``ticket`` is the
        caller's own name for it, the app's if it is for one. Raises WrongState for one that was released.
        """
        if ticket in self._released:
            raise WrongState(_released(ticket).message)
        return self._fetches.start(ticket, model, commit)

    async def fetch_progress(self, ticket: str) -> FetchState | None:
        """None for a ticket that is not known, such as one of an earlier life of this owner: fetch again."""
        return self._fetches.look(ticket)

    async def drop_fetch(self, ticket: str) -> None:
        """Nobody needs the fetch any more: it is cancelled unless another ticket is for the same files."""
        self._fetches.drop(ticket)

    def _held(self, lease_id: str) -> Lease:
        lease = self._book.leases.get(lease_id)
        if lease is None or lease.holder is None:
            raise WrongState(f"nobody holds a lease {lease_id} on node {self._node.name}: claim one first")
        return lease

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self._sweep()

    async def _figures(self) -> NodeUsage:
        """Live figures of the same time as the book: what an engine had that is no longer in that would look
        like a stranger's in older ones.
        """
        self._sweep()
        if any(lease.released for lease in self._book.leases.values()):
            # It is ending: its memory may be free already, while its holder is still there.
            self._usage.outdate()
        while True:
            usage = await self._usage.read()
            if not self._sweep():
                return usage

    def _sweep(self) -> bool:
        """What time and death have done to the book since the last look at it; whether a holder has died."""
        dead = [one for one in self._book.leases.values() if one.holder is not None and not is_held(one)]
        for lease in dead:
            self._end(lease)
        if dead:
            self._usage.outdate()
        book = leases.expire(self._book, self._clock())
        if book is not self._book or self._unsaved:
            self._keep(book)
        return bool(dead)

    def _end(self, lease: Lease) -> None:
        self._growth.forget(lease.lease_id)
        self._growth.disturb(_gpus(lease.claims))
        self._keep(leases.holder_died(self._book, lease.lease_id, self._clock(), self._grace_s))

    def _watch_growth(self, lease: Lease, usage: NodeUsage) -> None:
        loading = (
            one
            for other in self._book.leases.values()
            if other.state is LeaseState.HELD and other.lease_id != lease.lease_id
            for one in other.claims
        )
        shared = _gpus(tuple(loading))
        self._growth.start(lease.lease_id, lease.claims, usage)
        self._growth.disturb(shared & _gpus(lease.claims))

    def _promise(self, book: Book) -> None:
        """The book from now on, once it is on disk: what was promised must survive this process."""
        try:
            self._journal.save(book)
        except OSError as error:
            self._unsaved = True
            raise DiskFull(
                f"node {self._node.name} cannot write its leases down: {error.strerror}; make room for a few "
                "kilobytes in its run directory"
            ) from error
        self._adopt(book)

    def _keep(self, book: Book) -> None:
        """The book from now on, as it is what has happened; the watcher writes it again if it must."""
        try:
            self._journal.save(book)
            self._unsaved = False
        except OSError as error:
            if not self._unsaved:
                logger.warning("leases not written down: node=%s error=%s", self._node.name, error)
            self._unsaved = True
        self._adopt(book)

    def _adopt(self, book: Book) -> None:
        before = self._book.leases
        self._book = book
        for lease_id, lease in book.leases.items():
            old = before.get(lease_id)
            if old is None or (old.state, old.holder, old.released) != (
                lease.state,
                lease.holder,
                lease.released,
            ):
                logger.info("lease changed: lease=%s state=%s holder=%s", lease_id, lease.state, lease.holder)
        for lease_id in before.keys() - book.leases.keys():
            logger.info("lease ended: lease=%s", lease_id)


def _released(app: str) -> NoLease:
    return NoLease(f"{app} was released on this node: nobody wants it any more")


def _gpus(claims: Collection[Claim]) -> frozenset[str]:
    return frozenset(one.device for one in claims if one.device != RAM)
