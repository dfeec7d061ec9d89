"""What a GGUF file, whole or split, says of the model in it."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from gguf.constants import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    TENSOR_NAMES,
    Keys,
    LlamaFileType,
    PoolingType,
)

from xgen_ray.errors import BadModelFile
from xgen_ray.models.files import Files
from xgen_ray.models.gguf_header import GGUFHeader, Skipped, Value, read_header
from xgen_ray.models.splits import parse_split_name
from xgen_ray.models.templates import renders_tools
from xgen_ray.models.types import ModelFacts, ModelFormat, ModelTask

# Architectures that never generate: they make embeddings, or scores where they have a head for that.
EMBEDDING_ARCHITECTURES = frozenset(
    MODEL_ARCH_NAMES[arch]
    for arch in (
        MODEL_ARCH.BERT,
        MODEL_ARCH.MODERN_BERT,
        MODEL_ARCH.NOMIC_BERT,
        MODEL_ARCH.NOMIC_BERT_MOE,
        MODEL_ARCH.NEO_BERT,
        MODEL_ARCH.JINA_BERT_V2,
        MODEL_ARCH.JINA_BERT_V3,
        MODEL_ARCH.EUROBERT,
        MODEL_ARCH.GEMMA_EMBEDDING,
        MODEL_ARCH.LLAMA_EMBED,
        MODEL_ARCH.T5ENCODER,
    )
)

_CLASSIFIER, _CLASSIFIER_OUTPUT, _CLASSIFIER_NORM = (
    f"{TENSOR_NAMES[tensor]}.weight"
    for tensor in (MODEL_TENSOR.CLS, MODEL_TENSOR.CLS_OUT, MODEL_TENSOR.CLS_NORM)
)
_SPLIT_NUMBER = Keys.Split.LLM_KV_SPLIT_NO
_SPLIT_COUNT = Keys.Split.LLM_KV_SPLIT_COUNT
_MAX_PARTS = 1024
_MAX_LAYERS = 4096
_MAX_COUNT = 2**40
_MAX_NAME = 200
# A file type may carry this flag: "guessed from the tensors, not stated by the file".
_GUESSED = LlamaFileType.GUESSED.value


def facts_of(path: Path, files: Files) -> ModelFacts:
    """The work of :func:`xgen_ray.models.gguf_file.read_gguf`."""
    headers = _read_parts(path, files)
    first = headers[0]
    tensors = [tensor for header in headers for tensor in header.tensors]
    if not tensors:
        raise BadModelFile(
            f"{first.path} holds no tensors: it is a vocabulary, not a model.", str(first.path)
        )
    fields = _Fields(first)
    architecture = fields.text(Keys.General.ARCHITECTURE)
    if architecture is None:
        raise BadModelFile(f"{first.path} does not name its architecture. Convert it again.", str(first.path))
    fields.architecture = architecture
    heads = fields.per_layer(Keys.Attention.HEAD_COUNT)
    embedding = fields.count(Keys.LLM.EMBEDDING_LENGTH)
    # Hybrid models have layers without heads; the first that has some gives the default length of one.
    attending = next((count for count in heads or () if count), None)
    head_length = embedding // attending if embedding and attending else None
    task, pooling = _task(fields, {tensor.name for tensor in tensors})
    templates = fields.chat_templates()
    return ModelFacts(
        format=ModelFormat.GGUF,
        path=str(first.path),
        files=tuple(str(header.path) for header in headers),
        weight_bytes=sum(_weight_bytes(header) for header in headers),
        architecture=architecture,
        name=fields.text(Keys.General.NAME),
        parameter_count=sum(tensor.element_count for tensor in tensors),
        quantization=_quantization(fields, headers),
        layer_count=fields.layer_count(),
        embedding_length=embedding,
        head_count=max(heads) if heads else None,
        kv_heads=_kv_heads(fields, heads),
        key_length=fields.count(Keys.Attention.KEY_LENGTH) or head_length,
        value_length=fields.count(Keys.Attention.VALUE_LENGTH) or head_length,
        context_length=fields.count(Keys.LLM.CONTEXT_LENGTH) or None,
        sliding_window=fields.count(Keys.Attention.SLIDING_WINDOW) or None,
        vocabulary_size=fields.count(Keys.LLM.VOCAB_SIZE) or fields.elements(Keys.Tokenizer.LIST),
        expert_count=fields.count(Keys.LLM.EXPERT_COUNT) or None,
        task=task,
        pooling=pooling,
        has_chat_template=bool(templates),
        chat_template_supports_tools=any(renders_tools(name, text) for name, text in templates),
    )


class _Fields:
    """The keys of one header, typed. ``architecture`` fills the placeholder that many names carry."""

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header
        self.architecture = ""

    def get(self, key: str) -> Value | None:
        return self._header.fields.get(key.replace("{arch}", self.architecture))

    def text(self, key: str) -> str | None:
        value = self.get(key)
        return value[:_MAX_NAME] if isinstance(value, str) and value else None

    def count(self, key: str) -> int | None:
        """A number that counts something; of one number a layer, the largest."""
        value = self.get(key)
        values = value if isinstance(value, tuple) else (value,)
        if value is None or value == () or isinstance(value, Skipped):
            return None
        return max(self._checked(key, item) for item in values)

    def elements(self, key: str) -> int | None:
        value = self.get(key)
        if isinstance(value, tuple):
            return len(value)
        return value.count if isinstance(value, Skipped) else None

    def layer_count(self) -> int | None:
        layers = self.count(Keys.LLM.BLOCK_COUNT)
        if layers is not None and layers > _MAX_LAYERS:
            self.fail(f"it claims {layers} layers; at most {_MAX_LAYERS} are plausible")
        return layers

    def per_layer(self, key: str) -> tuple[int, ...] | None:
        """One number a layer, also where the file has one number for all."""
        value, layers = self.get(key), self.layer_count()
        if value is None or layers is None or isinstance(value, Skipped):
            return None
        if not isinstance(value, tuple):
            return (self._checked(key, value),) * layers
        if len(value) < layers:
            self.fail(f"{key} has {len(value)} entries for {layers} layers")
        return tuple(self._checked(key, item) for item in value[:layers])

    def chat_templates(self) -> list[tuple[str, str]]:
        """The chat templates, each with its name ("" for the default one)."""
        prefix = Keys.Tokenizer.CHAT_TEMPLATE
        return [
            (key[len(prefix) :].lstrip("."), value)
            for key, value in self._header.fields.items()
            if (key == prefix or key.startswith(prefix + ".")) and isinstance(value, str) and value.strip()
        ]

    def _checked(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_COUNT:
            self.fail(f"{key} is {str(value)[:40]!r}, not a plausible count")
        return value

    def fail(self, reason: str) -> NoReturn:
        path = self._header.path
        message = f"{path} is not a usable GGUF file: {reason}. Download or convert it again."
        raise BadModelFile(message.replace("{arch}", self.architecture), str(path))


def _read_parts(path: Path, files: Files) -> list[GGUFHeader]:
    """The headers of all parts of a split file, in order, or of the one file."""
    split = parse_split_name(path.name)
    if split is None:
        header = read_header(path, files)
        count = header.fields.get(_SPLIT_COUNT)
        if isinstance(count, int) and count > 1:
            message = f"{path} is one of {count} parts of a split model, but its name does not say which."
            raise BadModelFile(f"{message} Give the parts their names -00001-of-{count:05d} back.", str(path))
        return [header]
    if split.count > _MAX_PARTS:
        message = f"{path} claims to be one of {split.count} parts; at most {_MAX_PARTS} are plausible."
        raise BadModelFile(message, str(path))
    parts = [path.with_name(name) for name in split.siblings()]
    missing = [part.name for part in parts if not files.exists(part)]
    if missing:
        message = f"{path} is split into {split.count} parts, of which {len(missing)} are missing"
        listed = ", ".join(missing[:5])
        raise BadModelFile(f"{message}: {listed}. Put all parts into {path.parent}.", str(path))
    headers = [read_header(part, files) for part in parts]
    for number, header in enumerate(headers):
        claimed = (
            header.fields.get(Keys.Split.LLM_KV_SPLIT_NO),
            header.fields.get(_SPLIT_COUNT),
        )
        if claimed != (number, split.count):
            where = f"part {claimed[0]} of {claimed[1]} (counted from 0)"
            message = f"{header.path} is {where} by its header, part {number} of {split.count} by its name."
            raise BadModelFile(f"{message} Download it again.", str(header.path))
    return headers


def _task(fields: _Fields, tensors: Collection[str]) -> tuple[ModelTask, str | None]:
    number = fields.count(Keys.LLM.POOLING_TYPE)
    pooling = PoolingType(number) if number in {member.value for member in PoolingType} else None
    name = pooling.name.lower() if pooling is not None and pooling is not PoolingType.NONE else None
    if pooling is PoolingType.RANK:
        return ModelTask.RERANK, name
    if name is None and fields.architecture in EMBEDDING_ARCHITECTURES and _scores(tensors):
        return ModelTask.RERANK, None
    if name is not None or fields.architecture in EMBEDDING_ARCHITECTURES:
        return ModelTask.EMBED, name
    return ModelTask.GENERATE, None


def _scores(tensors: Collection[str]) -> bool:
    """Whether an encoder has a head that gives a score. Not every converter writes the pooling that says so.

    The head that a ModernBERT was trained with has the first layer and the norm of one, and no output.
    """
    return _CLASSIFIER_OUTPUT in tensors or (_CLASSIFIER in tensors and _CLASSIFIER_NORM not in tensors)


def _kv_heads(fields: _Fields, heads: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Heads that keep a cache, per layer. Hybrid models attend in every n-th layer only."""
    kv_heads = fields.per_layer(Keys.Attention.HEAD_COUNT_KV) or heads
    interval = fields.count(Keys.LLM.FULL_ATTENTION_INTERVAL)
    if kv_heads and interval:
        return tuple(count if (layer + 1) % interval == 0 else 0 for layer, count in enumerate(kv_heads))
    return kv_heads


def _quantization(fields: _Fields, headers: Sequence[GGUFHeader]) -> str | None:
    """The file's own word for it (``Q4_K_M``), else the type that most of the weight bytes have."""
    number = fields.get(Keys.General.FILE_TYPE)
    if isinstance(number, int):
        known = {member.value: member.name for member in LlamaFileType if member.value != _GUESSED}
        name = known.get(number & ~_GUESSED)
        if name is not None:
            return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    weights: Counter[str] = Counter()
    for header in headers:
        for tensor in header.tensors:
            if tensor.quantization is not None and tensor.size_bytes is not None:
                weights[tensor.quantization.name] += tensor.size_bytes
    return weights.most_common(1)[0][0] if weights else None


def _weight_bytes(header: GGUFHeader) -> int:
    sizes = [tensor.size_bytes for tensor in header.tensors]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return sum(known)
    # A tensor type newer than the library: all that follows the header is weights.
    return max(header.file_bytes - header.data_start, 0)
