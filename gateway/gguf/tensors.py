"""The tensors that a GGUF file lists: their sizes, and the parts of the model that they belong to. Pure."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final

from gateway.gguf.errors import BrokenHeader

TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = MappingProxyType({
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 40), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1), 25: ("i16", 1, 2), 26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18),
})  # fmt: skip
"""The name, the values per block and the bytes per block for each type number in the file (ggml.h)."""
BLOCK_OF: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {name: (values, size) for name, values, size in TENSOR_TYPES.values()}
)
LAYER: Final = re.compile(r"blk\.([0-9]{1,9})\.(.+)")


@dataclass(frozen=True)
class Tensor:
    """One entry of a GGUF file's list of tensors: what it is and where its data lies, without the data."""

    name: str
    shape: tuple[int, ...]
    """The dimensions, columns first as in GGUF."""
    kind: str
    """The type, a name of `BLOCK_OF`."""
    offset: int
    """The offset from the beginning of the data, in bytes."""

    @property
    def size_bytes(self) -> int:
        """The size of the tensor's data in bytes, which follows from its shape and the blocks of its type."""
        values, size = BLOCK_OF[self.kind]
        return prod(self.shape) // values * size

    @property
    def layer(self) -> int | None:
        """The number of the layer that the tensor belongs to, from its name `blk.N.*`; None if it belongs to none."""
        return int(found[1]) if (found := LAYER.fullmatch(self.name)) else None

    @property
    def role(self) -> str:
        """The name without its layer: `attn_q.weight` of `blk.3.attn_q.weight`."""
        return found[2] if (found := LAYER.fullmatch(self.name)) else self.name


@dataclass(frozen=True)
class Weights:
    """The bytes of each part of a model."""

    layers: Mapping[int, int]
    output: int
    """The output matrix and its norm, which llama.cpp counts as one more layer."""
    embedding: int
    """The token embedding, and everything else outside of layers. llama.cpp leaves it in main memory."""
    tied: bool
    """Whether the file has no output matrix, so that the token embedding is used for it."""

    @property
    def total(self) -> int:
        """The bytes of all weights together."""
        return sum(self.layers.values()) + self.output + self.embedding


def weights_of(tensors: Iterable[Tensor]) -> Weights:
    """Sums the bytes of the tensors by layer, output and embedding; `tied` is set if no tensor is an output matrix."""
    layers: Counter[int] = Counter()
    output = embedding = 0
    tied = True
    for tensor in tensors:
        if (layer := tensor.layer) is not None:
            layers[layer] += tensor.size_bytes
        elif tensor.name.startswith("output"):
            output += tensor.size_bytes
            tied = tied and tensor.name != "output.weight"
        else:
            embedding += tensor.size_bytes
    return Weights(MappingProxyType(dict(layers)), output, embedding, tied)


def check_layout(tensors: Iterable[Tensor]) -> int:
    """Returns the end of the last tensor, from the beginning of the data. Raises `BrokenHeader` for tensors that
    overlap."""
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda each: each.offset):
        if tensor.offset < end:
            raise BrokenHeader(f"the tensors {before!r} and {tensor.name!r} overlap")
        end, before = tensor.offset + tensor.size_bytes, tensor.name
    return end
