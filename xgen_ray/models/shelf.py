"""What lies in the model directories: every GGUF file and every Hugging Face folder that could be loaded."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xgen_ray.models.sources import ModelSource, default_name
from xgen_ray.models.splits import is_projector, parse_split_name
from xgen_ray.models.types import ModelFormat

# What is deeper, or in a folder with more in it, is found by those who type its path.
MAX_DEPTH: Final = 4
MAX_ENTRIES: Final = 20_000
_WEIGHTS: Final = ".safetensors"
_GGUF: Final = ".gguf"


@dataclass(frozen=True, slots=True)
class ShelvedModel:
    """A model by its path, as far as names and sizes tell. Whether it can be read is found out by loading."""

    path: Path
    name: str
    format: ModelFormat
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """``left_out`` says which folders were not looked into to the end, and why."""

    models: tuple[ShelvedModel, ...]
    left_out: tuple[str, ...] = ()


def read_shelf(roots: Iterable[Path]) -> Shelf:
    """Look through ``roots``. Opens no file and follows no link out of them."""
    found: dict[Path, ShelvedModel] = {}
    left_out: list[str] = []
    for root in dict.fromkeys(Path(os.path.realpath(root)) for root in roots):
        for folder, files in _folders(root, left_out):
            found.update((model.path, model) for model in _models_in(folder, files, root))
    return Shelf(tuple(found[path] for path in sorted(found)), tuple(left_out))


def _folders(root: Path, left_out: list[str]) -> Iterator[tuple[Path, Sequence[str]]]:
    """Every folder down to the depth, with the names of its files."""

    def tell(error: OSError) -> None:
        left_out.append(f"{error.filename} cannot be read: {error.strerror}")

    entries = 0
    for name, folders, files in os.walk(root, onerror=tell):
        folder = Path(name)
        entries += len(folders) + len(files)
        if entries > MAX_ENTRIES:
            left_out.append(f"{root} has more than {MAX_ENTRIES} files: not all were looked at")
            return
        hidden = [one for one in folders if one.startswith(".")]
        too_deep = len(folder.relative_to(root).parts) >= MAX_DEPTH
        folders[:] = [] if too_deep else sorted(set(folders) - set(hidden))
        yield folder, sorted(files)


def _models_in(folder: Path, files: Sequence[str], root: Path) -> Iterator[ShelvedModel]:
    sizes = {name: size for name in files if (size := _size(folder / name, root)) is not None}
    for name in sizes:
        if not name.lower().endswith(_GGUF) or is_projector(name):
            continue
        split = parse_split_name(name)
        parts = split.siblings() if split is not None else (name,)
        # A split model is named by its first part; without all of them it cannot be loaded.
        if name == parts[0] and all(part in sizes for part in parts):
            yield _model(folder / name, ModelFormat.GGUF, sum(sizes[part] for part in parts))
    weights = [size for name, size in sizes.items() if name.endswith(_WEIGHTS)]
    if weights and "config.json" in sizes:
        yield _model(folder, ModelFormat.SAFETENSORS, sum(weights))


def _model(path: Path, kind: ModelFormat, size_bytes: int) -> ShelvedModel:
    return ShelvedModel(path, default_name(ModelSource(path=str(path))), kind, size_bytes)


def _size(path: Path, root: Path) -> int | None:
    """The size of a file whose content lies inside ``root``; None for anything else."""
    real = Path(os.path.realpath(path))
    if root not in real.parents or not real.is_file():
        return None
    return real.stat().st_size
