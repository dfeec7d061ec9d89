"""The files of a repository on the hub, read where they are: by HTTP range, a few blocks of each.

``HfFileSystem`` of ``huggingface_hub`` also reads by range, but takes in the whole body of an answer before
it looks at it (a server that ignores the range sends 40 GB), and bounds neither bytes nor time. Its session,
headers and errors are used here.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from xgen_ray.errors import BadModelFile, ModelNotFound
from xgen_ray.models.files import Readable
from xgen_ray.models.hub_errors import is_passing, unreachable
from xgen_ray.models.sources import ModelSource
from xgen_ray.models.threads import for_each
from xgen_ray.models.transfer import Stopped

T = TypeVar("T")
_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.25
_THREADS = 8
# Enough for most headers at once: a GGUF carries its vocabulary in there, a safetensors file only names.
_GGUF_HEAD_BYTES = 2**20
_HEAD_BYTES = 2**16
_MAX_AHEAD_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Place:
    """One commit of one repository, and who asks for it."""

    source: ModelSource
    repo: str
    commit: str
    endpoint: str
    token: str | None
    timeout_s: float


class HubFiles:
    """The files of ``sizes``, by name, as if they lay in ``folder``, where nothing needs to be.

    The first block of each file is kept, so that asking twice costs nothing. At most ``limit_bytes`` are
    fetched in all; more is ``BadModelFile``, since no header of a real model is that long. Once ``stop``
    is set, whoever reads gets ``Stopped``.
    """

    def __init__(
        self, place: Place, folder: Path, sizes: Mapping[str, int], stop: threading.Event, limit_bytes: int
    ) -> None:
        self._place = place
        self._folder = folder
        self._sizes = sizes
        self._stop = stop
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._fetched_bytes = 0
        self._heads: dict[str, bytes] = {}

    def is_folder(self, path: Path) -> bool:
        return path == self._folder or any(path in (self._folder / name).parents for name in self._sizes)

    def names(self, folder: Path) -> frozenset[str]:
        inside = (self._folder / name for name in self._sizes)
        return frozenset(path.relative_to(folder).parts[0] for path in inside if folder in path.parents)

    def exists(self, path: Path) -> bool:
        return self._name(path) in self._sizes or self.is_folder(path)

    @contextmanager
    def open(self, path: Path) -> Iterator[tuple[Readable, int]]:
        name = self._name(path)
        if name not in self._sizes:
            message = f"{self._place.source} has no file {name} among those that make up the model."
            raise ModelNotFound(f"{message} Check the name on its page.")
        yield _RangeReader(self, name, self._sizes[name]), self._sizes[name]

    def fetch_heads(self, names: Iterable[str]) -> None:
        """Fetch the first block of each of ``names``, several at a time."""
        if not for_each(names, self._fetch_head, self._stop, _THREADS):
            raise Stopped

    def head(self, name: str) -> bytes:
        """The first block of a file: as much as its header is likely to need."""
        if name not in self._heads:
            self._fetch_head(name)
        return self._heads[name]

    def fetch(self, name: str, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end`` of a file, all of them."""
        return self._persist(name, lambda: self._fetch_once(name, start, end)) if end > start else b""

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix() if path.is_relative_to(self._folder) else str(path)

    def _fetch_head(self, name: str) -> None:
        length = _GGUF_HEAD_BYTES if name.lower().endswith(".gguf") else _HEAD_BYTES
        self._heads[name] = self.fetch(name, 0, min(length, self._sizes[name]))

    def _persist(self, name: str, step: Callable[[], T]) -> T:
        """Do ``step`` again after failures that may pass."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return step()
            except (httpx2.TransportError, HfHubHTTPError) as error:
                if not is_passing(error):
                    raise
                if attempt == _ATTEMPTS:
                    reason = f"{name} failed {attempt} times in a row, last: {error}"
                    raise unreachable(self._place.source, self._place.endpoint, reason) from error
            if self._stop.wait(_FIRST_PAUSE_S * 2 ** (attempt - 1)):
                break
        raise Stopped

    def _fetch_once(self, name: str, start: int, end: int) -> bytes:
        place = self._place
        url = hf_hub_url(place.repo, name, revision=place.commit, endpoint=place.endpoint)
        headers = {
            **build_hf_headers(token=place.token),
            "Accept-Encoding": "identity",
            "Range": f"bytes={start}-{end - 1}",
        }
        parts: list[bytes] = []
        with get_session().stream("GET", url, headers=headers, timeout=place.timeout_s) as response:
            hf_raise_for_status(response)
            at = _first_byte(response, start, end, self._sizes[name])
            for chunk in response.iter_bytes():
                self._count(name, len(chunk))
                parts.append(chunk[max(start - at, 0) : max(end - at, 0)])
                at += len(chunk)
                if at >= end:
                    break
        if at < end:
            raise httpx2.RemoteProtocolError(f"the connection closed at byte {at} of {start} to {end}")
        return b"".join(parts)

    def _count(self, name: str, count: int) -> None:
        if self._stop.is_set():
            raise Stopped
        with self._lock:
            self._fetched_bytes += count
            if self._fetched_bytes <= self._limit_bytes:
                return
        message = f"{self._place.source} has headers of more than {self._limit_bytes} bytes, the last {name}"
        raise BadModelFile(f"{message}; no real model's are that long. Choose another one.", name)


class _RangeReader:
    """One file, read in blocks that grow: few requests for a long header, few bytes for a short one."""

    def __init__(self, files: HubFiles, name: str, size: int) -> None:
        self._files = files
        self._name = name
        self._size = size
        self._position = 0
        self._block = b""
        self._block_start = 0
        self._ahead = _HEAD_BYTES

    def seek(self, position: int, /) -> int:
        self._position = position
        return position

    def read(self, count: int, /) -> bytes:
        start, end = self._position, min(self._position + count, self._size)
        if not (self._block_start <= start and end <= self._block_end) and start < end:
            self._refill(start, end)
        data = self._block[start - self._block_start : end - self._block_start] if start < end else b""
        self._position = start + len(data)
        return data

    @property
    def _block_end(self) -> int:
        return self._block_start + len(self._block)

    def _refill(self, start: int, end: int) -> None:
        """Have the bytes from ``start`` to ``end`` in the block, the part that is there not fetched again."""
        head = self._files.head(self._name)
        if start < len(head):
            self._block, self._block_start = head, 0
        kept = self._block[start - self._block_start :] if self._block_start <= start else b""
        fetched_from = start + len(kept)
        self._ahead = min(max(2 * self._ahead, len(head)), _MAX_AHEAD_BYTES)
        until = min(max(end, fetched_from + self._ahead), self._size) if end > fetched_from else fetched_from
        self._block = kept + self._files.fetch(self._name, fetched_from, until)
        self._block_start = start


def _first_byte(response: httpx2.Response, start: int, end: int, size: int) -> int:
    """Where in the file the answer begins; a server may ignore a range and send everything."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return 0
    served = response.headers.get("Content-Range", "")
    if served != f"bytes {start}-{end - 1}/{size}":
        raise httpx2.RemoteProtocolError(f"asked for bytes {start}-{end - 1}/{size}, got {served!r}")
    return start
