"""What one token of context costs, from the model's own figures or, without them, a stated guess."""

from dataclasses import dataclass

from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.sizes import KIB

# Bytes per element as a numerator and denominator. ggml's blocks of 32: q8_0 is 32 bytes and a half
# precision scale, q4_0 is 16 bytes and one.
_ELEMENT = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}
# A recurrent layer's state in bytes per embedding element: twice the width, 128 states, in f32.
_STATE_PER_WIDTH = 2 * 128 * 4


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Cache bytes of one token: those of the layers on GPUs, and those of the rest."""

    gpu_bytes: int
    host_bytes: int
    detail: str
    estimated: bool


def kv_cache(facts: ModelFacts, cache_type: str, gpu_layers: int | None) -> TokenCost:
    """The cost of a token when the last ``gpu_layers`` layers lie on GPUs; None means all of them."""
    if is_encoder(facts):
        return TokenCost(0, 0, "an encoder, which keeps none", estimated=False)
    heads, lengths = _heads(facts), _lengths(facts)
    if heads is None or lengths is None:
        guess = _guess(facts)
        layers = facts.layer_count or 1
        part = 1.0 if gpu_layers is None else min(1.0, gpu_layers / layers)
        on_gpu = int(guess * part)
        detail = f"{guess // KIB} KiB, a guess from the model's size: the file does not say"
        return TokenCost(on_gpu, guess - on_gpu, detail, estimated=True)
    top, bottom = _ELEMENT[cache_type]
    per_layer = [count * sum(lengths) * top // bottom for count in heads]
    # llama.cpp fills the GPU from the last layer backwards.
    first = 0 if gpu_layers is None else max(0, len(per_layer) - gpu_layers)
    on_gpu, on_host = sum(per_layer[first:]), sum(per_layer[:first])
    detail = f"{(on_gpu + on_host) / KIB:.1f} KiB ({len(per_layer)} layers, {cache_type})"
    if facts.sliding_window:
        detail += (
            f"; upper bound: layers that look back only {facts.sliding_window} tokens are charged in full"
        )
    return TokenCost(on_gpu, on_host, detail, estimated=facts.kv_heads is None)


def is_encoder(facts: ModelFacts) -> bool:
    """Whether the model reads its input in one go, with neither a cache nor logits: BERT and its kin."""
    return "bert" in (facts.architecture or "").lower()


def recurrent_state_bytes(facts: ModelFacts) -> int:
    """State of one request in the layers that have no attention cache; an estimate."""
    if not facts.kv_heads or not facts.embedding_length:
        return 0
    return facts.kv_heads.count(0) * facts.embedding_length * _STATE_PER_WIDTH


def _heads(facts: ModelFacts) -> tuple[int, ...] | None:
    if facts.kv_heads is not None:
        return facts.kv_heads
    # Without a word about grouped heads, every head may have a cache of its own.
    if facts.layer_count and facts.head_count:
        return (facts.head_count,) * facts.layer_count
    return None


def _lengths(facts: ModelFacts) -> tuple[int, int] | None:
    key, value = facts.key_length, facts.value_length
    if (key is None or value is None) and facts.embedding_length and facts.head_count:
        width = facts.embedding_length // facts.head_count
        key, value = key or width, value or width
    return (key, value) if key is not None and value is not None else None


def _guess(facts: ModelFacts) -> int:
    """Half a MiB a token for 4 GiB of weights, as a model without grouped heads needs; never under 64 KiB."""
    return max(64 * KIB, facts.weight_bytes // 8192)
