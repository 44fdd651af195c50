"""The header of a GGUF file: metadata and the list of tensors, without the weights (GGUF specification, versions 2, 3).

Whatever the file claims, reading takes bounded time and memory: each count is checked against a limit below before
anything is read, and nothing is allocated by a count alone.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Final

from gateway.gguf.errors import BrokenHeader
from gateway.gguf.reader import NAME_BYTES_MAX, Readable, Reader, Scalar
from gateway.gguf.tensors import BLOCK_OF, TENSOR_TYPES, Tensor, Weights, check_layout, weights_of

MAGIC: Final = b"GGUF"
"""The first bytes of every GGUF file."""
VERSIONS: Final = (2, 3)
STRING: Final = 8
ARRAY: Final = 9
KEYS_MAX: Final = 10_000
ARRAY_ITEMS_MAX: Final = 4 * 1024**2
"""The largest number of items of all arrays together. A vocabulary of 256,000 tokens has about a million, merges,
scores and types included."""
KEPT_ITEMS_MAX: Final = 4096
"""The length up to which an array is kept. A longer one is only counted; the arrays that the estimate needs have one
item for each layer."""
TENSORS_MAX: Final = 100_000
DIMENSIONS_MAX: Final = 4
TENSOR_VALUES_MAX: Final = 2**50
"""The largest number of values of one tensor."""
ALIGNMENT_DEFAULT: Final = 32
ALIGNMENT_MAX: Final = 1024**2

Item = int | float | bool


@dataclass(frozen=True)
class Header:
    """The parsed header of a GGUF file: its metadata, its list of tensors and the extent of its weights."""

    version: int
    metadata: Mapping[str, Scalar]
    """The keys with a single value, and those values."""
    arrays: Mapping[str, tuple[Item, ...]]
    """The arrays of numbers that are not longer than `KEPT_ITEMS_MAX`."""
    lengths: Mapping[str, int]
    """The number of items of each array, kept or not."""
    tensors: tuple[Tensor, ...]
    data_offset: int
    """The beginning of the weights, in bytes from the beginning of the file."""
    data_bytes: int
    """The number of bytes of all tensors, the gaps between them included."""

    @cached_property
    def weights(self) -> Weights:
        """The bytes of all tensors, summed by the part of the model that they belong to."""
        return weights_of(self.tensors)

    @property
    def architecture(self) -> str:
        """The architecture, such as `llama` or `gemma3`. It is empty if the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def file_bytes_min(self) -> int:
        """The least size of the complete file, in bytes. A shorter file has not been fetched completely."""
        return self.data_offset + self.data_bytes


def read_header(stream: Readable) -> Header:
    """Reads a header from the beginning of a binary stream up to the weights. Raises `BrokenHeader`, `OSError`."""
    reader = Reader(stream)
    if reader.take(len(MAGIC), "the magic number") != MAGIC:
        raise BrokenHeader("not a GGUF file")
    (version,) = reader.unpack("<I", "the version")
    if version not in VERSIONS:
        raise BrokenHeader(f"GGUF version {version} is not known")
    tensors = reader.count(TENSORS_MAX, "the number of tensors")
    entries = _Entries(reader)
    entries.read(reader.count(KEYS_MAX, "the number of keys"))
    infos = _read_tensors(reader, tensors)
    alignment = _alignment(entries.metadata)
    return Header(
        version=version,
        metadata=MappingProxyType(entries.metadata),
        arrays=MappingProxyType(entries.arrays),
        lengths=MappingProxyType(entries.lengths),
        tensors=infos,
        data_offset=-(-reader.position // alignment) * alignment,
        data_bytes=check_layout(infos),
    )


class _Entries:
    """The metadata, as far as it was read."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._items_left = ARRAY_ITEMS_MAX
        self.metadata: dict[str, Scalar] = {}
        self.arrays: dict[str, tuple[Item, ...]] = {}
        self.lengths: dict[str, int] = {}

    def read(self, count: int) -> None:
        """Reads `count` keys with their values. Raises `BrokenHeader`."""
        for _ in range(count):
            key = self._reader.text("a key", NAME_BYTES_MAX)
            if key in self.metadata or key in self.lengths:
                raise BrokenHeader(f"the key {key!r} is there twice")
            self._read_value(key)

    def _read_value(self, key: str) -> None:
        what = f"the value of {key!r}"
        (kind,) = self._reader.unpack("<I", what)
        if kind == ARRAY:
            self._read_array(key, what)
        elif kind == STRING:
            self.metadata[key] = self._reader.text(what)
        else:
            self.metadata[key] = self._reader.scalar(kind, what)

    def _read_array(self, key: str, what: str) -> None:
        (kind,) = self._reader.unpack("<I", what)
        count = self._reader.count(self._items_left, what)
        self._items_left -= count
        self.lengths[key] = count
        if kind == STRING:
            for _ in range(count):
                self._reader.skip(self._reader.count(NAME_BYTES_MAX, what), what)
            return
        layout = self._reader.layout(kind, what)  # an array in an array is refused here, as llama.cpp refuses it
        if count > KEPT_ITEMS_MAX:
            self._reader.skip(count * struct.calcsize(layout), what)
        else:
            self.arrays[key] = self._reader.unpack(f"<{count}{layout[1]}", what)


def _read_tensors(reader: Reader, count: int) -> tuple[Tensor, ...]:
    tensors: dict[str, Tensor] = {}
    for _ in range(count):
        tensor = _read_tensor(reader)
        if tensor.name in tensors:
            raise BrokenHeader(f"the tensor {tensor.name!r} is there twice")
        tensors[tensor.name] = tensor
    return tuple(tensors.values())


def _read_tensor(reader: Reader) -> Tensor:
    name = reader.text("the name of a tensor", NAME_BYTES_MAX)
    what = f"the tensor {name!r}"
    (dimensions,) = reader.unpack("<I", what)
    if dimensions > DIMENSIONS_MAX:
        raise BrokenHeader(f"{what} has {dimensions} dimensions; at most {DIMENSIONS_MAX} are read")
    shape = reader.unpack(f"<{dimensions}Q", what)
    kind, offset = reader.unpack("<IQ", what)
    if kind not in TENSOR_TYPES:
        raise BrokenHeader(f"{what} is of unknown type {kind}")
    tensor = Tensor(name, shape, TENSOR_TYPES[kind][0], offset)
    if prod(shape) > TENSOR_VALUES_MAX or offset > 2 * TENSOR_VALUES_MAX:
        raise BrokenHeader(f"{what} claims a shape of {shape} at {offset}")
    if shape and shape[0] % BLOCK_OF[tensor.kind][0]:
        raise BrokenHeader(f"{what} has rows of {shape[0]} values, no multiple of a block of {tensor.kind}")
    return tensor


def _alignment(metadata: Mapping[str, Scalar]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
    if type(value) is not int or not 0 < value <= ALIGNMENT_MAX:
        raise BrokenHeader(f"the tensors can't be aligned to {value!r}")
    return value
