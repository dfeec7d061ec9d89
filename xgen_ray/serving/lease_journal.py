"""The lease book on disk, so that it survives its owner: one small file per lease."""

import contextlib
import fcntl
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from xgen_ray.errors import ConfigError, WrongState
from xgen_ray.serving.holders import boot_id, process_start
from xgen_ray.serving.leases import Book, Lease, LeaseState, holder_died, renew

logger = logging.getLogger(__name__)

_VERSION: Final = 1
_SUFFIX: Final = ".lease"
_FRESH: Final = ".new"
_ASIDE: Final = ".unreadable"
_LOCK_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Entry:
    version: int
    boot: str
    lease: Lease


_ENTRY = TypeAdapter(_Entry)


class LeaseJournal:
    """The files of one node's book in ``folder``, which nobody else may enter.

    One owner at a time: its successor waits for it to be gone. Times in leases are of a clock that goes on
    over processes and starts anew with the machine, like ``time.monotonic``; leases of an earlier boot are
    void, since nothing of theirs runs.
    """

    def __init__(self, folder: Path, *, wait_s: float = 10.0) -> None:
        """Raises ConfigError for a folder that cannot be used, WrongState if another owner stays alive."""
        self._folder = folder
        self._boot = boot_id()
        self._saved: dict[str, Lease] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            self._lock = os.open(folder / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the run directory {folder} of the node's leases cannot be used: {error.strerror}; make it "
                "writable for the user that runs Ray, or set run_dir to another"
            ) from error
        self._take_lock(wait_s)

    def read(self, now: float, grace_s: float) -> Book:
        """The book as its last owner left it. Leases whose holder is gone are their app's again; what nobody
        holds lasts ``grace_s`` at least, as renewals are not written down.

        A file that cannot be read is set aside, and said so in the log.
        """
        for half_written in self._folder.glob(f"*{_FRESH}"):
            half_written.unlink(missing_ok=True)
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                entry = _ENTRY.validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                self._set_aside(path, str(error).splitlines()[0])
                continue
            if entry.version != _VERSION:
                self._set_aside(path, f"it has version {entry.version}, this program writes {_VERSION}")
            elif entry.boot != self._boot:
                path.unlink(missing_ok=True)
                logger.info("lease of an earlier boot dropped: lease=%s", entry.lease.lease_id)
            else:
                self._saved[entry.lease.lease_id] = entry.lease
        book = renew(Book(dict(self._saved)), {one.app for one in self._saved.values()}, now + grace_s)
        for lease in self._saved.values():
            if lease.state is not LeaseState.RESERVED and not is_held(lease):
                book = holder_died(book, lease.lease_id, now, grace_s)
        return book

    def save(self, book: Book) -> None:
        """Writes what has changed since the last save, but for renewals. When it returns, a power cut loses
        nothing.

        Raises OSError; what was not written then is written by the next save.
        """
        changed = [lease for lease in book.leases.values() if not self._has(lease)]
        ended = self._saved.keys() - book.leases.keys()
        if not changed and not ended:
            return
        for lease in changed:
            self._write(lease)
            self._saved[lease.lease_id] = lease
        for lease_id in ended:
            self._path(lease_id).unlink(missing_ok=True)
            del self._saved[lease_id]
        self._sync_folder()

    def close(self) -> None:
        os.close(self._lock)

    def _take_lock(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(self._lock)
                    raise WrongState(
                        f"another owner still keeps the leases in {self._folder} after {wait_s:g} s; "
                        "wait for it to end, or end it"
                    ) from None
                time.sleep(_LOCK_POLL_S)
            else:
                return

    def _has(self, lease: Lease) -> bool:
        saved = self._saved.get(lease.lease_id)
        return saved is not None and replace(saved, expires_at=lease.expires_at) == lease

    def _write(self, lease: Lease) -> None:
        path = self._path(lease.lease_id)
        fresh = path.with_suffix(_FRESH)
        with fresh.open("wb") as file:
            file.write(_ENTRY.dump_json(_Entry(_VERSION, self._boot, lease)))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _path(self, lease_id: str) -> Path:
        return self._folder / f"{quote(lease_id, safe='')}{_SUFFIX}"

    def _set_aside(self, path: Path, reason: str) -> None:
        with contextlib.suppress(OSError):
            path.replace(path.with_name(path.name + _ASIDE))
        logger.warning("a lease cannot be read and is set aside: file=%s reason=%s", path, reason)


def is_held(lease: Lease) -> bool:
    """Whether the process that took the lease still runs."""
    holder = lease.holder
    return holder is not None and process_start(holder.pid) == holder.started
