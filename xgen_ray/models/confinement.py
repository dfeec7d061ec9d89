"""Local models stay inside the model directories, wherever their links lead."""

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from xgen_ray.errors import BadModelFile, InvalidRequest, ModelNotFound, PathNotAllowed
from xgen_ray.models.files import translated_os_errors
from xgen_ray.models.splits import parse_split_name

# A model folder has tens of files. One that has this many is something else, such as a home directory.
_MAX_ENTRIES = 5_000
_NEAR = 3
_COMPARED = 2_000


def resolve_local(path: Path | str, allowed_roots: Iterable[Path | str]) -> Path:
    """The absolute path of a local model, once everything it consists of lies in an allowed directory.

    Links are followed to see where they lead, and the path is returned with its links, since split parts
    and cache snapshots are found by name. A relative path is looked for in each directory in turn, then
    below the working directory. Raises ``PathNotAllowed``, which reads the same whether or not the path
    exists, and ``ModelNotFound``, which lists what is there under a similar name.
    """
    if not str(path) or "\0" in str(path):
        raise InvalidRequest("The model's path is empty or has a NUL byte in it. Give a path.", "model")
    roots = [Path(os.path.realpath(root)) for root in allowed_roots]
    candidates = [candidate for candidate in _candidates(Path(path), roots) if _is_inside(candidate, roots)]
    if not candidates:
        raise _not_allowed(path, roots)
    found = next((candidate for candidate in candidates if _exists(candidate)), None)
    if found is None:
        raise _not_found(path, candidates, roots)
    for part in _parts(found):
        if not _is_inside(part, roots):
            raise _not_allowed(path, roots, part)
    return found


def _candidates(path: Path, roots: Sequence[Path]) -> list[Path]:
    """Absolute paths that ``path`` may mean. Dot-dots are taken out by name, before any link is read,
    so that where links outside lead cannot be told from the answer.
    """
    bases = [Path()] if path.is_absolute() else [*roots, Path.cwd()]
    return [Path(os.path.normpath(base / path)) for base in bases]


def _is_inside(path: Path, roots: Sequence[Path]) -> bool:
    real = Path(os.path.realpath(path))
    return any(real == root or root in real.parents for root in roots)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError as error:
        message = f"{path} cannot be read: permission denied. Let the user that runs xgen-ray read it."
        raise BadModelFile(message, str(path)) from error
    except OSError:
        return False
    return True


def _parts(path: Path) -> Iterator[Path]:
    """Everything an engine opens when it is given ``path``."""
    split = parse_split_name(path.name)
    if split is not None:
        yield from (path.with_name(name) for name in split.siblings()[:_MAX_ENTRIES])
    if not path.is_dir():
        return
    count = 0
    with translated_os_errors(path):
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                count += 1
                if count > _MAX_ENTRIES:
                    message = f"{path} holds more than {_MAX_ENTRIES} files: it is not a model folder."
                    raise BadModelFile(message, str(path))
                yield Path(folder, name)


def _not_allowed(path: Path | str, roots: Sequence[Path], part: Path | None = None) -> PathNotAllowed:
    listed = ", ".join(str(root) for root in roots) or "none"
    what = f"{path}" if part is None or part == Path(path) else f"{path} (because of {part.name})"
    message = f"{what} is outside the model directories ({listed}). Put the model into one of them."
    return PathNotAllowed(message, "model")


def _not_found(path: Path | str, candidates: Sequence[Path], roots: Sequence[Path]) -> ModelNotFound:
    near = [name for candidate in candidates for name in _near_names(candidate, roots)]
    if near:
        return ModelNotFound(f"{path} does not exist. Did you mean {' or '.join(dict.fromkeys(near))}?")
    listed = ", ".join(str(root) for root in roots)
    advice = f"Model directories: {listed}. A repository is named hf:org/name."
    return ModelNotFound(f"{path} does not exist. {advice}")


def _near_names(path: Path, roots: Sequence[Path]) -> list[str]:
    if not _is_inside(path.parent, roots):
        return []
    try:
        with os.scandir(path.parent) as entries:
            names = {
                entry.name.lower(): entry.name for entry, _ in zip(entries, range(_COMPARED), strict=False)
            }
    except OSError:
        return []
    return [names[near] for near in difflib.get_close_matches(path.name.lower(), names, n=_NEAR)]
