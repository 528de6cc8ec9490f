"""Reads the header of GGUF model files: metadata and the tensor table, never the weights.

Standard library only and free of other moehost modules, because the same text runs in two places: imported on
the controller, and on a node as ``python3 - MODEL.gguf``, where it prints the headers as JSON.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies in use make headers of 15 to 20 MB
MAX_STRING_BYTES = 4 << 20  # the longest string worth keeping is a chat template, some 100 kB
MAX_TENSORS = 1 << 17
MAX_METADATA = 1 << 16
MAX_KEPT_ARRAY = 4096  # per-layer arrays are kept; token scores and types are not
CHUNK_BYTES = 1 << 20

# Types whose block size never changed: id -> (name, elements in a block, bytes of a block). Other ids, such
# as the private ones of ik_llama.cpp (IQ4_KSS = 146), is measured by the distance to the next tensor.
BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    26: ("I32", 1, 4),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}

_U32, _U64, _ARRAY_HEAD = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SHARD = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})[.]gguf")


class GgufError(ValueError):
    """A file that is no usable GGUF; its message is one line: which file, what is wrong, how to mend it."""


def _fail(name: str, what: str, mend: str = "download it again and compare its sha256") -> NoReturn:
    raise GgufError(" ".join(f"{name}: {what}; {mend}".split())[:400])  # a file's own text must not break the line


@dataclass(frozen=True, slots=True)
class Array:
    """Stands for a metadata array that was skipped, such as a vocabulary: its element type and its length."""

    type_id: int
    length: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One row of the tensor table: shape with the fastest dimension first, offset in the data part."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Header:
    """The header of one file; tensor offsets count from `data_offset`, in bytes from the file's start."""

    name: str
    version: int
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data_offset: int
    file_size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """All of it in plain JSON types; a skipped array becomes an object with its type and length."""
        metadata = {
            key: {"type_id": value.type_id, "length": value.length} if isinstance(value, Array) else value
            for key, value in self.metadata.items()
        }
        tensors = [[t.name, list(t.shape), t.type_id, t.offset, t.size_bytes] for t in self.tensors]
        return {**vars(self), "metadata": metadata, "tensors": tensors}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Header:
        """The inverse of `to_json`, for what a node has printed."""
        metadata = dict(data["metadata"])
        for key, value in metadata.items():
            if isinstance(value, dict):
                metadata[key] = Array(**value)
            elif isinstance(value, list):
                metadata[key] = tuple(value)
        tensors = tuple(Tensor(row[0], tuple(row[1]), *row[2:]) for row in data["tensors"])
        return cls(**{**data, "metadata": metadata, "tensors": tensors})


