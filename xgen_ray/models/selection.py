"""Which of a repository's files make up the model that was asked for. Pure: names in, names out."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from xgen_ray.errors import BadModelFile, DownloadFailed, InvalidRequest, ModelNotFound
from xgen_ray.models.hf_folder import CONFIG, INDEX, UNSAFE_SUFFIXES
from xgen_ray.models.inspection import first_parts
from xgen_ray.models.sources import ModelSource, is_safe_filename
from xgen_ray.models.splits import parse_split_name

# What is taken where a repository offers several: small, and hardly worse than the original.
PREFERRED_QUANTIZATION = "Q4_K_M"

_WEIGHTS = re.compile(r"^model(-\d+-of-\d+)?\.safetensors$")
_COMPANIONS = re.compile(r"(\.json|\.jinja|\.model|\.tiktoken|(^|/)(vocab|merges)\.txt)$")
# Sentence-transformers keep their modules in numbered folders.
_MODULE_FOLDER = re.compile(r"^\d+_[A-Za-z]+$")
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Selection:
    """``files`` with their sizes, in the order of their names; ``entry`` is the GGUF file to open, or
    None for a folder. ``why`` says which choice was made, if there was one to make.
    """

    files: Mapping[str, int]
    entry: str | None
    why: str

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())


def select(source: ModelSource, sizes: Mapping[str, int]) -> Selection:
    """Choose from ``sizes``, the bytes of each file in the repository. Raises an error that lists them."""
    for name in sizes:
        if not is_safe_filename(name):
            message = f"{source.repo} lists a file named {name[:80]!r}, which points out of its folder."
            raise DownloadFailed(f"{message} Nothing was downloaded: do not use this repository.")
    if source.filename is not None:
        return _select_gguf(source, sizes, source.filename, "as asked for")
    models = first_parts(sorted(name for name in sizes if name.lower().endswith(".gguf")))
    weights = _safetensors(sizes)
    if weights and (CONFIG in sizes or not models):
        chosen = {name: sizes[name] for name in sorted(sizes) if name in weights or _is_companion(name)}
        return Selection(chosen, None, f"{len(weights)} safetensors files and their configuration")
    if not models:
        raise _no_weights(source, sizes)
    if len(models) == 1:
        return _select_gguf(source, sizes, models[0], "the only GGUF model in the repository")
    preferred = [name for name in models if PREFERRED_QUANTIZATION.lower() in name.lower()]
    if len(preferred) == 1:
        why = f"{PREFERRED_QUANTIZATION}, of {len(models)} GGUF models in the repository"
        return _select_gguf(source, sizes, preferred[0], why)
    listed = ", ".join(models[:_SHOWN]) + (", ..." if len(models) > _SHOWN else "")
    advice = f"Name one: hf:{source.repo}:{models[0]}"
    raise InvalidRequest(f"{source} has {len(models)} GGUF models: {listed}. {advice}", "model")


def _select_gguf(source: ModelSource, sizes: Mapping[str, int], name: str, why: str) -> Selection:
    if name not in sizes:
        near = difflib.get_close_matches(name, [other for other in sizes if other.lower().endswith(".gguf")])
        advice = f"Did you mean {' or '.join(near)}?" if near else "Check the name on its page."
        raise ModelNotFound(f"{source.repo} has no file {name}. {advice}")
    split = parse_split_name(name)
    parts = split.siblings() if split else (name,)
    missing = [part for part in parts if part not in sizes]
    if missing:
        message = f"{source.repo} has {len(parts) - len(missing)} of the {len(parts)} parts of {name};"
        raise BadModelFile(f"{message} missing: {', '.join(missing[:5])}. Choose another file.", name)
    return Selection({part: sizes[part] for part in parts}, parts[0], f"{parts[0]} ({why})")


def _safetensors(sizes: Mapping[str, int]) -> frozenset[str]:
    """The weights at the top; others (originals, adapters, exports) only where there are no such."""
    top = [name for name in sizes if "/" not in name and name.endswith(".safetensors")]
    usual = frozenset(name for name in top if _WEIGHTS.match(name))
    if INDEX in sizes:
        # An index may name shards of any name; which it names is not known before it is here.
        usual |= {name for name in top if not name.startswith(("adapter_", "consolidated"))}
    if not usual:
        return frozenset(name for name in top if not name.startswith("adapter_"))
    modules = (name for name in sizes if name.endswith("/model.safetensors") and _in_module(name))
    return usual.union(modules)


def _is_companion(name: str) -> bool:
    return _COMPANIONS.search(name) is not None and ("/" not in name or _in_module(name))


def _in_module(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) == 2 and _MODULE_FOLDER.match(parts[0]) is not None


def _no_weights(source: ModelSource, sizes: Mapping[str, int]) -> BadModelFile:
    unsafe = sorted(name for name in sizes if name.endswith(UNSAFE_SUFFIXES))
    if unsafe:
        reason = "loading such files runs code from them, so they are not loaded"
        message = f"{source} has weights only as {', '.join(unsafe[:3])}: {reason}."
        return BadModelFile(f"{message} Convert them to safetensors.", str(source))
    adapter = "adapter_config.json" in sizes
    what = "a LoRA adapter, not a whole model" if adapter else "neither safetensors nor GGUF weights in it"
    return BadModelFile(f"{source} has {what} ({len(sizes)} files). Name another repository.", str(source))
