"""A HuggingFace ``config.json``, read for what it says of size and shape.

The same fact goes by several names, by the age and the family of a model; the tables below list them in
the order in which they are looked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from xgen_ray.errors import BadModelFile
from xgen_ray.models.types import ModelTask

# Where multimodal models keep the language model's own configuration.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EMBEDDING = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_query_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ATTENDING = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})

_MAX_LAYERS = 4096
_MAX_COUNT = 2**40
_MAX_NAME = 200
_DEFAULT_LABELS = 2


@dataclass(frozen=True, slots=True)
class HFConfig:
    """One ``config.json``; every question answers None where the file does not say."""

    path: Path
    top: Mapping[str, object]

    @property
    def text(self) -> Mapping[str, object]:
        """The language model's part: the nested configuration laid over the outer one."""
        merged = dict(self.top)
        level: Mapping[str, object] = self.top
        for _ in _NESTED:
            nested = next((level[key] for key in _NESTED if isinstance(level.get(key), dict)), None)
            if not isinstance(nested, dict):
                break
            merged.update(nested)
            level = nested
        return merged

    def architecture(self) -> str | None:
        names = self.top.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0][:_MAX_NAME]
        kind = self.top.get("model_type")
        return kind[:_MAX_NAME] if isinstance(kind, str) else None

    def layer_count(self) -> int | None:
        layers = self._count(*_LAYERS)
        if layers is not None and layers > _MAX_LAYERS:
            self._fail(f"it claims {layers} layers; at most {_MAX_LAYERS} are plausible")
        return layers

    def embedding_length(self) -> int | None:
        return self._count(*_EMBEDDING)

    def head_count(self) -> int | None:
        return self._count(*_HEADS)

    def context_length(self) -> int | None:
        return self._count(*_CONTEXT)

    def vocabulary_size(self) -> int | None:
        return self._count("vocab_size", "padded_vocab_size")

    def expert_count(self) -> int | None:
        return self._count(*_EXPERTS)

    def sliding_window(self) -> int | None:
        """The window, unless the file has one but says that it is not used."""
        return None if self.text.get("use_sliding_window") is False else self._count("sliding_window")

    def head_lengths(self) -> tuple[int | None, int | None]:
        """Elements of key and value that one cached head takes per token."""
        rank, rope = self._count("kv_lora_rank"), self._count("qk_rope_head_dim")
        if rank and rope:
            # Latent attention caches one compressed vector and its rotary part; values are made from it.
            return rank + rope, 0
        heads, embedding = self.head_count(), self.embedding_length()
        default = embedding // heads if heads and embedding else None
        key = self._count("head_dim", "attention_head_dim", "kv_channels") or default
        return key, self._count("v_head_dim") or key

    def kv_heads(self) -> tuple[int, ...] | None:
        """Heads that keep a cache, per layer; 0 where a layer keeps its state in another way."""
        layers = self.layer_count()
        if layers is None:
            return None
        kinds = self.text.get("layer_types")
        if isinstance(kinds, list) and len(kinds) == layers:
            attends = [isinstance(kind, str) and kind in _ATTENDING for kind in kinds]
        else:
            attends = [True] * layers
        counts = self._kv_heads_per_layer(layers)
        return counts and tuple(count if on else 0 for count, on in zip(counts, attends, strict=True))

    def _kv_heads_per_layer(self, layers: int) -> tuple[int, ...] | None:
        text = self.text
        if self._count("kv_lora_rank"):
            return (1,) * layers
        listed = next((text[key] for key in _KV_HEADS if isinstance(text.get(key), list)), None)
        if isinstance(listed, list):
            if len(listed) != layers:
                self._fail(f"it lists key-value heads for {len(listed)} of {layers} layers")
            return tuple(self._natural("key-value heads", item) for item in listed)
        multi_query = text.get("multi_query") is True and not text.get("new_decoder_architecture")
        count = self._count(*_KV_HEADS) or (1 if multi_query else self.head_count())
        return (count,) * layers if count else None

    def quantization(self) -> str | None:
        """The method its weights are quantised with, else the type they are stored in."""
        for where in (self.top, self.text):
            method = where.get("quantization_config")
            if isinstance(method, dict) and isinstance(method.get("quant_method"), str):
                return str(method["quant_method"])[:_MAX_NAME]
        dtype = next((self.text[key] for key in ("dtype", "torch_dtype") if self.text.get(key)), None)
        return dtype.removeprefix("torch.")[:_MAX_NAME] if isinstance(dtype, str) else None

    @property
    def is_quantized(self) -> bool:
        return any(isinstance(where.get("quantization_config"), dict) for where in (self.top, self.text))

    def task(self) -> ModelTask:
        """What the architecture is for. A classifier that scores (one label) is a reranker."""
        architecture = self.architecture() or ""
        remote = self.top.get("auto_map")
        if isinstance(remote, dict) and "AutoModelForCausalLM" in remote:
            return ModelTask.GENERATE
        if architecture.endswith("ForSequenceClassification"):
            labels = self._label_count()
            if labels != 1:
                self._fail(f"it describes a classifier with {labels} labels, which is not served here")
            return ModelTask.RERANK
        encoder = architecture.endswith(("Model", "ForMaskedLM")) and not architecture.endswith("LMHeadModel")
        return ModelTask.EMBED if encoder else ModelTask.GENERATE

    def _label_count(self) -> int:
        labels = self.top.get("id2label")
        if isinstance(labels, dict):
            return len(labels)
        return self._natural("num_labels", self.top.get("num_labels", _DEFAULT_LABELS))

    def _count(self, *keys: str) -> int | None:
        """The first of ``keys`` that has a value; of one number a layer, the largest. Zero counts as none."""
        text = self.text
        for key in keys:
            value = text.get(key)
            if value is None or value == []:
                continue
            values: Sequence[object] = value if isinstance(value, list) else (value,)
            return max(self._natural(key, item) for item in values) or None
        return None

    def _natural(self, key: str, value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_COUNT:
            self._fail(f"{key} is {str(value)[:40]!r}, not a plausible count")
        return value

    def _fail(self, reason: str) -> NoReturn:
        message = f"{self.path} is not a usable configuration: {reason}. Correct it or download it again."
        raise BadModelFile(message, str(self.path))