@dataclass(frozen=True)
class GgufSet:
    """One model: a single file, or all shards of a split set in order."""

    headers: tuple[Header, ...]

    @property
    def metadata(self) -> dict[str, Any]:
        """The model's metadata, which only the first shard carries."""
        return self.headers[0].metadata

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of all shards."""
        return tuple(tensor for header in self.headers for tensor in header.tensors)

    @property
    def size_bytes(self) -> int:
        """What the files take on disk together."""
        return sum(header.file_size_bytes for header in self.headers)


class _Cursor:
    """Reads a stream forward in chunks and never past a limit, so no count in a file costs time or memory."""

    def __init__(self, stream: BinaryIO, name: str, file_size_bytes: int) -> None:
        self._stream, self._name = stream, name
        self._limit = min(file_size_bytes, MAX_HEADER_BYTES)
        self._buffer, self._at, self._base = b"", 0, 0

    @property
    def position(self) -> int:
        return self._base + self._at

    def _stay_within(self, count: int) -> None:
        if self.position + count > self._limit:
            _fail(self._name, f"has a header that reaches beyond {self._limit} bytes")

    def _hold(self, count: int) -> None:
        """Makes the next `count` bytes available in the buffer."""
        if self._at + count <= len(self._buffer):
            return
        self._stay_within(count)
        parts = [self._buffer[self._at :]]
        held = len(parts[0])
        while held < count:
            part = self._stream.read(max(CHUNK_BYTES, count - held))
            if not part:
                _fail(self._name, f"ends inside its header, at {self._base + self._at + held} bytes")
            parts.append(part)
            held += len(part)
        self._base += self._at
        self._buffer, self._at = b"".join(parts), 0

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        self._hold(layout.size)
        values = layout.unpack_from(self._buffer, self._at)
        self._at += layout.size
        return values

    def string(self, what: str) -> str:
        (size,) = self.unpack(_U64)
        if size > MAX_STRING_BYTES:
            _fail(self._name, f"claims {size} bytes for {what}", "it is damaged or no model")
        self._hold(size)
        text = self._buffer[self._at : self._at + size]
        self._at += size
        return text.decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        self._stay_within(count)
        while count:
            step = min(count, CHUNK_BYTES)
            self._hold(step)
            self._at += step
            count -= step

    def skip_strings(self, count: int) -> None:
        """Hops over `count` strings; as it meets every word of a vocabulary, its loop works on locals."""
        size_at = _U64.unpack_from
        while count:
            self._hold(8)
            buffer, at, last = self._buffer, self._at, len(self._buffer) - 8
            while at <= last and count:
                at += 8 + size_at(buffer, at)[0]
                count -= 1
            self._at = min(at, len(buffer))
            self.skip(at - self._at)


def _value(cursor: _Cursor, type_id: int, key: str, name: str) -> Any:
    if type_id == _STRING:
        return cursor.string(f"the value of {key!r}")
    if type_id in _SCALARS:
        return cursor.unpack(struct.Struct("<" + _SCALARS[type_id]))[0]
    if type_id != _ARRAY:
        _fail(name, f"has metadata {key!r} of unknown type {type_id}")
    element, length = cursor.unpack(_ARRAY_HEAD)
    if element == _STRING:
        cursor.skip_strings(length)
    elif element not in _SCALARS:
        _fail(name, f"has an array of type {element} in {key!r}", "no engine reads that")
    elif length <= MAX_KEPT_ARRAY:
        return cursor.unpack(struct.Struct(f"<{length}{_SCALARS[element]}"))
    else:
        cursor.skip(length * struct.calcsize("<" + _SCALARS[element]))
    return Array(element, length)


def _metadata(cursor: _Cursor, count: int, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string("a metadata key")
        (type_id,) = cursor.unpack(_U32)
        if key in found:
            _fail(name, f"has metadata {key[:60]!r} twice")
        found[key] = _value(cursor, type_id, key[:60], name)
    return found


def _tensor(cursor: _Cursor, name: str) -> Tensor:
    """One row of the table; for types without a known block, size_bytes stays 0 until `_measured`."""
    label = cursor.string("a tensor's name")
    (dimensions,) = cursor.unpack(_U32)
    if not 1 <= dimensions <= 4:
        _fail(name, f"gives tensor {label[:60]!r} {dimensions} dimensions")
    shape = cursor.unpack(struct.Struct(f"<{dimensions}Q"))
    type_id, offset = cursor.unpack(_ARRAY_HEAD)
    _, elements, size = BLOCKS.get(type_id, ("", 1, 0))
    if 0 in shape or math.prod(shape) >= 1 << 63 or shape[0] % elements:
        _fail(name, f"gives tensor {label[:60]!r} the impossible shape {shape}")
    return Tensor(label, shape, type_id, offset, math.prod(shape) // elements * size)


def _measured(tensors: Sequence[Tensor], data_bytes: int, alignment: int, name: str) -> tuple[Tensor, ...]:
    """The same tensors with all sizes known and proven to lie apart from each other and inside the file."""
    measured = list(tensors)
    end, fault = data_bytes, "reaches beyond the file's end"
    for index in sorted(range(len(tensors)), key=lambda index: tensors[index].offset, reverse=True):
        tensor = tensors[index]
        room = end - tensor.offset
        if tensor.offset % alignment:
            _fail(name, f"puts tensor {tensor.name[:60]!r} off the alignment of {alignment} bytes")
        if room < tensor.size_bytes or room <= 0:
            _fail(name, f"has a tensor {tensor.name[:60]!r} that {fault}")
        if tensor.size_bytes == 0:
            measured[index] = replace(tensor, size_bytes=room)
        end, fault = tensor.offset, "overlaps the next one"
    return tuple(measured)


def read_header(stream: BinaryIO, file_size_bytes: int, name: str) -> Header:
    """Reads one header from a stream, which is only read forward and at most one chunk past the header.

    Sizes of known types are exact; those of unknown types are the distance to the next tensor.
    Raises GgufError for anything that is not a whole and sane header, in bounded time and memory.
    """
    cursor = _Cursor(stream, name, file_size_bytes)
    magic, version = cursor.unpack(struct.Struct("<4sI"))
    if magic != b"GGUF":
        _fail(name, f"does not begin with GGUF but with {magic!r}", "it is no model, or its download failed")
    if version not in (2, 3):
        _fail(name, f"is GGUF version {version}", "convert it to version 3, little-endian")
    tensor_count, metadata_count = cursor.unpack(struct.Struct("<QQ"))
    if tensor_count > MAX_TENSORS or metadata_count > MAX_METADATA:
        _fail(name, f"claims {tensor_count} tensors and {metadata_count} metadata entries", "it is damaged")
    metadata = _metadata(cursor, metadata_count, name)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in (1 << bit for bit in range(21)):
        _fail(name, f"has the alignment {alignment!r}", "it must be a power of two")
    table = [_tensor(cursor, name) for _ in range(tensor_count)]
    if len({tensor.name for tensor in table}) < len(table):
        _fail(name, "names a tensor twice")
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = _measured(table, file_size_bytes - data_offset, alignment, name)
    return Header(name, version, metadata, tensors, data_offset, file_size_bytes)


def read_file(path: Path) -> Header:
    """Reads the header of a file; a file that cannot be opened is a GgufError too."""
    try:
        with path.open("rb", buffering=0) as stream:
            return read_header(stream, path.stat().st_size, str(path))
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror}; name an existing .gguf file") from error


def split_names(first_name: str) -> list[str]:
    """All file names of the split set that one of its names belongs to, in order; a plain name gives itself.

    ``model-00002-of-00003.gguf`` -> ``model-00001-of-00003.gguf``, ``...-00002-...``, ``...-00003-...``.
    """
    shard = _SHARD.fullmatch(first_name)
    if shard is None:
        return [first_name]
    count = int(shard["count"])
    if not 1 <= int(shard["number"]) <= count:
        _fail(first_name, f"counts itself as {shard['number']} of {shard['count']}", "restore its name")
    return [f"{shard['prefix']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def join(headers: Sequence[Header]) -> GgufSet:
    """One model out of its headers in order; raises GgufError when they are not one whole split set."""
    name, metadata = headers[0].name, headers[0].metadata
    count = metadata.get("split.count", 1) or 1
    names = split_names(name)
    if count != len(names):
        _fail(name, f"has {count} shards by its header and {len(names)} by its name", "restore its name")
    if [header.name for header in headers] != names:
        _fail(name, f"needs all {len(names)} shards of its set in order", "fetch those that are missing")
    for number, header in enumerate(headers):
        claim = header.metadata.get("split.no", 0), header.metadata.get("split.count", 1) or 1
        if claim != (number, count):
            _fail(header.name, f"does not hold shard {number + 1} of {count}", "a file was renamed or mixed up")
    found = GgufSet(tuple(headers))
    total = metadata.get("split.tensors.count", len(found.tensors))
    if total != len(found.tensors) or len({tensor.name for tensor in found.tensors}) != total:
        _fail(name, f"should come with {total} tensors, its set has {len(found.tensors)}", "shards are mixed up")
    return found


def read_set(paths: Sequence[Path]) -> GgufSet:
    """Reads the headers of all shards of one model, given in order."""
    return join([read_file(path) for path in paths])


def read_model(path: Path) -> GgufSet:
    """Reads one model from any of its files, finding the other shards beside it by their names."""
    return read_set([Path(name) for name in split_names(str(path))])


def read_heads(found: GgufSet) -> list[bytes]:
    """The bytes of each header of a model on this machine, up to where its data part begins.

    Raises GgufError for a file that is gone or shorter than it was.
    """
    heads = []
    for header in found.headers:
        try:
            with Path(header.name).open("rb") as stream:
                heads.append(stream.read(header.data_offset))
        except OSError as error:
            raise GgufError(f"{header.name}: {error.strerror}; name an existing .gguf file") from error
        if len(heads[-1]) < header.data_offset:
            _fail(header.name, "changed while it was read", "try again")
    return heads


def main(arguments: Sequence[str]) -> int:
    """What a node runs: prints the headers of one model as a JSON list, else one line on stderr."""
    try:
        found = read_model(Path(arguments[0]))
    except GgufError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    json.dump([header.to_json() for header in found.headers], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
