"""Rerankers of one layer with random weights: what they say means nothing, how they say it is real."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

_WIDTH = 32
_FEED_FORWARD = 64
_CONTEXT = 128
# vLLM's attention on the CPU wants heads of 32 at least.
_HF_WIDTH = 64
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


def write_hf_reranker(folder: Path, tokenizer_of: Path) -> Path:
    """A BERT cross-encoder as a Hugging Face folder, with the tokenizer of another BERT."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(tokenizer_of / name, folder / name)
    vocabulary = len((tokenizer_of / "vocab.txt").read_text().splitlines())
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": _HF_WIDTH,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "intermediate_size": 2 * _HF_WIDTH,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": _CONTEXT,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(_safetensors(_hf_shapes(vocabulary)))
    return folder


def _hf_shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    layer = "bert.encoder.layer.0."
    square = (_HF_WIDTH, _HF_WIDTH)
    matrices = {
        **{f"{layer}attention.{part}": square for part in ("self.query", "self.key", "self.value")},
        f"{layer}attention.output.dense": square,
        f"{layer}intermediate.dense": (2 * _HF_WIDTH, _HF_WIDTH),
        f"{layer}output.dense": (_HF_WIDTH, 2 * _HF_WIDTH),
        "bert.pooler.dense": square,
        "classifier": (1, _HF_WIDTH),
    }
    norms = ("bert.embeddings", f"{layer}attention.output", f"{layer}output")
    sizes = {"word": vocabulary, "position": _CONTEXT, "token_type": 2}
    return {
        **{f"bert.embeddings.{name}_embeddings.weight": (size, _HF_WIDTH) for name, size in sizes.items()},
        **{f"{name}.weight": shape for name, shape in matrices.items()},
        **{f"{name}.bias": shape[:1] for name, shape in matrices.items()},
        **{f"{name}.LayerNorm.{part}": (_HF_WIDTH,) for name in norms for part in ("weight", "bias")},
    }


def _safetensors(shapes: dict[str, tuple[int, ...]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    values = [_values(name.replace("LayerNorm", "norm"), shape).tobytes() for name, shape in shapes.items()]
    end = 0
    for (name, shape), data in zip(shapes.items(), values, strict=True):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    return b"".join([struct.pack("<Q", len(text)), text, *values])


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
