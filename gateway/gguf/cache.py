"""The memory that a model keeps for its requests: the KV cache of each layer, and the states of recurrent ones.
Pure."""

from dataclasses import dataclass
from typing import Final

from gateway.gguf.shape import Layer, Shape
from gateway.gguf.tensors import BLOCK_OF

CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""The types in which llama.cpp can keep keys and values."""
CELLS_STEP: Final = 256
"""The multiple to which llama.cpp rounds up a request's context and a window."""
STATE_VALUE_BYTES: Final = 4


@dataclass(frozen=True)
class LoadSettings:
    """The settings of a load. The defaults are those of the built-in llama.cpp engine."""

    context_size: int = 4096
    """The number of tokens of one request, prompt and answer together."""
    parallel: int = 4
    """The number of requests at a time. Each has a context of its own."""
    batch_tokens: int = 512
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    embeddings: bool = True
    """Whether the model is loaded for embeddings, too. Then there are logits for every token of a batch."""
    flash_attention: bool = True

    def __post_init__(self) -> None:
        if min(self.context_size, self.parallel, self.batch_tokens) < 1:
            raise ValueError("context_size, parallel and batch_tokens must be positive")
        if unknown := {self.cache_type_k, self.cache_type_v} - set(CACHE_TYPES):
            raise ValueError(f"a cache can't be of type {min(unknown)!r}; known are {', '.join(CACHE_TYPES)}")

    @property
    def batch(self) -> int:
        """Tokens that are computed at once. Shared evenly among the requests, as the engine has it."""
        return min(round_up(self.batch_tokens, self.parallel), self.cells * self.parallel)

    @property
    def cells(self) -> int:
        """Tokens that one request's cache has room for."""
        return round_up(self.context_size, CELLS_STEP)

    def window_cells(self, window: int) -> int:
        """Returns the cells of a layer with a sliding window, which keeps one batch of tokens beyond the window."""
        return round_up(min(self.cells, window + self.batch), CELLS_STEP)


def layer_cache_bytes(shape: Shape, layer: Layer, settings: LoadSettings) -> int:
    """Returns the bytes of one layer's KV cache and recurrent state, for all parallel requests together."""
    return _kv_bytes(shape, layer, settings) + (_state_bytes(shape, settings) if layer.recurrent else 0)


def _kv_bytes(shape: Shape, layer: Layer, settings: LoadSettings) -> int:
    keys = layer.kv_heads * (shape.window_key_length if layer.windowed else shape.key_length)
    values = _values(shape, layer, settings)
    cells = settings.window_cells(shape.window) if layer.windowed else settings.cells
    row = _row_bytes(keys, settings.cache_type_k) + _row_bytes(values, settings.cache_type_v)
    return row * cells * settings.parallel


def _values(shape: Shape, layer: Layer, settings: LoadSettings) -> int:
    """Returns the values per token. Without flash attention values are stored transposed, and then all layers are as
    wide as the widest."""
    if shape.latent or not layer.kv_heads:
        return 0
    heads = layer.kv_heads if settings.flash_attention else max(each.kv_heads for each in shape.layers)
    return heads * (shape.window_value_length if layer.windowed else shape.value_length)


def _row_bytes(values: int, kind: str) -> int:
    block, size = BLOCK_OF[kind]
    return -(-values // block) * size


def _state_bytes(shape: Shape, settings: LoadSettings) -> int:
    return shape.state_values * STATE_VALUE_BYTES * settings.parallel


def round_up(value: int, step: int) -> int:
    """Rounds `value` up to a multiple of `step`."""
    return -(-value // step) * step
