"""One download from beginning to end: list, choose, check for room, fetch, link."""

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from xgen_ray.errors import DownloadFailed, ModelNotFound
from xgen_ray.models.cache import CachedModel, CachedRepo, entry_path, find_cached
from xgen_ray.models.hub_errors import (
    disk_full,
    free_bytes,
    is_unreachable,
    translated_hub_errors,
    unreachable,
)
from xgen_ray.models.listing import RemoteFile, list_files
from xgen_ray.models.selection import Selection, select
from xgen_ray.models.sources import ModelSource
from xgen_ray.models.threads import for_each
from xgen_ray.models.transfer import BlobTransfer, Meter, Site, Stopped, silent_bar
from xgen_ray.models.types import DownloadProgress

_WORKERS = 4
# Smaller files are not worth resuming; the library fetches them.
_RESUMABLE_BYTES = 2**20


class Errand:
    """One download, run in a thread of its own that may outlive the call by one network timeout."""

    def __init__(
        self,
        source: ModelSource,
        cache: CachedRepo,
        endpoint: str,
        token: str | None,
        timeout_s: float,
        commit: str | None,
    ) -> None:
        self.source = source
        self.endpoint = endpoint
        self.stop = threading.Event()
        self.meter = Meter()
        self.timeout_s = timeout_s
        self._cache = cache
        self._token = token
        self._commit = commit
        self._selection: Selection | None = None

    def progress(self) -> DownloadProgress | None:
        """How far it is; None until it is known what there is to fetch."""
        selection = self._selection
        if selection is None:
            return None
        total = selection.total_bytes
        return DownloadProgress(min(self.meter.done(), total), total, selection.why)

    def idle(self) -> DownloadFailed:
        """What to say when nothing has moved for too long."""
        return unreachable(self.source, self.endpoint, f"nothing happened for {self.meter.idle_s():.0f} s")

    def run(self) -> Path:
        wanted = replace(self.source, revision=self._commit) if self._commit else self.source
        with translated_hub_errors(wanted, self.endpoint, self._cache.cache_dir):
            try:
                listing = list_files(
                    wanted,
                    self._cache.repo,
                    endpoint=self.endpoint,
                    token=self._token,
                    timeout_s=self.timeout_s,
                )
            except (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled) as error:
                # A commit is the same wherever it is, and may be gone at the hub.
                if self._commit is None and not is_unreachable(error):
                    raise
                return self._from_cache(error)
            self.meter.touch()
            commit, files = listing.commit, listing.files
            selection = select(self.source, listing.sizes)
            site = Site(self.source, commit, self.endpoint, self._token, self._cache, self.timeout_s)
            missing = self._missing(site, selection, files)
            self._selection = selection
            large = [name for name in missing if files[name].size >= _RESUMABLE_BYTES]
            # Weights are linked last: a snapshot that has them has everything.
            self._each([name for name in missing if name not in large], lambda name: self._link(site, name))
            self._each(large, lambda name: BlobTransfer(site, name, self.meter, self.stop).run())
            self._each(large, lambda name: self._link(site, name))
            if self.source.filename is None and selection.entry is not None:
                self._cache.remember_choice(commit, selection.entry)
            if self._commit is None or self._cache.recall(self.source.revision) is None:
                self._cache.remember(self.source.revision, commit)
            return entry_path(self._cache.snapshot(commit), selection)

    def _missing(self, site: Site, selection: Selection, files: Mapping[str, RemoteFile]) -> list[str]:
        """The files that are not in the snapshot yet, once it is known that there is room for them."""
        missing: list[str] = []
        needed = 0
        for name, size in selection.files.items():
            if (self._cache.snapshot(site.commit) / name).exists():
                self.meter.set(name, size)
                continue
            missing.append(name)
            needed += size - min(size, self._cache.held_bytes(files[name].etag))
        free = free_bytes(self._cache.cache_dir)
        if needed > free:
            raise disk_full(self.source, needed, free, self._cache.cache_dir)
        return missing

    def _each(self, names: Sequence[str], action: Callable[[str], None]) -> None:
        """Do ``action`` for all ``names``, a few at a time. The first failure stops the others."""
        if not for_each(names, action, self.stop, _WORKERS):
            raise Stopped

    def _link(self, site: Site, name: str) -> None:
        """Let the library put a file into the snapshot, fetching it first if it is not there yet."""
        path = hf_hub_download(
            self._cache.repo,
            name,
            revision=site.commit,
            cache_dir=self._cache.cache_dir,
            endpoint=self.endpoint,
            token=self._token,
            etag_timeout=self.timeout_s,
            tqdm_class=silent_bar(self.stop, lambda _: self.meter.touch()),
        )
        self.meter.set(name, Path(path).stat().st_size)

    def _from_cache(self, error: Exception) -> Path:
        """What is complete in the cache, where the hub cannot be asked: at the commit, else at what the
        revision was here last, which may well have the same weights.
        """
        known = dict.fromkeys((self._commit, self._cache.recall(self.source.revision)))
        commits = [commit for commit in known if commit is not None]
        if not commits:
            raise error
        try:
            cached = self._find_cached(commits if is_unreachable(error) else commits[:1])
        except ModelNotFound as incomplete:
            if not is_unreachable(error):
                raise error from None
            reason = f"the hub cannot be reached, and {incomplete}"
            raise unreachable(self.source, self.endpoint, reason) from error
        for name, size in cached.selection.files.items():
            self.meter.set(name, size)
        self._selection = cached.selection
        return cached.path

    def _find_cached(self, commits: Sequence[str]) -> CachedModel:
        """The first of ``commits`` that is complete; ``ModelNotFound`` says what the last of them lacks."""
        *earlier, last = commits
        for commit in earlier:
            with contextlib.suppress(ModelNotFound):
                return find_cached(self.source, self._cache, commit)
        return find_cached(self.source, self._cache, last)
