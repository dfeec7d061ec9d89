"""What a HuggingFace folder says of the model in it."""

from collections import Counter
from pathlib import Path

from xgen_ray.errors import BadModelFile, ModelNotFound
from xgen_ray.models.files import DISK, Files, read_json_object, read_text
from xgen_ray.models.hf_config import HFConfig
from xgen_ray.models.safetensors_header import SafetensorsHeader, read_safetensors_header
from xgen_ray.models.sources import is_safe_filename
from xgen_ray.models.templates import renders_tools
from xgen_ray.models.types import ModelFacts, ModelFormat, ModelTask

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Formats that run code when they are loaded, or that no engine here reads.
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")

_MAX_SHARDS = 2048
_POOLING = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}


def read_hf_folder(path: Path | str, files: Files = DISK) -> ModelFacts:
    """Facts of the safetensors model in the folder ``path``.

    Reads configurations and headers only, and checks that every shard is there and whole. Raises
    ``BadModelFile`` for folders without ``config.json`` or without safetensors weights.
    """
    folder = Path(path)
    names = _list_names(folder, files)
    if CONFIG not in names:
        adapter = "adapter_config.json" in names
        what = "a LoRA adapter, not a model" if adapter else f"not a model folder: it has no {CONFIG}"
        raise BadModelFile(f"{folder} is {what}. Name the folder of a whole model.", str(folder))
    config = HFConfig(folder / CONFIG, read_json_object(folder / CONFIG, files))
    weights = _weight_files(folder, names, files)
    headers = [read_safetensors_header(file, files) for file in weights]
    task, pooling = _task(folder, names, config, files)
    key_length, value_length = config.head_lengths()
    templates = _chat_templates(folder, names, files)
    return ModelFacts(
        format=ModelFormat.SAFETENSORS,
        path=str(folder),
        files=tuple(str(file) for file in weights),
        weight_bytes=sum(header.weight_bytes for header in headers),
        architecture=config.architecture(),
        parameter_count=_parameter_count(config, headers),
        quantization=config.quantization() or _dominant_dtype(headers),
        layer_count=config.layer_count(),
        embedding_length=config.embedding_length(),
        head_count=config.head_count(),
        kv_heads=config.kv_heads(),
        key_length=key_length,
        value_length=value_length,
        context_length=_context_length(folder, names, config, files),
        sliding_window=config.sliding_window(),
        vocabulary_size=config.vocabulary_size(),
        expert_count=config.expert_count(),
        task=task,
        pooling=pooling,
        has_chat_template=bool(templates),
        chat_template_supports_tools=any(renders_tools(name, text) for name, text in templates),
    )


def _list_names(folder: Path, files: Files) -> frozenset[str]:
    if not files.is_folder(folder) and files.exists(folder):
        raise BadModelFile(f"{folder} is a file, not a model folder.", str(folder))
    return files.names(folder)


def _weight_files(folder: Path, names: frozenset[str], files: Files) -> list[Path]:
    """The safetensors files that make up the model. With an index, engines go by the index alone."""
    if INDEX in names:
        return _indexed_shards(folder, files)
    if WEIGHTS in names:
        return [folder / WEIGHTS]
    found = sorted(
        name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")
    )
    whole = [name for name in found if not name.startswith("consolidated")] or found
    if whole:
        return [folder / name for name in whole]
    unsafe = sorted(name for name in names if name.endswith(UNSAFE_SUFFIXES))
    if unsafe:
        reason = "loading such files runs code from them, so they are not loaded"
        message = (
            f"{folder} has weights only as {', '.join(unsafe[:3])}: {reason}. Convert them to safetensors."
        )
        raise BadModelFile(message, str(folder))
    raise BadModelFile(f"{folder} has a {CONFIG} but no safetensors weights. Download it whole.", str(folder))


def _indexed_shards(folder: Path, files: Files) -> list[Path]:
    index = folder / INDEX
    weight_map = read_json_object(index, files).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadModelFile(f"{index} has no weight_map. Download it again.", str(index))
    shards = sorted({str(name) for name in weight_map.values()})
    for name in shards:
        if "/" in name or not is_safe_filename(name):
            raise BadModelFile(f"{index} names {name[:80]!r}, which is not a file beside it.", str(index))
    if len(shards) > _MAX_SHARDS:
        message = f"{index} names {len(shards)} shards; at most {_MAX_SHARDS} are plausible."
        raise BadModelFile(message, str(index))
    missing = [name for name in shards if not files.exists(folder / name)]
    if missing:
        message = f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:5])}."
        raise BadModelFile(f"{message} Download it again to complete it.", str(folder))
    return [folder / name for name in shards]


def _task(
    folder: Path, names: frozenset[str], config: HFConfig, files: Files
) -> tuple[ModelTask, str | None]:
    task = config.task()
    if "modules.json" in names and task is not ModelTask.RERANK:
        return ModelTask.EMBED, _pooling(folder, files)
    return task, None


def _pooling(folder: Path, files: Files) -> str | None:
    """The pooling of a sentence-transformers folder."""
    try:
        modes = read_json_object(folder / "1_Pooling" / CONFIG, files)
    except ModelNotFound:
        return None
    return next((name for key, name in _POOLING.items() if modes.get(key) is True), None)


def _context_length(folder: Path, names: frozenset[str], config: HFConfig, files: Files) -> int | None:
    """What the model takes; sentence-transformers may say less than its architecture allows."""
    context = config.context_length()
    limits = "sentence_bert_config.json"
    if limits in names:
        limit = read_json_object(folder / limits, files).get("max_seq_length")
        if type(limit) is int and limit > 0:
            return min(context or limit, limit)
    return context


def _chat_templates(folder: Path, names: frozenset[str], files: Files) -> list[tuple[str, str]]:
    """The chat templates, each with its name ("" for the default one)."""
    found: list[tuple[object, object]] = []
    if "chat_template.jinja" in names:
        found.append(("", read_text(folder / "chat_template.jinja", files=files)))
    for name in ("chat_template.json", "tokenizer_config.json"):
        value = read_json_object(folder / name, files).get("chat_template") if name in names else None
        entries = value if isinstance(value, list) else [{"name": "", "template": value}]
        found += [(entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, dict)]
    return [(str(name), text) for name, text in found if isinstance(text, str) and text.strip()]


def _parameter_count(config: HFConfig, headers: list[SafetensorsHeader]) -> int | None:
    """All elements; not known of quantised weights, which pack several into one."""
    if config.is_quantized:
        return None
    return sum(count for header in headers for count in header.elements.values())


def _dominant_dtype(headers: list[SafetensorsHeader]) -> str:
    elements: Counter[str] = Counter()
    for header in headers:
        elements.update(header.elements)
    return elements.most_common(1)[0][0]
