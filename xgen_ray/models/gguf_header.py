"""The header of a GGUF file, as data, without trusting it.

The ``gguf`` library's own ``GGUFReader`` makes a numpy object of every array element: 3.6 s and 190 MB
for a 49k vocabulary, 24 s and 1.2 GB for 250k tokens with merges (on a small shared machine), and it loops
for as long as a lying count says. It also maps the file, so a file that shrinks while it is read kills the
process. This walk reads with plain reads, steps over long arrays, and bounds every count against the size
of the file. Constants, types and sizes are the library's; tests hold the two against each other.
"""

import math
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_VERSION,
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
)

from xgen_ray.errors import BadModelFile
from xgen_ray.models.files import DISK, Files, Readable, read_exactly
from xgen_ray.models.gguf_file import MAGIC

VERSIONS = (2, GGUF_VERSION)

# Far above any real file, low enough that a lying header costs about a second and a few MiB.
MAX_KEYS = 65_536
MAX_TENSORS = 131_072
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65_535
MAX_STRING_ELEMENTS = 8_000_000
MAX_KEPT_STRING_BYTES = 2 * 2**20
MAX_KEPT_TOTAL_BYTES = 32 * 2**20
MAX_KEPT_ELEMENTS = 4096

_WINDOW = 256 * 1024
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_SCALARS = {
    GGUFValueType.UINT8: struct.Struct("=B"),
    GGUFValueType.INT8: struct.Struct("=b"),
    GGUFValueType.UINT16: struct.Struct("=H"),
    GGUFValueType.INT16: struct.Struct("=h"),
    GGUFValueType.UINT32: _U32,
    GGUFValueType.INT32: struct.Struct("=i"),
    GGUFValueType.FLOAT32: struct.Struct("=f"),
    GGUFValueType.BOOL: struct.Struct("=?"),
    GGUFValueType.UINT64: _U64,
    GGUFValueType.INT64: struct.Struct("=q"),
    GGUFValueType.FLOAT64: struct.Struct("=d"),
}
_INTEGERS = frozenset(_SCALARS) - {GGUFValueType.FLOAT32, GGUFValueType.FLOAT64}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value that was stepped over: ``count`` elements of ``kind`` (bytes, for a string)."""

    kind: GGUFValueType
    count: int


Scalar = int | float | bool | str
Value = Scalar | tuple[int | bool, ...] | Skipped


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. ``quantization`` is None for a type that this version of the library does not know;
    its size is then not known either.
    """

    name: str
    type_number: int
    quantization: GGMLQuantizationType | None
    element_count: int
    size_bytes: int | None
    offset: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Every key and tensor of one file. ``data_start`` is where tensor data begins in it."""

    path: Path
    fields: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    file_bytes: int


def read_header(path: Path, files: Files = DISK) -> GGUFHeader:
    """Read the header of one GGUF file and check that its tensors lie within the file."""
    with files.open(path) as (file, size):
        return _HeaderWalk(path, file, size).read()


class _HeaderWalk:
    """One pass over one file, from the magic number to the last tensor."""

    def __init__(self, path: Path, file: Readable, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._window = b""
        self._window_start = 0
        self._position = 0
        self._kept_bytes = 0
        self._string_elements = 0

    def read(self) -> GGUFHeader:
        tensor_count, key_count = self._read_preamble()
        fields: dict[str, Value] = {}
        for _ in range(key_count):
            key = self._text(self._length("a key name", MAX_KEY_BYTES))
            if key in fields:
                self._fail(f"the key {key!r} appears twice")
            fields[key] = self._value(key, self._kind(key))
        alignment = self._alignment(fields)
        tensors = tuple(self._tensor(index) for index in range(tensor_count))
        data_start = self._position + -self._position % alignment
        self._check_bounds(tensors, data_start, alignment)
        return GGUFHeader(self._path, fields, tensors, data_start, self._size)

    def _read_preamble(self) -> tuple[int, int]:
        if self._size < len(MAGIC):
            self._fail(f"it has {self._size} bytes")
        magic = self._take(len(MAGIC))
        if magic != MAGIC:
            self._fail(f"it starts with {magic!r}, not with {MAGIC!r}")
        version = self._u32()
        # Swapped, a small version number shows up in the upper half.
        if version & 0xFFFF == 0 and version:
            other = "big" if sys.byteorder == "little" else "little"
            self._fail(f"its byte order is {other}-endian and this machine's is not: convert it first")
        if version not in VERSIONS:
            self._fail(f"its format version is {version}; supported are {VERSIONS}")
        tensor_count, key_count = self._u64(), self._u64()
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            limits = f"at most {MAX_TENSORS} and {MAX_KEYS} are plausible"
            self._fail(f"it promises {tensor_count} tensors and {key_count} keys; {limits}")
        return tensor_count, key_count

    def _value(self, key: str, kind: GGUFValueType) -> Value:
        if kind is GGUFValueType.STRING:
            length = self._length(f"the value of {key!r}", self._size)
            if length > MAX_KEPT_STRING_BYTES:
                self._skip(length)
                return Skipped(kind, length)
            return self._text(length)
        if kind is GGUFValueType.ARRAY:
            return self._array(key)
        scalar: int | float | bool = _SCALARS[kind].unpack(self._take(_SCALARS[kind].size))[0]
        return scalar

    def _array(self, key: str) -> Value:
        kind = self._kind(key)
        count = self._u64()
        if kind is GGUFValueType.ARRAY:
            self._fail(f"{key!r} is an array of arrays, which engines do not read")
        if kind is GGUFValueType.STRING:
            self._skip_strings(key, count)
            return Skipped(kind, count)
        form = _SCALARS[kind]
        if count > MAX_KEPT_ELEMENTS or kind not in _INTEGERS:
            self._skip(count * form.size)
            return Skipped(kind, count)
        return tuple(value for (value,) in form.iter_unpack(self._take(count * form.size)))

    def _skip_strings(self, key: str, count: int) -> None:
        """Step over ``count`` strings: the one loop that runs hundreds of thousands of times."""
        self._string_elements += count
        if self._string_elements > MAX_STRING_ELEMENTS:
            self._fail(f"{key!r} holds {count} strings; at most {MAX_STRING_ELEMENTS} are plausible")
        unpack = _U64.unpack_from
        while count:
            self._refill(_U64.size)
            window, start = self._window, self._window_start
            at, last = self._position - start, len(window) - _U64.size
            while count and at <= last:
                at += _U64.size + unpack(window, at)[0]
                count -= 1
            self._position = start + at
            if self._position > self._size:
                self._fail(f"{key!r} reaches byte {self._position} of {self._size}: truncated or corrupt")

    def _tensor(self, index: int) -> TensorInfo:
        what = f"the name of tensor {index}"
        name = self._text(self._length(what, MAX_KEY_BYTES))
        dimension_count = self._u32()
        if dimension_count > MAX_DIMENSIONS:
            self._fail(f"tensor {index} has {dimension_count} dimensions; at most {MAX_DIMENSIONS} exist")
        dimensions = [self._u64() for _ in range(dimension_count)]
        elements = math.prod(dimensions)
        if elements >= 2**63:
            self._fail(f"tensor {index} has dimensions {dimensions}")
        number, offset = self._u32(), self._u64()
        try:
            quantization = GGMLQuantizationType(number)
        except ValueError:
            return TensorInfo(name, number, None, elements, None, offset)
        block, block_bytes = GGML_QUANT_SIZES[quantization]
        if dimensions and dimensions[0] % block:
            row = f"a row of {dimensions[0]} elements is not a multiple of {block}"
            self._fail(f"tensor {index} is {quantization.name}, but {row}")
        size = elements // block * block_bytes
        return TensorInfo(name, number, quantization, elements, size, offset)

    def _check_bounds(self, tensors: tuple[TensorInfo, ...], data_start: int, alignment: int) -> None:
        """Tensors follow each other without gap or overlap (engines insist), all within the file."""
        expected: int | None = 0
        end = data_start
        for index, tensor in enumerate(tensors):
            if expected is not None and tensor.offset != expected:
                self._fail(f"tensor {index} lies at offset {tensor.offset}; {expected} is its place")
            end = max(end, data_start + tensor.offset + (tensor.size_bytes or 0))
            if tensor.size_bytes is None:
                expected = None
            elif expected is not None:
                expected += tensor.size_bytes + -tensor.size_bytes % alignment
        if end > self._size:
            self._fail(f"truncated: its header promises {end} bytes, the file has {self._size}")

    def _alignment(self, fields: dict[str, Value]) -> int:
        alignment = fields.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            self._fail(f"its alignment is {alignment}, not a power of two")
        return alignment

    def _kind(self, key: str) -> GGUFValueType:
        number = self._u32()
        try:
            return GGUFValueType(number)
        except ValueError:
            self._fail(f"{key!r} has the unknown type {number}")

    def _length(self, what: str, limit: int) -> int:
        length = self._u64()
        left = self._size - self._position
        if length > min(limit, left):
            self._fail(f"{what} claims {length} bytes at byte {self._position} of {self._size}")
        return length

    def _text(self, length: int) -> str:
        self._kept_bytes += length
        if self._kept_bytes > MAX_KEPT_TOTAL_BYTES:
            self._fail(f"its keys and texts exceed {MAX_KEPT_TOTAL_BYTES} bytes")
        return self._take(length).decode("utf-8", errors="replace")

    def _u32(self) -> int:
        value: int = _U32.unpack(self._take(_U32.size))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack(self._take(_U64.size))[0]
        return value

    def _skip(self, count: int) -> None:
        self._position += count
        if self._position > self._size:
            self._fail(f"truncated: its header reaches byte {self._position}, the file has {self._size}")

    def _take(self, count: int) -> bytes:
        self._refill(count)
        at = self._position - self._window_start
        self._position += count
        return self._window[at : at + count]

    def _refill(self, count: int) -> None:
        """Have at least ``count`` bytes from the position on in the window."""
        end = self._position + count
        if end > self._size:
            self._fail(f"truncated: its header reaches byte {end}, the file has {self._size}")
        if self._window_start <= self._position and end <= self._window_start + len(self._window):
            return
        self._file.seek(self._position)
        self._window = read_exactly(self._file, max(count, _WINDOW))
        self._window_start = self._position
        if len(self._window) < count:
            self._fail("it became shorter while it was read")

    def _fail(self, reason: str) -> NoReturn:
        message = f"{self._path} is not a usable GGUF file: {reason}. Download or convert it again."
        raise BadModelFile(message, str(self._path))
