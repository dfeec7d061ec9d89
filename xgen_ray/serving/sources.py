"""From a model's name to its files and facts, within what this node allows. Blocking: call it in threads."""

import threading
from collections.abc import Callable
from pathlib import Path

from xgen_ray.errors import ModelNotFound
from xgen_ray.models import (
    DownloadProgress,
    ModelFacts,
    ModelSource,
    Shelf,
    download,
    inspect,
    inspect_remote,
    parse_source,
    read_shelf,
    resolve_local,
)
from xgen_ray.placement import gib
from xgen_ray.schema import Progress


class SourceFinder:
    """Local paths inside ``model_dirs`` only; everything else from the hub, into ``hub_dir``."""

    def __init__(
        self, model_dirs: tuple[Path, ...], hub_dir: Path, hub_endpoint: str | None, hub_token: str | None
    ) -> None:
        self._model_dirs = model_dirs
        self._hub_dir = hub_dir
        self._endpoint = hub_endpoint
        self._token = hub_token

    def check(self, model: str) -> None:
        """Raises for what can be seen at once to be wrong: a malformed name, a path that is not allowed or
        not on this node.
        """
        source = parse_source(model)
        if source.path is not None:
            resolve_local(source.path, self._model_dirs)

    def fetch(
        self,
        model: str,
        on_progress: Callable[[Progress], None],
        cancelled: threading.Event,
        commit: str | None,
    ) -> ModelFacts:
        """The facts of ``model``, once its files are on this node; those of ``commit``, if one is given."""
        source = parse_source(model)
        on_progress(Progress(stage="resolve", message=f"looking for {source}"))
        if source.path is not None:
            return inspect(resolve_local(source.path, self._model_dirs))

        def forward(progress: DownloadProgress) -> None:
            on_progress(_download_words(source, progress))

        return inspect(
            download(
                source,
                self._hub_dir,
                forward,
                token=self._token,
                endpoint=self._endpoint,
                cancel=cancelled,
                commit=commit,
            )
        )

    def facts_if_present(self, model: str) -> ModelFacts:
        """The facts of ``model`` if its files are on this node; fetches nothing.

        Raises ModelNotFound for a repository that has not been downloaded, or of which other files have.
        """
        source = parse_source(model)
        if source.path is not None:
            return inspect(resolve_local(source.path, self._model_dirs))
        return inspect(download(source, self._hub_dir, offline=True))

    def remote_facts(self, model: str) -> ModelFacts:
        """The facts of a model of the hub, before a byte of its weights is fetched."""
        return inspect_remote(
            parse_source(model), cache_dir=self._hub_dir, endpoint=self._endpoint, token=self._token
        )

    def shelf(self) -> Shelf:
        """The models in the model directories."""
        return read_shelf(self._model_dirs)

    def present(self, model: str) -> bool:
        """Whether the files of ``model`` are on this node, complete; fetches nothing."""
        source = parse_source(model)
        try:
            if source.path is not None:
                resolve_local(source.path, self._model_dirs)
            else:
                download(source, self._hub_dir, offline=True)
        except ModelNotFound:
            return False
        return True


def _download_words(source: ModelSource, progress: DownloadProgress) -> Progress:
    done, total = gib(progress.done_bytes), gib(progress.total_bytes)
    return Progress(
        stage="download",
        message=f"downloading {source}: {done} of {total}",
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
    )
