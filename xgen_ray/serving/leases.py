"""A node's lease book: which model was promised which memory. Functions of data; the owner keeps the book.

    reserve ─► RESERVED ──claim──► HELD ──settle──► SETTLED
                  ▲ │                │                 │
                  │ └─ expire        └── holder died ──┤
                  └────────────────────────────────────┘   or gone, if its app was released

A lease that is reserved or held counts in full. A settled one is in the live figures, but for the RAM that
a model has mapped from its file and may lose to nobody.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.budget import budgets
from xgen_ray.placement.claims import (
    RAM,
    Claim,
    Outstanding,
    claims_of,
    gpu_key,
    threads_of,
    with_outstanding,
)
from xgen_ray.placement.sizes import gib, gib_pair
from xgen_ray.placement.types import DeviceBudget, Plan

# Serve needs a moment to start a replica in a dead one's place, whatever control is doing.
RESTART_GRACE_S: Final = 30.0


class LeaseState(StrEnum):
    RESERVED = "reserved"
    HELD = "held"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True)
class Holder:
    """The replica that has a lease. ``started`` tells its process from a later one with the same id."""

    replica_id: str
    pid: int
    started: float


@dataclass(frozen=True, slots=True)
class EngineUse:
    """What an engine really has of each device, where that is known: a device that is missing is not.

    ``ram_shown_bytes`` is the part of its RAM that lowers what the system calls available. What it has
    mapped from files does not: the system would take that back, and the engine would crawl.
    """

    claims: tuple[Claim, ...]
    ram_shown_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """Memory of this node for one replica of an app, as its plan counted it.

    ``expires_at`` binds a reserved lease only: one that is held lasts as long as its holder. A ``released``
    lease ends with its holder instead of going back to its app. ``use`` is known of a settled one.
    """

    app: str
    number: int
    model: str
    plan: Plan
    claims: tuple[Claim, ...]
    threads: int
    expires_at: float
    state: LeaseState = LeaseState.RESERVED
    holder: Holder | None = None
    use: EngineUse | None = None
    released: bool = False

    @property
    def lease_id(self) -> str:
        return f"{self.app}.{self.number}"


@dataclass(frozen=True, slots=True)
class Book:
    """Every lease of a node by its id."""

    leases: Mapping[str, Lease] = field(default_factory=dict)

    def of(self, app: str) -> tuple[Lease, ...]:
        """The app's leases, in order."""
        found = (lease for lease in self.leases.values() if lease.app == app)
        return tuple(sorted(found, key=lambda lease: lease.number))

    def held_by(self, replica_id: str) -> Lease | None:
        holders = (lease for lease in self.leases.values() if lease.holder is not None)
        return next((one for one in holders if one.holder and one.holder.replica_id == replica_id), None)


@dataclass(frozen=True, slots=True)
class NoLease:
    """Why there is none, with the numbers."""

    message: str


@dataclass(frozen=True, slots=True)
class Ground:
    """The node as it is: what a reservation is checked against. ``usage`` is live, strangers included."""

    snapshot: NodeSnapshot
    usage: NodeUsage

    def unseen(self) -> frozenset[str]:
        """GPUs whose use is in no live figure, so that settled leases on them must go on counting."""
        seen = {gpu_key(gpu) for gpu in self.usage.gpus if gpu.memory_used_bytes is not None}
        return frozenset(gpu_key(gpu) for gpu in self.snapshot.detection.gpus) - seen


def reserve(
    book: Book, ground: Ground, app: str, model: str, plans: Sequence[Plan], *, now: float, expires_at: float
) -> Book | NoLease:
    """One lease per plan, all of them or none. The n-th plan is the app's n-th lease.

    Asking again with the same plans gives the same leases, held or not, and adds those that have ended.
    """
    book = expire(book, now)
    missing: list[Lease] = []
    for number, plan in enumerate(plans):
        lease = Lease(app, number, model, plan, claims_of(plan), threads_of(plan), expires_at)
        known = book.leases.get(lease.lease_id)
        if known is None:
            missing.append(lease)
        elif known.released:
            return NoLease(f"{app} was released on this node; its replicas are still ending")
        elif known.plan != plan:
            return NoLease(
                f"{app} has a lease {known.number} on this node with another plan; release it first"
            )
    for lease in missing:
        if shortage := _shortage(book, ground, lease) or _crowding(book, ground, lease):
            return NoLease(f"{model}: {shortage}")
        book = _with(book, lease)
    return renew(book, (app,), expires_at)


