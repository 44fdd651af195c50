"""The header of a GGUF file of this machine, together with those of its further parts where a model was split."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Requirement
from gateway.gguf.errors import BrokenHeader
from gateway.gguf.estimate import estimate_other, requirement_of
from gateway.gguf.header import MAGIC, Header, read_header

SPLIT: Final = re.compile(r"(.+)-00001-of-([0-9]{5})\.gguf")
PARTS_MAX: Final = 1000


def read_file(path: Path) -> Header:
    """Returns the header of one file. Raises `BrokenHeader`, `OSError`. It blocks."""
    with path.open("rb") as file:
        return read_header(file)


def read_model(path: Path) -> Header:
    """Returns the header of the model whose first file is `path`, with the tensors of all of its parts. Raises
    `BrokenHeader`, also for a part that is shorter than its tensors, and `OSError`. It blocks."""
    parts = [_whole(part) for part in part_paths(path)]
    return replace(parts[0], tensors=tuple(tensor for part in parts for tensor in part.tensors))


def part_paths(path: Path) -> tuple[Path, ...]:
    """Returns the paths of all files of a model: `path`, and the further parts that its name announces."""
    found = SPLIT.fullmatch(path.name)
    if found is None or int(found[2]) > PARTS_MAX:
        return (path,)
    return tuple(path.with_name(f"{found[1]}-{part:05}-of-{found[2]}.gguf") for part in range(1, int(found[2]) + 1))


def read_requirement(path: Path, spec: ModelSpec) -> Requirement:
    """Returns the memory that a replica of a model needs. For a GGUF file at `path` it follows from the header, for any
    other file from the size.

    Raises `BrokenHeader`, `OSError`; blocks.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
    found = requirement_of(spec, read_model(path), size) if is_gguf else estimate_other(spec, size)
    # What comes with the package has not to be fetched anywhere.
    return replace(found, disk_bytes=None) if spec.artifact.startswith("builtin:") else found


def _whole(path: Path) -> Header:
    header, size = read_file(path), path.stat().st_size
    if size < header.file_bytes_min:
        raise BrokenHeader(f"{path.name} has {size} bytes of {header.file_bytes_min}; it is cut short")
    return header
