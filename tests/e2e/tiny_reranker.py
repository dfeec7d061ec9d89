"""A reranker of a few kilobytes with random weights: what it says means nothing, how it says it is real."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

_WIDTH = 32
_FEED_FORWARD = 64
_CONTEXT = 128
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# The phantom space marks the start of a word, as llama.cpp expects it.
_WORDS = tuple(f"\u2581{letter}" for letter in "abcdefghijklmnopqrstuvwxyz") + tuple(
    "abcdefghijklmnopqrstuvwxyz"
)


def write_reranker(path: Path) -> Path:
    """A BERT cross-encoder with one layer that knows letters."""
    tokens = [*_SPECIAL, *_WORDS]
    writer = GGUFWriter(path, "bert")
    writer.add_name("tiny reranker")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.RANK)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(_SPECIAL) + [TokenType.NORMAL] * len(_WORDS))
    writer.add_token_type_count(2)
    for add, token in (
        (writer.add_pad_token_id, "[PAD]"),
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_eos_token_id, "[SEP]"),
        (writer.add_sep_token_id, "[SEP]"),
    ):
        add(tokens.index(token))
    for name, shape in _shapes(len(tokens)).items():
        writer.add_tensor(name, _values(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    layer = {
        **{f"attn_{part}": (_WIDTH, _WIDTH) for part in ("q", "k", "v", "output")},
        "ffn_up": (_FEED_FORWARD, _WIDTH),
        "ffn_down": (_WIDTH, _FEED_FORWARD),
    }
    matrices = {f"blk.0.{name}": shape for name, shape in layer.items()}
    matrices |= {"cls": (_WIDTH, _WIDTH), "cls.output": (1, _WIDTH)}
    norms = ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm")
    return {
        "token_embd.weight": (vocabulary, _WIDTH),
        "token_types.weight": (2, _WIDTH),
        "position_embd.weight": (_CONTEXT, _WIDTH),
        **{f"{name}.weight": shape for name, shape in matrices.items()},
        **{f"{name}.bias": shape[:1] for name, shape in matrices.items()},
        **{f"{name}.{part}": (_WIDTH,) for name in norms for part in ("weight", "bias")},
    }


def _values(name: str, shape: tuple[int, ...]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float32)
    random = np.random.default_rng(sum(name.encode()))
    return random.normal(0.0, 0.3, shape).astype(np.float32)