def claim(book: Book, app: str, holder: Holder) -> tuple[Book, Lease] | NoLease:
    """One free lease of ``app`` for ``holder``; the same one if it asks again."""
    mine = book.held_by(holder.replica_id)
    if mine is not None and mine.holder == holder and mine.app == app:
        return book, mine
    leases = book.of(app)
    for lease in leases:
        if lease.state is LeaseState.RESERVED:
            held = replace(lease, state=LeaseState.HELD, holder=holder, use=None)
            return _with(book, held), held
    if not leases:
        return NoLease(f"{app} has no lease on this node: it was never reserved, was released or has expired")
    names = ", ".join(sorted(lease.holder.replica_id for lease in leases if lease.holder))
    return NoLease(
        f"{app} has no free lease on this node: {len(leases)} of {len(leases)} are held, by {names}"
    )


def settle(book: Book, lease_id: str, use: EngineUse) -> Book:
    """The engine of a held lease has all that it will take; from now on the live figures show it."""
    lease = book.leases.get(lease_id)
    if lease is None or lease.state is LeaseState.RESERVED:
        return book
    return _with(book, replace(lease, state=LeaseState.SETTLED, use=use))


def holder_died(book: Book, lease_id: str, now: float, grace_s: float = RESTART_GRACE_S) -> Book:
    """The lease is its app's again, for the replica that Serve starts next; at least for ``grace_s``, since
    nobody may have asked for it anew while it was held.
    """
    lease = book.leases.get(lease_id)
    if lease is None or lease.state is LeaseState.RESERVED:
        return book
    if lease.released:
        return _without(book, lease_id)
    expires_at = max(lease.expires_at, now + grace_s)
    back = replace(lease, state=LeaseState.RESERVED, holder=None, use=None, expires_at=expires_at)
    return _with(book, back)


def renew(book: Book, apps: Collection[str], expires_at: float) -> Book:
    """Control still wants these apps: their leases last until ``expires_at`` at least."""
    leases = {
        lease_id: replace(lease, expires_at=max(lease.expires_at, expires_at))
        if lease.app in apps and not lease.released
        else lease
        for lease_id, lease in book.leases.items()
    }
    return Book(leases)


def relocate(book: Book, app: str, facts: ModelFacts) -> Book:
    """The app's plans with the model's files where they are on this node. What was claimed stays."""
    leases = {
        lease_id: replace(lease, plan=replace(lease.plan, facts=facts)) if lease.app == app else lease
        for lease_id, lease in book.leases.items()
    }
    return Book(leases)


def release(book: Book, app: str) -> Book:
    """Nobody wants the app any more. Memory that a replica still has stays leased until it is gone."""
    leases = {
        lease_id: replace(lease, released=True) if lease.app == app else lease
        for lease_id, lease in book.leases.items()
        if lease.app != app or lease.state is not LeaseState.RESERVED
    }
    return Book(leases)


def expire(book: Book, now: float) -> Book:
    """Without the reservations that nobody renewed."""
    leases = {
        lease_id: lease
        for lease_id, lease in book.leases.items()
        if lease.state is not LeaseState.RESERVED or lease.expires_at > now
    }
    return book if len(leases) == len(book.leases) else Book(leases)


def outstanding(book: Book, unseen: Collection[str] = ()) -> Outstanding:
    """What leases have been promised and the live figures do not show; and the threads of all of them.

    ``unseen`` are the devices without live figures.
    """
    promised: Counter[str] = Counter()
    for lease in book.leases.values():
        for one in lease.claims:
            promised[one.device] += _not_shown(lease, one, unseen)
    claims = tuple(Claim(device, size) for device, size in sorted(promised.items()) if size > 0)
    return Outstanding(claims, sum(lease.threads for lease in book.leases.values()))


