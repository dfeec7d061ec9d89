"""The facts of a model on the hub, before a byte of its weights has moved."""

import threading
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from xgen_ray.errors import BadModelFile, DownloadFailed, InvalidRequest
from xgen_ray.models.cache import CachedRepo, entry_path, undecided
from xgen_ray.models.inspection import inspect
from xgen_ray.models.selection import Selection, select
from xgen_ray.models.sources import ModelSource
from xgen_ray.models.threads import in_thread
from xgen_ray.models.types import ModelFacts

# Several times the headers, index and configuration of the largest models there are.
MAX_FETCHED_BYTES = 128 * 2**20

_WEIGHTS = (".gguf", ".safetensors")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a download would bring: ``selection`` has the files with their sizes and why these,
    ``commit`` is the revision's today, ``facts`` are those of the model once it is here.
    """

    source: ModelSource
    commit: str
    selection: Selection
    facts: ModelFacts

    @property
    def download_bytes(self) -> int:
        return self.selection.total_bytes


def inspect_remote(
    source: ModelSource,
    *,
    cache_dir: Path | str = "",
    endpoint: str | None = None,
    token: str | None = None,
    timeout_s: float = 15.0,
    deadline_s: float = 120.0,
    limit_bytes: int = MAX_FETCHED_BYTES,
) -> ModelFacts:
    """What ``inspect(download(source, cache_dir))`` would say, from headers and configurations alone.

    ``path`` and ``files`` are where a download into ``cache_dir`` would put them (relative to the cache
    where none is given): nothing is there yet. The rest is that of ``survey_remote``.
    """
    return survey_remote(
        source,
        cache_dir=cache_dir,
        endpoint=endpoint,
        token=token,
        timeout_s=timeout_s,
        deadline_s=deadline_s,
        limit_bytes=limit_bytes,
    ).facts


def survey_remote(
    source: ModelSource,
    *,
    cache_dir: Path | str = "",
    endpoint: str | None = None,
    token: str | None = None,
    timeout_s: float = 15.0,
    deadline_s: float = 120.0,
    limit_bytes: int = MAX_FETCHED_BYTES,
) -> RemoteModel:
    """The facts of ``source`` and what downloading it would take. Asks the hub; writes nothing, and takes
    nothing from the cache: with the hub out of reach it fails, where a download may not, and says what is
    there to choose from.

    Blocks for at most ``deadline_s``; ``timeout_s`` is how long the network may be silent. At most
    ``limit_bytes`` of files are fetched. Raises what ``download`` and ``inspect`` do: ``ModelNotFound``,
    ``DownloadFailed``, ``BadModelFile`` and ``InvalidRequest`` (several models to choose from).
    """
    if source.repo is None:
        raise InvalidRequest(f"{source} is a local path: the hub does not know it.", "model")
    cache = CachedRepo(Path(cache_dir), source.repo)
    survey = _Survey(
        source, cache, (endpoint or constants.ENDPOINT).rstrip("/"), token, timeout_s, limit_bytes
    )
    outcome = in_thread(survey.run)
    try:
        if not wait([outcome], timeout=deadline_s).done:
            raise survey.late(deadline_s)
    finally:
        survey.stop.set()
    return outcome.result()


class _Survey:
    """One look at a repository, in a thread that may outlive the call by one network timeout."""

    def __init__(
        self,
        source: ModelSource,
        cache: CachedRepo,
        endpoint: str,
        token: str | None,
        timeout_s: float,
        limit_bytes: int,
    ) -> None:
        self.stop = threading.Event()
        self._source = source
        self._cache = cache
        self._endpoint = endpoint
        self._token = token
        self._timeout_s = timeout_s
        self._limit_bytes = limit_bytes

    def late(self, deadline_s: float) -> DownloadFailed:
        message = f"{self._endpoint} did not tell what {self._source} is within {deadline_s:g} s."
        return DownloadFailed(f"{message} Check the network and the endpoint, then try again.")

    def run(self) -> RemoteModel:
        # The hub's client takes half a second to import; only who asks the hub pays for it.
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        from xgen_ray.models.hub_errors import is_unreachable, translated_hub_errors, unreachable
        from xgen_ray.models.hub_files import HubFiles, Place
        from xgen_ray.models.listing import list_files

        source, repo = self._source, self._cache.repo
        with translated_hub_errors(source, self._endpoint, self._cache.cache_dir):
            try:
                listing = list_files(
                    source, repo, endpoint=self._endpoint, token=self._token, timeout_s=self._timeout_s
                )
            except (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled) as error:
                here = undecided(source, self._cache)
                if here is None or not is_unreachable(error):
                    raise
                raise unreachable(source, self._endpoint, f"it cannot be reached, and {here}") from error
            selection = select(source, listing.sizes)
            place = Place(source, repo, listing.commit, self._endpoint, self._token, self._timeout_s)
            folder = self._cache.snapshot(listing.commit)
            files = HubFiles(place, folder, selection.files, self.stop, self._limit_bytes)
            # Before the readers ask for them one by one: a large model has a hundred.
            files.fetch_heads(name for name in selection.files if name.lower().endswith(_WEIGHTS))
            try:
                facts = inspect(entry_path(folder, selection), files)
            except BadModelFile as error:
                raise BadModelFile(f"{source} cannot be used: {error}", error.path) from error
            return RemoteModel(source, listing.commit, selection, facts)
