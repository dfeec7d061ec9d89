"""One large file from the hub into the cache, going on where an earlier attempt stopped.

``huggingface_hub`` 2.x resumes only within one call: it writes to a file with a random name and deletes it
on failure. A 40 GB model on a node that restarts would start from zero
every time. So the bytes are fetched here, with the library's session, headers, metadata, lock and cache
layout, into ``blobs/<etag>.partial``; ``hf_hub_download`` then finds the blob there and only links it.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx2
from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status, tqdm

from xgen_ray.errors import DownloadFailed
from xgen_ray.models.cache import CachedRepo
from xgen_ray.models.hub_errors import is_full, is_passing, unreachable
from xgen_ray.models.sources import ModelSource

T = TypeVar("T")
_CHUNK = 2**20
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
_LOCK_POLL_S = 0.5
_ETAG = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class Site:
    """Where from and where to: one commit of one repository, one cache."""

    source: ModelSource
    commit: str
    endpoint: str
    token: str | None
    cache: CachedRepo
    timeout_s: float


class Meter:
    """Bytes that are there, by file, and when that last changed. Written by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}
        self._changed_at = time.monotonic()

    def set(self, name: str, count: int) -> None:
        with self._lock:
            if self._done.get(name) != count:
                self._done[name] = count
                self._changed_at = time.monotonic()

    def add(self, name: str, count: int) -> None:
        with self._lock:
            self._done[name] = self._done.get(name, 0) + count
            self._changed_at = time.monotonic()

    def touch(self) -> None:
        """Something moved that is not a byte of a file: a lock, a checksum, a request."""
        with self._lock:
            self._changed_at = time.monotonic()

    def of(self, name: str) -> int:
        with self._lock:
            return self._done.get(name, 0)

    def done(self) -> int:
        with self._lock:
            return sum(self._done.values())

    def idle_s(self) -> float:
        with self._lock:
            return time.monotonic() - self._changed_at


class Stopped(Exception):
    """The download was told to stop; whoever told it knows why."""