def taken(book: Book) -> frozenset[str]:
    """Devices that belong to one lease alone."""
    return frozenset(one.device for lease in book.leases.values() for one in lease.claims if one.exclusive)


def leased_gpus(book: Book) -> tuple[str, ...]:
    """The GPUs that have leases, each once per lease."""
    return tuple(
        sorted(one.device for lease in book.leases.values() for one in lease.claims if one.device != RAM)
    )


def _not_shown(lease: Lease, claim: Claim, unseen: Collection[str]) -> int:
    if lease.state is not LeaseState.SETTLED or claim.device in unseen:
        return claim.size_bytes
    if claim.device != RAM:
        return 0
    # The rest of the claim is what an integrated GPU has in RAM, which the driver holds and all see.
    on_host = min(claim.size_bytes, lease.plan.footprint.host_bytes)
    return max(0, on_host - (lease.use.ram_shown_bytes if lease.use else 0))


def _shortage(book: Book, ground: Ground, lease: Lease) -> str | None:
    """Why ``lease`` cannot be added to ``book``, or None if it can."""
    usage = with_outstanding(ground.usage, ground.snapshot, outstanding(book, ground.unseen()))
    *on_gpus, host = budgets(ground.snapshot, usage)
    by_key = {gpu_key(budget.gpu): budget for budget in on_gpus if budget.gpu is not None}
    owned = taken(book)
    used = {one.device for other in book.leases.values() for one in other.claims}
    spilled = 0
    for one in lease.claims:
        if one.device == RAM:
            continue
        budget = by_key.get(one.device)
        if budget is None or budget.gpu is None:
            return f"{one.device} is not on this node any more"
        name = f"{budget.gpu.device_name} ({one.device})"
        if one.device in owned:
            return f"{name} is leased whole to {_names_on(book, one.device)}"
        if one.exclusive and one.device in used:
            return f"{name} is wanted whole and is leased to {_names_on(book, one.device)}"
        if one.size_bytes > budget.free_bytes:
            return _too_little(name, one.size_bytes, budget)
        spilled += max(0, one.size_bytes - (budget.free_bytes - budget.shared_bytes))
    in_ram = sum(one.size_bytes for one in lease.claims if one.device == RAM)
    if in_ram > host.free_bytes:
        return _too_little("RAM", in_ram, host)
    if spilled > in_ram - lease.plan.footprint.host_bytes:
        return (
            f"{gib(spilled)} of its GPU memory would lie in RAM, more than the "
            f"{gib(max(0, in_ram - lease.plan.footprint.host_bytes))} it was planned with"
        )
    return None


def _crowding(book: Book, ground: Ground, lease: Lease) -> str | None:
    """Threads that placement chose while others were still free. What a user asked for is not refused, and
    neither is the one thread that everybody gets.
    """
    chosen = any(note.option == "threads" for note in lease.plan.notes)
    leased, cores = outstanding(book).threads, ground.snapshot.host.cpu_count
    if not chosen or lease.threads <= 1 or leased + lease.threads <= cores:
        return None
    return f"{lease.threads} threads wanted, and {leased} of {cores} cores compute for other models"


def _too_little(name: str, wanted: int, budget: DeviceBudget) -> str:
    needed, free = gib_pair(wanted, budget.free_bytes)
    return f"{name}: {needed} wanted, {free} to be had ({budget.reason})"


def _names_on(book: Book, device: str) -> str:
    models = {lease.model for lease in book.leases.values() for one in lease.claims if one.device == device}
    return ", ".join(sorted(models))


def _with(book: Book, lease: Lease) -> Book:
    return Book({**book.leases, lease.lease_id: lease})


def _without(book: Book, lease_id: str) -> Book:
    return Book({other: lease for other, lease in book.leases.items() if other != lease_id})
