"""The lease book on disk: it comes back as it was, less what has died with its holders."""

import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.lease_builders import GIB, card, cpu_plan, gpu_plan, ground
from xgen_ray.errors import ConfigError, WrongState
from xgen_ray.placement.claims import RAM, Claim
from xgen_ray.serving.holders import process_start
from xgen_ray.serving.lease_journal import LeaseJournal
from xgen_ray.serving.leases import (
    Book,
    EngineUse,
    Holder,
    LeaseState,
    NoLease,
    claim,
    release,
    renew,
    reserve,
    settle,
)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody who can hold a lease."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate(timeout=10)


def a_book(app: str = "p") -> Book:
    plans = [cpu_plan(GIB), gpu_plan((card(), 3 * GIB), ram_bytes=GIB)]
    book = reserve(Book(), ground(card()), app, "m", plans, now=0.0, expires_at=60.0)
    assert isinstance(book, Book)
    return book


def held_by(book: Book, pid: int, app: str = "p") -> Book:
    started = process_start(pid)
    assert started is not None
    answer = claim(book, app, Holder("r1", pid, started))
    assert not isinstance(answer, NoLease)
    return answer[0]


def reopened(folder: Path, *, now: float = 0.0, grace_s: float = 5.0) -> Book:
    journal = LeaseJournal(folder)
    try:
        return journal.read(now, grace_s)
    finally:
        journal.close()


def saved(folder: Path, *books: Book) -> None:
    journal = LeaseJournal(folder)
    for book in books:
        journal.save(book)
    journal.close()


def test_the_book_comes_back_as_it_was(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    book = held_by(a_book("models/small?"), process.pid, "models/small?")
    use = EngineUse((Claim(RAM, GIB // 2),), GIB // 4)
    book = settle(book, "models/small?.0", use)
    saved(tmp_path / "run", book)
    again = reopened(tmp_path / "run")
    assert again == book
    assert again.leases["models/small?.0"].state is LeaseState.SETTLED


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    saved(tmp_path / "run", a_book())
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_a_holder_that_died_meanwhile_leaves_its_lease_to_the_app(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    book = held_by(a_book(), process.pid)
    saved(tmp_path, book)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    again = reopened(tmp_path, now=100.0, grace_s=5.0)
    assert [(one.state, one.holder, one.expires_at) for one in again.of("p")] == [
        (LeaseState.RESERVED, None, 105.0),
        (LeaseState.RESERVED, None, 105.0),
    ]


def test_another_process_with_the_same_id_is_not_the_holder(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    started = process_start(process.pid)
    assert started is not None
    answer = claim(a_book(), "p", Holder("r1", process.pid, started - 1))
    assert not isinstance(answer, NoLease)
    saved(tmp_path, answer[0])
    assert {one.state for one in reopened(tmp_path).of("p")} == {LeaseState.RESERVED}


def test_a_zombie_holds_nothing(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    saved(tmp_path, held_by(a_book(), process.pid))
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert {one.state for one in reopened(tmp_path).of("p")} == {LeaseState.RESERVED}


def test_a_released_lease_ends_with_a_holder_that_died_meanwhile(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    saved(tmp_path, release(held_by(a_book(), process.pid), "p"))
    assert reopened(tmp_path).leases.keys() == {"p.0"}
    process.kill()
    process.wait(timeout=10)
    assert not reopened(tmp_path).leases


def test_what_has_ended_is_gone_from_disk(tmp_path: Path) -> None:
    saved(tmp_path, a_book(), Book())
    assert not reopened(tmp_path).leases
    assert not list(tmp_path.glob("*.lease"))


def test_renewals_cost_no_write(tmp_path: Path) -> None:
    journal = LeaseJournal(tmp_path)
    journal.save(a_book())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.lease")}
    journal.save(renew(a_book(), ["p"], 1000.0))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.lease")} == before
    journal.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Invalid JSON"),
        (b'{"version": 1, "boot"', "Invalid JSON"),
        (b'{"version": 1, "boot": "x", "lease": {"app": 3}}', "validation error"),
        (b"\xff\x00", "Invalid JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    saved(tmp_path, a_book())
    (tmp_path / "p.1.lease").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert reopened(tmp_path).leases.keys() == {"p.0"}
    assert "set aside" in caplog.text
    assert (tmp_path / "p.1.lease.unreadable").read_bytes() == content
    assert reopened(tmp_path).leases.keys() == {"p.0"}


def test_a_file_of_another_version_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, a_book())
    path = tmp_path / "p.0.lease"
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    assert reopened(tmp_path).leases.keys() == {"p.1"}
    assert "it has version 2, this program writes 1" in caplog.text


def test_leases_of_an_earlier_boot_are_void(tmp_path: Path) -> None:
    saved(tmp_path, a_book())
    path = tmp_path / "p.0.lease"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path.write_text(path.read_text().replace(boot, "another"))
    assert reopened(tmp_path).leases.keys() == {"p.1"}
    assert not path.exists()


def test_a_half_written_file_of_a_killed_owner_is_no_lease(tmp_path: Path) -> None:
    saved(tmp_path, a_book())
    (tmp_path / "p.2.new").write_bytes(b"{")
    assert reopened(tmp_path).leases.keys() == {"p.0", "p.1"}
    assert not (tmp_path / "p.2.new").exists()


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    first = LeaseJournal(tmp_path)
    with pytest.raises(WrongState, match=r"another owner still keeps the leases .* after 0\.1 s"):
        LeaseJournal(tmp_path, wait_s=0.1)
    first.close()
    LeaseJournal(tmp_path, wait_s=0.1).close()


def test_a_killed_owner_lets_go(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from xgen_ray.serving.lease_journal import LeaseJournal\n"
        "journal = LeaseJournal(Path(sys.argv[1])); print('open', flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"open\n"
    with pytest.raises(WrongState):
        LeaseJournal(tmp_path, wait_s=0.0)
    owner.kill()
    owner.communicate(timeout=10)
    LeaseJournal(tmp_path, wait_s=5.0).close()


def test_a_folder_that_cannot_be_used_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set run_dir to another"):
        LeaseJournal(tmp_path / "file" / "run")


def test_what_could_not_be_written_is_written_next_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    journal = LeaseJournal(folder)
    # A folder in the place of the file: even root cannot write that.
    (folder / "p.1.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        journal.save(a_book())
    (folder / "p.1.new").rmdir()
    journal.save(a_book())
    journal.close()
    assert reopened(folder) == a_book()