@dataclass(frozen=True, slots=True)
class BlobTransfer:
    """Brings one file of ``site`` into the cache as a blob. Runs in a thread; ends soon after ``stop``.

    The hub serves no file above ``http_limit_bytes`` over plain HTTP.
    """

    site: Site
    name: str
    meter: Meter
    stop: threading.Event
    http_limit_bytes: int = MAX_HTTP_DOWNLOAD_SIZE

    def run(self) -> None:
        """Return once the blob is complete and verified. What was fetched is kept if this fails."""
        site = self.site
        url = hf_hub_url(site.cache.repo, self.name, revision=site.commit, endpoint=site.endpoint)
        etag, size = self._persist(lambda: self._ask(url))
        if size > self.http_limit_bytes:
            # The library takes this lock again, and would wait for it without a sign of life.
            with self._locked(etag):
                pass
            self._leave_to_library()
            return
        blob, partial = site.cache.blob(etag), site.cache.partial(etag)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(etag):
            if not blob.exists():
                self._complete(url, partial, etag, size)
                partial.replace(blob)
            self.meter.set(self.name, size)

    def _persist(self, step: Callable[[], T]) -> T:
        """Do ``step`` again after passing failures, until several in a row have brought no byte."""
        attempts = 0
        while True:
            before = self.meter.of(self.name)
            try:
                return step()
            except (httpx2.TransportError, HfHubHTTPError) as error:
                if not is_passing(error):
                    raise
                attempts = 1 if self.meter.of(self.name) > before else attempts + 1
                if attempts >= _ATTEMPTS:
                    reason = f"{self.name} failed {attempts} times in a row, last: {error}"
                    raise unreachable(self.site.source, self.site.endpoint, reason) from error
            if self.stop.wait(min(_FIRST_PAUSE_S * 2 ** (attempts - 1), _LONGEST_PAUSE_S)):
                raise Stopped

    def _ask(self, url: str) -> tuple[str, int]:
        """The file's tag, which names its blob, and its size."""
        site = self.site
        metadata = get_hf_file_metadata(url, token=site.token, timeout=site.timeout_s, endpoint=site.endpoint)
        etag, size = metadata.etag, metadata.size
        if etag is None or size is None or not _ETAG.match(etag):
            message = f"{site.endpoint} gives {self.name} the tag {etag!r} and {size} bytes."
            raise DownloadFailed(f"{message} That is not how a hub answers: check the endpoint.")
        return etag, size

    def _complete(self, url: str, partial: Path, etag: str, size: int) -> None:
        try:
            with partial.open("a+b") as file:
                sink = _Sink(file)
                self._take_up(sink, size)
                if sink.size != size:
                    self._persist(lambda: self._stream(url, sink, size))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if is_full(error):
                # A full disk hurts everything else on this node: give the space back.
                partial.unlink(missing_ok=True)
            raise
        checksum = sink.checksum()
        if _SHA256.match(etag) and checksum != etag:
            partial.unlink(missing_ok=True)
            self.meter.set(self.name, 0)
            message = f"{self.name} arrived with the checksum {checksum}, not {etag}."
            raise DownloadFailed(f"{message} It was deleted: try again.")

    def _take_up(self, sink: "_Sink", size: int) -> None:
        """Count in what an earlier attempt left behind, unless it cannot be a part of this file."""
        for _ in sink.read_again():
            self._check_stop()
            self.meter.touch()
        if sink.size > size:
            sink.restart()
        self.meter.set(self.name, sink.size)

    def _stream(self, url: str, sink: "_Sink", size: int) -> None:
        headers = {**build_hf_headers(token=self.site.token), "Accept-Encoding": "identity"}
        if sink.size:
            headers["Range"] = f"bytes={sink.size}-"
        with get_session().stream("GET", url, headers=headers, timeout=self.site.timeout_s) as response:
            hf_raise_for_status(response)
            if not _continues(response, sink.size, size):
                sink.restart()
            for chunk in response.iter_bytes():
                self._check_stop()
                if sink.size + len(chunk) > size:
                    raise DownloadFailed(f"{self.name} is longer than the {size} bytes announced. Try again.")
                sink.write(chunk)
                self.meter.set(self.name, sink.size)
        if sink.size < size:
            raise httpx2.RemoteProtocolError(f"the connection closed after {sink.size} of {size} bytes")

    @contextmanager
    def _locked(self, etag: str) -> Iterator[None]:
        """Hold the blob's lock; while another process has it, show how far that one is."""
        path = self.site.cache.lock(etag)
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._check_stop()
            with ExitStack() as stack:
                try:
                    stack.enter_context(WeakFileLock(path, timeout=_LOCK_POLL_S))
                except TimeoutError:
                    # Whoever holds it may be reading again what is there, and gives up by itself if it hangs.
                    self.meter.touch()
                    self.meter.set(self.name, _size(self.site.cache.partial(etag)))
                    continue
                yield
                return

    def _leave_to_library(self) -> None:
        """Files beyond what plain HTTP carries go over Xet, which only the library speaks."""
        site = self.site
        hf_hub_download(
            site.cache.repo,
            self.name,
            revision=site.commit,
            cache_dir=site.cache.cache_dir,
            endpoint=site.endpoint,
            token=site.token,
            etag_timeout=site.timeout_s,
            tqdm_class=silent_bar(self.stop, lambda count: self.meter.add(self.name, count)),
        )

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped


class _Sink:
    """A file that is appended to, and the checksum of all that is in it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def read_again(self) -> Iterator[None]:
        """Take what the file already holds into account, a chunk at a time."""
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            self._digest.update(chunk)
            self.size += len(chunk)
            yield

    def restart(self) -> None:
        self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def checksum(self) -> str:
        return self._digest.hexdigest()


def silent_bar(stop: threading.Event, advance: Callable[[int], None]) -> type[tqdm]:
    """A progress bar class for the library that shows nothing, reports bytes and ends when told to stop."""

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if stop.is_set():
                raise Stopped
            untyped: Callable[..., None] = super().__init__
            untyped(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise Stopped
            advance(int(n or 0))
            shown: bool | None = super().update(n)
            return shown

    return SilentBar


def _size(path: Path) -> int:
    """Bytes of a file that another process may rename or delete meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _continues(response: httpx2.Response, have: int, size: int) -> bool:
    """Whether the answer goes on at byte ``have``; a server may ignore a range and send everything."""
    if have == 0 or response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return have == 0
    served = response.headers.get("Content-Range", "")
    if served != f"bytes {have}-{size - 1}/{size}":
        raise httpx2.RemoteProtocolError(f"asked for bytes from {have} of {size}, got {served!r}")
    return True
