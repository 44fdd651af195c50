"""The metadata at the beginning of a GGUF file, without reading the rest (the GGUF specification, version 2 and 3)."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
STRING: Final = 8
ARRAY: Final = 9
SCALARS: Final[Mapping[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
"""Type number -> how `struct` reads one value of it."""
STRING_BYTES_MAX: Final = 16 * 1024 * 1024
ITEMS_MAX: Final = 16 * 1024 * 1024
"""No model comes near either; a file that claims more is broken."""

Scalar = int | float | bool | str


class BrokenHeader(ValueError):
    """Not a GGUF file, or one that is cut short."""


def read_metadata(path: Path) -> dict[str, Scalar]:
    """Every key with its value, without the arrays. Raises `BrokenHeader`, `OSError`."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BrokenHeader("not a GGUF file")
        version, _tensors, count = struct.unpack("<IQQ", _exactly(file, 20))
        if version not in VERSIONS:
            raise BrokenHeader(f"GGUF version {version} is not known")
        return dict(_entries(file, count))


def _entries(file: BinaryIO, count: int) -> Iterator[tuple[str, Scalar]]:
    for _ in range(count):
        key = _string(file)
        kind = _scalar(file, "<I")
        if kind == ARRAY:
            _skip_array(file)
        else:
            yield key, _string(file) if kind == STRING else _scalar(file, _format(int(kind)))


def _skip_array(file: BinaryIO) -> None:
    kind, count = struct.unpack("<IQ", _exactly(file, 12))
    if count > ITEMS_MAX:
        raise BrokenHeader(f"an array of {count} items")
    if kind == STRING:
        for _ in range(count):
            file.seek(_length(file), 1)
    else:
        file.seek(count * struct.calcsize(_format(kind)), 1)


def _string(file: BinaryIO) -> str:
    return _exactly(file, _length(file)).decode(errors="replace")


def _length(file: BinaryIO) -> int:
    length = int(_scalar(file, "<Q"))
    if length > STRING_BYTES_MAX:
        raise BrokenHeader(f"a string of {length} bytes")
    return length


def _scalar(file: BinaryIO, layout: str) -> int | float | bool:
    (value,) = struct.unpack(layout, _exactly(file, struct.calcsize(layout)))
    return value  # type: ignore[no-any-return]  # what `layout` says


def _format(kind: int) -> str:
    if kind not in SCALARS:
        raise BrokenHeader(f"a value of unknown type {kind}")
    return SCALARS[kind]


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise BrokenHeader("the file is cut short")
    return data
