"""The HuggingFace cache layout: where a repository's blobs, snapshots and revisions lie on this node."""

import re
import threading
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import DEFAULT_REVISION, REPO_ID_SEPARATOR

from xgen_ray.errors import BadModelFile, ModelNotFound
from xgen_ray.models.files import read_text
from xgen_ray.models.inspection import inspect
from xgen_ray.models.selection import Selection, select
from xgen_ray.models.sources import ModelSource

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_MAX_REFERENCE_BYTES = 256


@dataclass(frozen=True, slots=True)
class CachedRepo:
    """One repository in one cache. ``refs/`` names a commit only once its snapshot is complete."""

    cache_dir: Path
    repo: str

    @property
    def folder(self) -> Path:
        return self.cache_dir / REPO_ID_SEPARATOR.join(("models", *self.repo.split("/")))

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, etag: str) -> Path:
        return self.folder / "blobs" / etag

    def partial(self, etag: str) -> Path:
        return self.folder / "blobs" / f"{etag}.partial"

    def lock(self, etag: str) -> Path:
        """The library's own lock for this blob."""
        return self.cache_dir / ".locks" / self.folder.name / f"{etag}.lock"

    def held_bytes(self, etag: str | None) -> int:
        """How much of a file is here already, whole or in part."""
        if not etag:
            return 0
        held = (path for path in (self.blob(etag), self.partial(etag)) if path.exists())
        return max((path.stat().st_size for path in held), default=0)

    def remember(self, revision: str | None, commit: str) -> None:
        """Note which commit a revision is, for when the hub is out of reach."""
        if revision == commit:
            return
        reference = self._reference(revision)
        reference.parent.mkdir(parents=True, exist_ok=True)
        fresh = reference.with_name(f"{reference.name}.{threading.get_ident()}.tmp")
        fresh.write_text(commit)
        fresh.replace(reference)

    def recall(self, revision: str | None) -> str | None:
        """The commit that a revision was when it was last downloaded."""
        if revision is not None and is_commit(revision):
            return revision
        try:
            commit = read_text(self._reference(revision), _MAX_REFERENCE_BYTES).strip()
        except (ModelNotFound, BadModelFile):
            return None
        return commit if is_commit(commit) else None

    def _reference(self, revision: str | None) -> Path:
        return self.folder / "refs" / (revision or DEFAULT_REVISION)


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model that is complete in the cache; ``path`` is what an engine is given."""

    path: Path
    selection: Selection


def is_commit(text: str) -> bool:
    return _COMMIT.match(text) is not None


def find_cached(source: ModelSource, repo: CachedRepo) -> CachedModel:
    """The model in the cache, without asking the hub. Raises ``ModelNotFound`` unless it is all there,
    and ``InvalidRequest`` if there are several to choose from.
    """
    commit = repo.recall(source.revision)
    snapshot = repo.snapshot(commit) if commit else None
    if snapshot is None or not snapshot.is_dir():
        raise ModelNotFound(f"{source} is not in the cache {repo.cache_dir}. Download it first.")
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(snapshot)): path.stat().st_size for path in files}
    try:
        selection = select(source, sizes)
        path = entry_path(snapshot, selection)
        inspect(path)
    except (BadModelFile, ModelNotFound) as error:
        message = f"{source} is not complete in the cache {repo.cache_dir}: {error} Download it first."
        raise ModelNotFound(message) from error
    return CachedModel(path, selection)


def entry_path(snapshot: Path, selection: Selection) -> Path:
    return snapshot / selection.entry if selection.entry else snapshot
