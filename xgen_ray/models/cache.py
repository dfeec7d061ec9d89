"""The HuggingFace cache layout: where a repository's blobs, snapshots and revisions lie on this node."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePath

from huggingface_hub.constants import DEFAULT_REVISION, REPO_ID_SEPARATOR

from xgen_ray.errors import BadModelFile, InvalidRequest, ModelNotFound
from xgen_ray.models.files import read_text
from xgen_ray.models.inspection import first_parts, inspect
from xgen_ray.models.selection import Selection, select
from xgen_ray.models.sources import ModelSource, is_safe_filename

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_MAX_NOTE_BYTES = 4096


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
        _write(self._reference(revision), commit)

    def recall(self, revision: str | None) -> str | None:
        """The commit that a revision was when it was last downloaded."""
        if revision is not None and is_commit(revision):
            return revision
        try:
            commit = read_text(self._reference(revision), _MAX_NOTE_BYTES).strip()
        except (ModelNotFound, BadModelFile):
            return None
        return commit if is_commit(commit) else None

    def remember_choice(self, commit: str, entry: str) -> None:
        """Note which GGUF file is meant at ``commit`` where none is named: what was not fetched is not here
        to choose from.
        """
        _write(self._choice(commit), entry)

    def recall_choice(self, commit: str) -> str | None:
        """The GGUF file that was chosen at ``commit``."""
        try:
            entry = read_text(self._choice(commit), _MAX_NOTE_BYTES).strip()
        except (ModelNotFound, BadModelFile):
            return None
        return entry if is_safe_filename(entry) else None

    def _reference(self, revision: str | None) -> Path:
        return self.folder / "refs" / (revision or DEFAULT_REVISION)

    def _choice(self, commit: str) -> Path:
        # Beside the library's own ``.no_exist``; it looks at neither when it lists the cache.
        return self.folder / ".choice" / commit


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model that is complete in the cache; ``path`` is what an engine is given."""

    path: Path
    selection: Selection


def is_commit(text: str) -> bool:
    return _COMMIT.match(text) is not None


def commit_of(path: str) -> str | None:
    """The commit whose snapshot ``path`` lies in, if it lies in one."""
    inside = (name for folder, name in pairwise(PurePath(path).parts) if folder == "snapshots")
    return next((name for name in inside if is_commit(name)), None)


def find_cached(source: ModelSource, repo: CachedRepo, commit: str | None = None) -> CachedModel:
    """The model in the cache, without asking the hub: at ``commit``, else at what its revision was last.

    Raises ``ModelNotFound`` unless it is all there, and where it is not known which file the hub chooses.
    """
    commit = commit or repo.recall(source.revision)
    snapshot = repo.snapshot(commit) if commit else None
    if commit is None or snapshot is None or not snapshot.is_dir():
        raise ModelNotFound(f"{source} is not in the cache {repo.cache_dir}. Download it first.")
    sizes = _sizes(snapshot)
    named = source if source.filename else replace(source, filename=repo.recall_choice(commit))
    if unclear := _undecided(named, sizes):
        raise ModelNotFound(f"{source} in the cache {repo.cache_dir}: {unclear}.")
    try:
        selection = select(named, sizes)
        path = entry_path(snapshot, selection)
        inspect(path)
    except (BadModelFile, ModelNotFound) as error:
        message = f"{source} is not complete in the cache {repo.cache_dir}: {error} Download it first."
        raise ModelNotFound(message) from error
    return CachedModel(path, selection)


def undecided(source: ModelSource, repo: CachedRepo) -> str | None:
    """What is in the cache of a repository of which only the hub can say which file is meant, in words."""
    commit = repo.recall(source.revision)
    return _undecided(source, _sizes(repo.snapshot(commit))) if commit else None


def _undecided(source: ModelSource, sizes: Mapping[str, int]) -> str | None:
    if source.filename is not None:
        return None
    try:
        if select(source, sizes).entry is None:
            return None
    except InvalidRequest:  # several
        pass
    except BadModelFile:  # none that is whole
        return None
    models = first_parts(sorted(name for name in sizes if name.lower().endswith(".gguf")))
    advice = f"name the file to use it: hf:{source.repo}:{models[0]}"
    return f"only the hub knows which GGUF model is meant; here is {', '.join(models)}, {advice}"


def _sizes(snapshot: Path) -> dict[str, int]:
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    return {str(path.relative_to(snapshot)): path.stat().st_size for path in files}


def _write(note: Path, text: str) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    fresh = note.with_name(f"{note.name}.{threading.get_ident()}.tmp")
    fresh.write_text(text)
    fresh.replace(note)


def entry_path(snapshot: Path, selection: Selection) -> Path:
    return snapshot / selection.entry if selection.entry else snapshot
