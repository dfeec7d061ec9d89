"""The header of a safetensors file, as data, without trusting it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

from huggingface_hub.constants import SAFETENSORS_MAX_HEADER_LENGTH

from xgen_ray.errors import BadModelFile
from xgen_ray.models.files import DISK, Files, parse_json_object, read_exactly

_LENGTH_BYTES = 8
_MAX_ELEMENTS = 2**63
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What one file holds: the bytes of its weights, and how many elements there are of each dtype."""

    weight_bytes: int
    elements: Mapping[str, int]


def read_safetensors_header(path: Path, files: Files = DISK) -> SafetensorsHeader:
    """Read one header and check that its tensors fill the file exactly, as the format demands."""
    with files.open(path) as (file, size):
        if size < _LENGTH_BYTES:
            _fail(path, f"it has {size} bytes")
        length = int.from_bytes(read_exactly(file, _LENGTH_BYTES), "little")
        if length > min(SAFETENSORS_MAX_HEADER_LENGTH, size - _LENGTH_BYTES):
            limit = f"the limit is {SAFETENSORS_MAX_HEADER_LENGTH}"
            _fail(path, f"its header claims {length} bytes in a file of {size} ({limit})")
        text = read_exactly(file, length).decode("utf-8", errors="replace")
    entries = parse_json_object(text, path)
    entries.pop("__metadata__", None)
    if not entries:
        _fail(path, "it holds no tensors")
    elements: Counter[str] = Counter()
    end = 0
    for name, entry in entries.items():
        dtype, count, stop = _tensor(path, name, entry)
        elements[dtype] += count
        end = max(end, stop)
    expected = _LENGTH_BYTES + length + end
    if expected != size:
        what = "truncated" if expected > size else "followed by bytes that are not its own"
        _fail(path, f"it is {what}: its header promises {expected} bytes, the file has {size}")
    return SafetensorsHeader(end, dict(elements))


def _tensor(path: Path, name: str, entry: object) -> tuple[str, int, int]:
    """The dtype, the element count and the end of one tensor."""
    shown = repr(name[:80])
    if not isinstance(entry, dict):
        _fail(path, f"its entry for {shown} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if (
        not isinstance(dtype, str)
        or not _is_naturals(shape)
        or not _is_naturals(offsets)
        or len(offsets) != 2
    ):
        _fail(path, f"its entry for {shown} lacks a dtype, a shape or offsets")
    begin, end = offsets
    if not begin <= end < _MAX_ELEMENTS:
        _fail(path, f"{shown} lies from {begin} to {end}")
    count = 1
    for dimension in shape:
        count *= dimension
        if count >= _MAX_ELEMENTS:
            _fail(path, f"{shown} has more than {_MAX_ELEMENTS} elements")
    bits = _BITS.get(dtype)
    if bits is not None and count * bits != (end - begin) * 8:
        _fail(path, f"{shown} has {count} elements of {dtype} in {end - begin} bytes")
    return dtype, count, end


def _is_naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _fail(path: Path, reason: str) -> NoReturn:
    raise BadModelFile(f"{path} is not a usable safetensors file: {reason}. Download it again.", str(path))
