"""Models from a hub into one cache, in the layout that all of the ecosystem shares."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from xgen_ray.errors import DownloadFailed, InvalidRequest
from xgen_ray.models.cache import CachedRepo, find_cached
from xgen_ray.models.sources import ModelSource
from xgen_ray.models.threads import in_thread
from xgen_ray.models.types import DownloadProgress

if TYPE_CHECKING:
    from xgen_ray.models.errand import Errand

_POLL_S = 0.1
# The library has calls without a deadline of their own. This many network timeouts without a sign of life
# end the download.
_IDLE_TIMEOUTS = 10


def download(
    source: ModelSource,
    cache_dir: Path | str,
    on_progress: Callable[[DownloadProgress], None] | None = None,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    cancel: threading.Event | None = None,
    timeout_s: float = 15.0,
    offline: bool = False,
    commit: str | None = None,
) -> Path:
    """Bring ``source`` into ``cache_dir`` and return its local path: the GGUF file, or the folder.

    Blocks, and calls ``on_progress`` from the calling thread a few times a second. Files that are there
    already are not fetched again, and a file that was interrupted goes on where it stopped. With the hub
    out of reach, what is complete in the cache is used. Setting ``cancel`` ends the call within a fraction
    of a second; what was fetched is kept. ``timeout_s`` is how long the network may be silent. Without
    ``token`` the machine's own login at the hub counts, if it has one. ``offline`` asks no one and fetches
    nothing: what is not complete in the cache is ``ModelNotFound``, and so is a GGUF model of a repository
    whose files only the hub can choose from. ``commit`` is what to take the revision for, whatever it is at
    the hub by now.

    Raises ``ModelNotFound``, ``DownloadFailed``, ``DiskFull`` (before anything is written, where sizes are
    known), ``BadModelFile`` and ``InvalidRequest`` (several models to choose from).
    """
    if source.repo is None:
        raise InvalidRequest(f"{source} is a local path: there is nothing to download.", "model")
    cache = CachedRepo(Path(cache_dir).absolute(), source.repo)
    if offline:
        return find_cached(source, cache, commit).path
    # The hub's client takes half a second to import; only a download pays for it.
    from xgen_ray.models.errand import Errand

    errand = Errand(source, cache, (endpoint or constants.ENDPOINT).rstrip("/"), token, timeout_s, commit)
    outcome = in_thread(errand.run)
    try:
        _watch(errand, outcome, on_progress, cancel)
    finally:
        errand.stop.set()
    return outcome.result()


def _watch(
    errand: "Errand",
    outcome: Future[Path],
    on_progress: Callable[[DownloadProgress], None] | None,
    cancel: threading.Event | None,
) -> None:
    """Report until the errand is over, the caller cancels, or nothing has moved for too long."""
    shown: DownloadProgress | None = None
    over = False
    while not over:
        over = bool(wait([outcome], timeout=_POLL_S).done)
        progress = errand.progress()
        if on_progress is not None and progress is not None and progress != shown:
            shown = progress
            on_progress(progress)
        if over:
            return
        if cancel is not None and cancel.is_set():
            done, total = (progress.done_bytes, progress.total_bytes) if progress else (0, 0)
            message = f"The download of {errand.source} was cancelled at {done} of {total} bytes."
            raise DownloadFailed(f"{message} What was fetched is kept: load it again to go on.")
        if errand.meter.idle_s() > _IDLE_TIMEOUTS * errand.timeout_s:
            raise errand.idle()
