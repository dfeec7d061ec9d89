"""What a model file says of itself, as data. Sizes are bytes; ``None`` means the file does not say."""

from dataclasses import dataclass
from enum import StrEnum


class ModelFormat(StrEnum):
    GGUF = "gguf"
    SAFETENSORS = "safetensors"


class ModelTask(StrEnum):
    """What a model is for."""

    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Read from headers and configs alone, never from weights.

    ``path`` is what an engine is given: the GGUF file (the first of a split one) or the folder.
    ``files`` are all weight files, ``weight_bytes`` their size as the engine holds it.
    ``kv_heads`` has one entry a layer (0: a layer without attention cache). ``key_length`` and
    ``value_length`` are per head, in elements. ``context_length`` is what the model was trained for.
    """

    format: ModelFormat
    path: str
    files: tuple[str, ...]
    weight_bytes: int
    architecture: str | None = None
    name: str | None = None
    parameter_count: int | None = None
    quantization: str | None = None
    layer_count: int | None = None
    embedding_length: int | None = None
    head_count: int | None = None
    kv_heads: tuple[int, ...] | None = None
    key_length: int | None = None
    value_length: int | None = None
    context_length: int | None = None
    sliding_window: int | None = None
    vocabulary_size: int | None = None
    expert_count: int | None = None
    task: ModelTask = ModelTask.GENERATE
    pooling: str | None = None
    has_chat_template: bool = False
    chat_template_supports_tools: bool = False


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is, over all its files. ``message`` says what is fetched and why that."""

    done_bytes: int
    total_bytes: int
    message: str = ""
