"""The lease book: the same memory is never promised twice, and nothing promised is lost."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.serving.lease_builders import (
    GIB,
    RESERVE,
    apu,
    card,
    cpu_plan,
    gpu_plan,
    ground,
    holder,
    snapshot,
    usage,
)
from xgen_ray.placement.claims import RAM, Claim
from xgen_ray.placement.types import Plan, ProfileNote
from xgen_ray.serving.lease_journal import LeaseJournal
from xgen_ray.serving.leases import (
    Book,
    EngineUse,
    Ground,
    Holder,
    Lease,
    LeaseState,
    NoLease,
    claim,
    expire,
    holder_died,
    outstanding,
    release,
    renew,
    reserve,
    settle,
    taken,
)

CARD = card()


def reserved(
    plans: Sequence[Plan],
    *,
    book: Book | None = None,
    on: Ground | None = None,
    app: str = "p",
    now: float = 0,
) -> Book:
    answer = reserve(book or Book(), on or ground(CARD), app, "m", plans, now=now, expires_at=now + 60)
    assert isinstance(answer, Book), answer
    return answer


def refused(
    plans: Sequence[Plan],
    *,
    book: Book | None = None,
    on: Ground | None = None,
    app: str = "p",
    now: float = 0,
) -> str:
    answer = reserve(book or Book(), on or ground(CARD), app, "m", plans, now=now, expires_at=now + 60)
    assert isinstance(answer, NoLease)
    return answer.message


def held(book: Book, app: str = "p", number: int = 1) -> tuple[Book, Lease]:
    answer = claim(book, app, holder(number))
    assert not isinstance(answer, NoLease), answer
    return answer


def promised(book: Book, device: str, unseen: frozenset[str] = frozenset()) -> int:
    return sum(one.size_bytes for one in outstanding(book, unseen).claims if one.device == device)


def test_a_lease_carries_what_it_was_planned_with() -> None:
    plan = gpu_plan((CARD, 10 * GIB), ram_bytes=GIB)
    (lease,) = reserved([plan]).of("p")
    assert (lease.lease_id, lease.app, lease.model, lease.plan) == ("p.0", "p", "m", plan)
    assert lease.claims == (Claim("GPU-0", 10 * GIB), Claim(RAM, GIB))
    assert (lease.state, lease.holder, lease.expires_at) == (LeaseState.RESERVED, None, 60.0)


def test_what_is_reserved_counts_until_the_live_figures_show_it() -> None:
    book = reserved([gpu_plan((CARD, 14 * GIB))])
    assert "Card 0 (GPU-0): 12.0 GiB wanted, 10.0 GiB to be had" in refused(
        [gpu_plan((CARD, 12 * GIB))], book=book, app="q"
    )
    book, lease = held(book)
    # Half loaded: the figures show a part of it already, which then counts twice rather than not at all.
    assert "5.0 GiB to be had" in refused(
        [gpu_plan((CARD, 12 * GIB))], book=book, on=ground(CARD, used={0: 5 * GIB}), app="q"
    )
    book = settle(book, lease.lease_id, EngineUse((Claim("GPU-0", 11 * GIB),)))
    loaded = ground(CARD, used={0: 11 * GIB})
    assert "11.0 GiB to be had" not in refused([gpu_plan((CARD, 14 * GIB))], book=book, on=loaded, app="q")
    reserved([gpu_plan((CARD, 13 * GIB))], book=book, on=loaded, app="q")


def test_memory_of_strangers_counts() -> None:
    strangers = ground(CARD, used={0: 20 * GIB}, ram_used=30 * GIB)
    assert "4.0 GiB free" in refused([gpu_plan((CARD, 5 * GIB))], on=strangers)
    assert "RAM: 9.0 GiB wanted, 8.0 GiB to be had" in refused([cpu_plan(9 * GIB)], on=strangers)


def test_plans_of_one_request_are_leased_together_or_not_at_all() -> None:
    plan = gpu_plan((CARD, 10 * GIB))
    assert "10.0 GiB wanted, 4.0 GiB to be had" in refused([plan, plan, plan])
    assert [lease.lease_id for lease in reserved([plan, plan]).of("p")] == ["p.0", "p.1"]


def test_asking_again_gives_the_same_leases_and_adds_what_is_missing() -> None:
    plan = gpu_plan((CARD, 10 * GIB))
    book, lease = held(reserved([plan]))
    full = ground(CARD, used={0: 20 * GIB})
    again = reserved([plan], book=book, on=full, now=30)
    assert again.of("p") == (replace(lease, expires_at=90.0),)
    assert len(reserved([plan, plan], book=book).of("p")) == 2
    assert "another plan" in refused([cpu_plan(GIB)], book=book)


def test_a_card_that_is_leased_whole_is_shared_with_nobody() -> None:
    one, other = card(0), card(1)
    both = ground(one, other)
    whole = gpu_plan((one, GIB), (other, GIB), split_mode="row")
    book = reserved([whole], on=both)
    assert taken(book) == {"GPU-0", "GPU-1"}
    assert "leased whole to m" in refused([gpu_plan((other, GIB))], book=book, on=both, app="q")
    small = reserved([gpu_plan((other, GIB))], on=both)
    assert "Card 1 (GPU-1) is wanted whole and is leased to m" in refused(
        [whole], book=small, on=both, app="q"
    )


def test_a_gpu_that_is_gone_is_refused() -> None:
    assert refused([gpu_plan((card(7), GIB))]) == "m: GPU-7 is not on this node any more"


def test_a_card_without_live_figures_is_never_free_again_while_leased() -> None:
    blind = ground(CARD, blind=[0])
    book, lease = held(reserved([gpu_plan((CARD, 20 * GIB))], on=blind))
    book = settle(book, lease.lease_id, EngineUse(()))
    assert promised(book, "GPU-0", blind.unseen()) == 20 * GIB
    assert "2.8 GiB to be had" in refused([gpu_plan((CARD, 4 * GIB))], book=book, on=blind, app="q")


def test_weights_mapped_from_a_file_go_on_counting_after_the_load() -> None:
    book, lease = held(reserved([cpu_plan(20 * GIB)]))
    use = EngineUse((Claim(RAM, 19 * GIB),), ram_shown_bytes=3 * GIB)
    book = settle(book, lease.lease_id, use)
    assert promised(book, RAM) == 17 * GIB
    # All that the system calls taken are the 3 GiB that are not mapped.
    loaded = ground(ram_used=3 * GIB)
    assert "18.0 GiB to be had" in refused([cpu_plan(19 * GIB)], book=book, on=loaded, app="q")


def test_what_an_apu_has_in_ram_is_the_drivers_and_shown() -> None:
    chip = apu()
    node = ground(chip)
    plan = gpu_plan((chip, 10 * GIB), ram_bytes=GIB, in_ram=6 * GIB)
    book, lease = held(reserved([plan], on=node))
    assert lease.claims == (Claim("0000:c1:00.0", 10 * GIB), Claim(RAM, 7 * GIB))
    book = settle(book, lease.lease_id, EngineUse((), ram_shown_bytes=GIB))
    assert promised(book, RAM) == 0


def test_an_apu_that_would_take_more_ram_than_planned_is_refused() -> None:
    chip = apu()
    plan = gpu_plan((chip, 4 * GIB))
    busy = ground(chip, used={0: 3 * GIB})
    assert (
        refused([plan], on=busy)
        == "m: 3.0 GiB of its GPU memory would lie in RAM, more than the 0 MiB it was planned with"
    )


def test_a_claim_is_repeatable_and_the_second_replica_gets_the_second_lease() -> None:
    book = reserved([cpu_plan(GIB), cpu_plan(2 * GIB)])
    book, first = held(book)
    assert claim(book, "p", holder(1)) == (book, first)
    book, second = held(book, number=2)
    assert (first.number, second.number) == (0, 1)
    answer = claim(book, "p", holder(3))
    assert isinstance(answer, NoLease)
    assert answer.message.endswith("2 of 2 are held, by replica-1, replica-2")
    assert isinstance(claim(book, "nobody", holder(3)), NoLease)


def test_a_dead_holders_lease_waits_for_the_next_replica_and_no_longer() -> None:
    book, lease = held(reserved([cpu_plan(GIB)]))
    book = settle(book, lease.lease_id, EngineUse((Claim(RAM, GIB),), GIB))
    assert expire(book, 1000.0) is book
    book = holder_died(book, lease.lease_id, now=1000.0, grace_s=30.0)
    (back,) = book.of("p")
    assert (back.state, back.holder, back.use, back.expires_at) == (LeaseState.RESERVED, None, None, 1030.0)
    assert promised(book, RAM) == GIB
    assert held(book, number=2)[1].plan == lease.plan
    assert expire(book, 1029.0) is book
    assert not expire(book, 1030.0).leases


def test_renewed_reservations_last_and_others_do_not() -> None:
    book = reserved([cpu_plan(GIB)], book=reserved([cpu_plan(GIB)], app="q"))
    book = expire(renew(book, ["p"], 200.0), 100.0)
    assert [lease.app for lease in book.leases.values()] == ["p"]


def test_released_memory_is_free_when_its_holder_is_gone() -> None:
    book, lease = held(reserved([cpu_plan(GIB), cpu_plan(GIB)]))
    book = release(book, "p")
    assert [one.lease_id for one in book.of("p")] == [lease.lease_id]
    assert promised(book, RAM) == GIB
    assert isinstance(claim(book, "p", holder(2)), NoLease)
    assert "was released" in refused([cpu_plan(GIB), cpu_plan(GIB)], book=book)
    assert not holder_died(book, lease.lease_id, 0.0).leases


def test_threads_are_leased_as_long_as_the_memory() -> None:
    book, lease = held(reserved([cpu_plan(GIB, threads=3), gpu_plan((CARD, GIB))]))
    book = settle(book, lease.lease_id, EngineUse((), GIB))
    assert outstanding(book).threads == 3


def test_two_loads_at_once_do_not_both_get_all_threads() -> None:
    chosen = replace(cpu_plan(GIB, threads=7), notes=(ProfileNote("threads", "7", "7 of 8 cores"),))
    book = reserved([chosen], app="q")
    message = refused([chosen], book=book)
    assert message == "m: 7 threads wanted, and 7 of 8 cores compute for other models"
    # What a user asked for, and the one thread that is always left, are not refused.
    reserved([cpu_plan(GIB, threads=7)], book=book)
    reserved([replace(chosen, options=replace(chosen.options, threads=1))], book=book)


# The journal syncs each change: thousands of writes, which a busy disk takes minutes for.
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
POOLS = st.sampled_from("abcd")
SIZES = st.lists(st.sampled_from([2, 5, 9, 16]), min_size=1, max_size=3)


class LeaseMachine(RuleBasedStateMachine):
    """A node with two cards, an owner that dies, replicas that die, engines that use less than planned, and
    strangers. Whatever happens in whatever order, what engines may take is there.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory(dir=IN_MEMORY)
        self.journal = LeaseJournal(Path(self.folder.name) / "leases")
        self.node = snapshot(card(0), card(1))
        self.book = Book()
        self.now = 0.0
        self.strangers: Counter[str] = Counter()
        self.alive: dict[str, Holder] = {}  # by lease
        self.used: dict[str, dict[str, int]] = {}  # by lease, of engines that have loaded
        self.replicas = 0

    def teardown(self) -> None:
        if not hasattr(self, "journal"):
            return
        for app in {lease.app for lease in self.book.leases.values()}:
            self.keep(release(self.book, app))
        for lease_id in list(self.alive):
            self.die(lease_id)
        assert not self.book.leases
        assert outstanding(self.book).claims == ()
        assert not list(Path(self.folder.name).glob("leases/*.lease"))
        self.journal.close()
        self.folder.cleanup()

    def ground(self) -> Ground:
        """What the node shows: strangers, and engines that have loaded. Half of an engine's RAM is mapped
        from its file and not shown.
        """
        shown = Counter(self.strangers)
        for devices in self.used.values():
            for device, size in devices.items():
                shown[device] += size // 2 if device == RAM else size
        used = {index: shown[f"GPU-{index}"] for index in (0, 1)}
        return Ground(self.node, usage(self.node, used=used, ram_used=shown[RAM]))

    def keep(self, book: Book) -> None:
        self.journal.save(book)
        self.book = book

    def die(self, lease_id: str) -> None:
        del self.alive[lease_id]
        self.used.pop(lease_id, None)
        self.keep(holder_died(self.book, lease_id, self.now, 5.0))

    @rule(app=POOLS, sizes=SIZES)
    def reserve_ram(self, app: str, sizes: list[int]) -> None:
        self.reserve(app, [cpu_plan(size * GIB) for size in sizes])

    @rule(app=POOLS, sizes=SIZES, index=st.integers(0, 1))
    def reserve_parts_of_a_card(self, app: str, sizes: list[int], index: int) -> None:
        one = card(index)
        self.reserve(app, [gpu_plan((one, size * GIB), ram_bytes=GIB // 2) for size in sizes])

    @rule(app=POOLS, size=st.integers(1, 12), whole=st.booleans())
    def reserve_both_cards(self, app: str, size: int, whole: bool) -> None:
        parts = ((card(0), size * GIB), (card(1), size * GIB))
        self.reserve(app, [gpu_plan(*parts, ram_bytes=GIB // 2, split_mode="row" if whole else None)])

    def reserve(self, app: str, plans: list[Plan]) -> None:
        before = self.book
        answer = reserve(self.book, self.ground(), app, app, plans, now=self.now, expires_at=self.now + 10)
        if isinstance(answer, NoLease):
            assert answer.message
            return
        self.keep(answer)
        assert [lease.plan for lease in answer.of(app)][: len(plans)] == plans
        new = answer.leases.keys() - before.leases.keys()
        self.check_capacity({one.device for lease_id in new for one in answer.leases[lease_id].claims})

    def check_capacity(self, devices: set[str]) -> None:
        """Just after a reservation on these: all that leases may still take is there beside strangers."""
        needed = Counter(self.strangers)
        for lease in self.book.leases.values():
            for one in lease.claims:
                loaded = lease.lease_id in self.used and one.device != RAM
                needed[one.device] += self.used[lease.lease_id][one.device] if loaded else one.size_bytes
        there = {"GPU-0": 24 * GIB, "GPU-1": 24 * GIB, RAM: 40 * GIB - RESERVE}
        assert all(needed[device] <= there[device] for device in devices)

    @rule(app=POOLS)
    def claim(self, app: str) -> None:
        self.replicas += 1
        answer = claim(self.book, app, holder(self.replicas))
        if isinstance(answer, NoLease):
            return
        book, lease = answer
        assert lease.lease_id not in self.alive
        self.keep(book)
        self.alive[lease.lease_id] = holder(self.replicas)

    @precondition(lambda self: self.alive.keys() - self.used.keys())
    @rule(data=st.data(), part=st.floats(0.5, 1.0))
    def load(self, data: st.DataObject, part: float) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.alive.keys() - self.used.keys())))
        claims = self.book.leases[lease_id].claims
        used = {one.device: int(one.size_bytes * part) for one in claims}
        self.used[lease_id] = used
        real = tuple(Claim(device, size) for device, size in used.items())
        self.keep(settle(self.book, lease_id, EngineUse(real, used[RAM] // 2)))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.die(data.draw(st.sampled_from(sorted(self.alive))))

    @rule(app=POOLS)
    def release(self, app: str) -> None:
        self.keep(release(self.book, app))
        assert all(one.holder is not None for one in self.book.of(app))

    @rule(seconds=st.integers(1, 20), wanted=st.sets(st.sampled_from("abcd")))
    def time_passes(self, seconds: int, wanted: set[str]) -> None:
        self.keep(renew(self.book, wanted, self.now + 10))
        self.now += seconds
        self.keep(expire(self.book, self.now))

    @rule(device=st.sampled_from(["GPU-0", "GPU-1", RAM]), size=st.integers(0, 8))
    def strangers_come_and_go(self, device: str, size: int) -> None:
        self.strangers[device] = size * GIB

    @rule()
    def owner_restarts(self) -> None:
        """The test's holders are no processes, so a new owner takes each for dead: those that are not are put
        back as they were.
        """
        self.journal.close()
        self.journal = LeaseJournal(Path(self.folder.name) / "leases")
        read = self.journal.read(self.now, 5.0)
        assert read.leases.keys() == {
            lease_id for lease_id, one in self.book.leases.items() if one.holder is None or not one.released
        }
        for lease_id, one in read.leases.items():
            assert one.plan == self.book.leases[lease_id].plan
        held = {lease_id: self.book.leases[lease_id] for lease_id in self.alive}
        self.keep(Book({**read.leases, **held}))

    @invariant()
    def nothing_held_is_lost(self) -> None:
        if not hasattr(self, "book"):
            return
        held = {lease_id: one.holder for lease_id, one in self.book.leases.items() if one.holder}
        assert held == self.alive

    @invariant()
    def whole_cards_have_one_lease(self) -> None:
        if not hasattr(self, "book"):
            return
        on = Counter(one.device for lease in self.book.leases.values() for one in lease.claims)
        assert all(on[device] == 1 for device in taken(self.book))


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=100, stateful_step_count=30)
