"""What the model at a path is, whatever its format."""

from pathlib import Path
from typing import NoReturn

from xgen_ray.errors import BadModelFile
from xgen_ray.models.files import DISK, Files, read_exactly
from xgen_ray.models.gguf_file import MAGIC, read_gguf
from xgen_ray.models.hf_folder import CONFIG, UNSAFE_SUFFIXES, read_hf_folder
from xgen_ray.models.splits import is_projector, parse_split_name
from xgen_ray.models.types import ModelFacts

_LFS_POINTER = b"version https://git-lfs"
_SHOWN = 8


def inspect(path: Path | str, files: Files = DISK) -> ModelFacts:
    """Facts of the model at ``path``: a GGUF file, a folder with one, or a HuggingFace folder.

    Raises ``ModelNotFound`` if there is nothing, ``BadModelFile`` if it is not one whole model.
    """
    path = Path(path)
    return _inspect_folder(path, files) if files.is_folder(path) else _inspect_file(path, files)


def _inspect_file(path: Path, files: Files) -> ModelFacts:
    with files.open(path) as (file, _):
        start = read_exactly(file, len(_LFS_POINTER))
    if start.startswith(MAGIC):
        return read_gguf(path, files)
    if start == _LFS_POINTER:
        _refuse(path, "is a Git LFS pointer, not the file itself. Run `git lfs pull` where it is from.")
    if path.name.endswith(".safetensors"):
        _refuse(path, f"holds weights alone. Name its folder, which has {CONFIG} too.")
    if path.name.endswith(UNSAFE_SUFFIXES):
        _refuse(
            path, "may run code when it is loaded, so it is not. Convert the model to safetensors or GGUF."
        )
    return read_gguf(path, files)


def _inspect_folder(folder: Path, files: Files) -> ModelFacts:
    names = sorted(files.names(folder))
    has_safetensors = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    models = first_parts([name for name in names if name.lower().endswith(".gguf")])
    if (CONFIG in names and has_safetensors) or not models:
        return read_hf_folder(folder, files)
    if len(models) > 1:
        listed = ", ".join(models[:_SHOWN]) + (", ..." if len(models) > _SHOWN else "")
        _refuse(folder, f"holds {len(models)} GGUF models: {listed}. Name one of them.")
    return read_gguf(folder / models[0], files)


def first_parts(names: list[str]) -> list[str]:
    """One name for each GGUF model among ``names``: the file, or the first part of a split one.

    Projectors are left out: they belong to a model and are none themselves.
    """
    models: dict[str, None] = {}
    for name in names:
        if not is_projector(name):
            split = parse_split_name(name)
            models[split.sibling(1) if split else name] = None
    return list(models)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise BadModelFile(f"{path} {reason}", str(path))
