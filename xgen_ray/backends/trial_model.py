"""A tiny random model, to find out whether an engine's code runs on this processor at all.

An engine built for another CPU starts, lists its flags, loads, and then dies of an illegal instruction in
the first matrix product of one data type. So the model has a matrix of each type that real files use.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Final

_WIDTH: Final = 256
_FEED_FORWARD: Final = 512
_HEADS: Final = 4
_SEED: Final = 20
# A scale of this size keeps every value of the network near 1.
_SCALE: Final = 0.002
# Changes with the contents, so that no older file passes for this one.
_NAME: Final = "trial-model-1.gguf"
# The smallest vocabulary that can spell any text: three control tokens and one for each byte.
_VOCABULARY: Final = 3 + 256 + 61


def trial_model(folder: Path) -> Path:
    """The model's file in ``folder``, written if it is not there yet. About half a megabyte."""
    path = folder / _NAME
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Written aside and moved: another process may be doing the same.
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=_NAME)
    os.close(handle)
    try:
        _write(Path(unfinished))
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return path


def _write(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("trial")
    writer.add_context_length(512)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_vocabulary(writer, gguf)
    _add_tensors(writer, gguf)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, gguf: Any) -> None:
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    while len(tokens) < _VOCABULARY:
        tokens.append(f"word{len(tokens)}")
        types.append(kinds.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * _VOCABULARY)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _add_tensors(writer: Any, gguf: Any) -> None:
    import numpy

    random = numpy.random.default_rng(_SEED)
    types = gguf.GGMLQuantizationType

    def matrix(name: str, rows: int, columns: int, kind: Any) -> None:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (rows, columns // block, size), dtype=numpy.uint8)
        # Whatever the bytes, the type's own scales make numbers of a sane size.
        for offset, value in _SCALES[kind.name]:
            scale = numpy.frombuffer(numpy.float16(value).tobytes(), dtype=numpy.uint8)
            blocks[:, :, offset : offset + 2] = scale
        writer.add_tensor(f"{name}.weight", blocks.reshape(rows, -1), raw_dtype=kind)

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", numpy.ones(_WIDTH, dtype=numpy.float32))

    embedding = random.normal(0.0, 1.0, (_VOCABULARY, _WIDTH)).astype(numpy.float16)
    writer.add_tensor("token_embd.weight", embedding)
    ones("output_norm")
    matrix("output", _VOCABULARY, _WIDTH, types.Q6_K)
    ones("blk.0.attn_norm")
    matrix("blk.0.attn_q", _WIDTH, _WIDTH, types.Q4_0)
    matrix("blk.0.attn_k", _WIDTH, _WIDTH, types.Q4_1)
    matrix("blk.0.attn_v", _WIDTH, _WIDTH, types.Q8_0)
    matrix("blk.0.attn_output", _WIDTH, _WIDTH, types.Q5_0)
    ones("blk.0.ffn_norm")
    matrix("blk.0.ffn_gate", _FEED_FORWARD, _WIDTH, types.Q4_K)
    matrix("blk.0.ffn_up", _FEED_FORWARD, _WIDTH, types.Q5_K)
    matrix("blk.0.ffn_down", _WIDTH, _FEED_FORWARD, types.Q4_K)


# Where each type keeps its half-precision scales, in bytes from the start of a block, and their values.
_SCALES: Final = {
    "Q4_0": ((0, _SCALE),),
    "Q4_1": ((0, _SCALE), (2, -8 * _SCALE)),
    "Q5_0": ((0, _SCALE),),
    "Q8_0": ((0, _SCALE / 16),),
    "Q4_K": ((0, _SCALE / 32), (2, _SCALE / 4)),
    "Q5_K": ((0, _SCALE / 64), (2, _SCALE / 4)),
    "Q6_K": ((208, _SCALE / 1000),),
}
