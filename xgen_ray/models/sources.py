"""How a model is named: a local path, ``hf:org/name[@revision]``, ``hf:org/name[@revision]:file.gguf``."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn

from xgen_ray.errors import InvalidRequest
from xgen_ray.models.splits import parse_split_name

_PREFIX = "hf:"
_FORM = "hf:org/name, hf:org/name@revision or hf:org/name:file.gguf"
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:(//)?", re.IGNORECASE)
# The hub's own rules; a name becomes a folder in the cache.
_REPO = re.compile(r"^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?/[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$")
_REVISION = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNSAFE_IN_NAME = re.compile(r"[^a-z0-9._-]+")
_CACHE_FOLDER = re.compile(r"^models--(?:.+--)?(?P<name>.+)$")
_MAX_SOURCE = 1024
_MAX_REPO = 96
_MAX_NAME = 128
_FALLBACK_NAME = "model"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: ``path`` alone, or ``repo`` with what narrows it down."""

    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    filename: str | None = None

    @property
    def is_local(self) -> bool:
        return self.path is not None

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        revision = f"@{self.revision}" if self.revision else ""
        filename = f":{self.filename}" if self.filename else ""
        return f"{_PREFIX}{self.repo}{revision}{filename}"


def parse_source(text: str) -> ModelSource:
    """Read a model's name. Raises ``InvalidRequest`` (param ``model``) that says what a name looks like."""
    if not text.strip() or len(text) > _MAX_SOURCE:
        _refuse(text, f"it has {len(text.strip())} characters; 1 to {_MAX_SOURCE} are allowed")
    if _CONTROL.search(text):
        _refuse(text, "it has control characters in it")
    if text.startswith(_PREFIX):
        return _parse_hub(text)
    scheme = _SCHEME.match(text)
    if scheme is not None:
        _refuse(text, f"{scheme[0]!r} is no place to load from")
    return ModelSource(path=text)


def _parse_hub(text: str) -> ModelSource:
    rest, colon, filename = text.removeprefix(_PREFIX).partition(":")
    repo, at, revision = rest.partition("@")
    if "/" not in repo:
        _refuse(text, f"{repo!r} lacks the organisation before the name")
    if not _REPO.match(repo) or len(repo) > _MAX_REPO or "--" in repo or ".." in repo:
        _refuse(text, f"{repo!r} is not the name of a repository")
    if at and not is_revision(revision):
        _refuse(text, f"{revision!r} is not a branch, a tag or a commit")
    if colon and (not filename.lower().endswith(".gguf") or not is_safe_filename(filename)):
        _refuse(text, f"{filename!r} is not a GGUF file in a repository")
    return ModelSource(repo=repo, revision=revision or None, filename=filename or None)


def is_revision(text: str) -> bool:
    """Whether ``text`` can name a revision. It becomes a path in the cache: no dot-dot, no absolute path."""
    return _REVISION.match(text) is not None and ".." not in text


def is_safe_filename(name: str) -> bool:
    """Whether a repository's file name stays inside the folder that it is put into."""
    path = PurePosixPath(name)
    plain = not _CONTROL.search(name) and "\\" not in name and str(path) == name
    return plain and not path.is_absolute() and not {"..", ".", ""} & set(path.parts) and bool(path.parts)


def default_name(source: ModelSource) -> str:
    """The name a model is served under unless one is given: its file's or repository's, in lower case."""
    origin = source.filename or source.repo or source.path or ""
    path = PurePosixPath(origin)
    name = path.name
    if name.lower().endswith(".gguf"):
        split = parse_split_name(name)
        name = split.stem if split else name[: -len(".gguf")]
    for folder in path.parts:
        cached = _CACHE_FOLDER.match(folder)
        if cached is not None and path.parts[-2:-1] == ("snapshots",):
            name = cached["name"]
    cleaned = _UNSAFE_IN_NAME.sub("-", name.lower()).strip("-._")[:_MAX_NAME]
    return cleaned or _FALLBACK_NAME


def _refuse(text: str, reason: str) -> NoReturn:
    shown = text if len(text) <= _MAX_NAME else text[:_MAX_NAME] + "..."
    raise InvalidRequest(f"{shown!r} names no model: {reason}. Give a local path, {_FORM}.", "model")
