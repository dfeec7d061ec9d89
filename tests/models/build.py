"""Small real model files, built on the spot."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

TOOLS_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    elements: int = 64,
    further: Sequence[str] = (),
    **keys: Any,
) -> Path:
    """A GGUF file of one tensor, and small ``further`` ones. ``keys`` are the architecture's own; ``None``
    leaves a default out, a dot in a name is written as two underscores, and ``general__``, ``tokenizer__``
    and ``split__`` names are not the architecture's.
    """
    writer = GGUFWriter(path, architecture)
    defaults: dict[str, Any] = {
        "block_count": 4,
        "context_length": 2048,
        "embedding_length": 64,
        "attention__head_count": 8,
        "attention__head_count_kv": 2,
    }
    for name, value in {**defaults, **keys}.items():
        if value is not None:
            _add(writer, architecture, name.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.ones((elements // 32, 32), dtype=np.float32))
    for name in further:
        writer.add_tensor(name, np.ones((1, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, architecture: str, name: str, value: Any) -> None:
    key = name if name.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{name}"
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif name.startswith("split.") and name != "split.tensors.count":
        writer.add_uint16(key, value)
    else:
        writer.add_uint32(key, value)


def write_split(folder: Path, stem: str, count: int) -> list[Path]:
    """The parts of a split model: the first has all keys, as the splitting tool leaves them."""
    return [
        write_gguf(
            folder / f"{stem}-{number + 1:05d}-of-{count:05d}.gguf",
            split__no=number,
            split__count=count,
        )
        for number in range(count)
    ]


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A safetensors file of zeros: for each name its dtype, its shape and its size in bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}
ONE_TENSOR = {"embed": ("BF16", [8, 8], 128)}


def write_hf(folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """A HuggingFace folder with one safetensors file. ``files`` adds JSON by name (``modules.json`` is
    ``modules``); a value of None leaves out what would be there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG if config is None else config))
    (folder / "model.safetensors").write_bytes(safetensors(ONE_TENSOR))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder
