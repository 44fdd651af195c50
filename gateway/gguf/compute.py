"""The memory that a model needs while it computes a batch. Pure.

llama.cpp lays the intermediate results of a batch out so that memory is used again, so that what counts is the widest
moment. Four of them can be the widest; with E values per token in the embedding, all in F32:

  feed-forward part     3 F + 5 E     F: its inner width, of all chosen experts together
  attention             2 Q + 5 E     Q: heads x key length; without flash attention C x heads more (C: cells)
  recurrent layer       5 I + 5 E     I: its inner width
  logits                    V + 5 E   V: the vocabulary; only for the rows that are asked for

Beside that stand a mask for each kind of attention (2 bytes for each pair of a batch's token and a cell of its request;
4 without flash attention), and the logits that are handed out.

The factors were found by measuring: `python -m bench estimate` compares all of it with llama.cpp's own numbers.
"""

from typing import Final

from gateway.gguf.cache import LoadSettings
from gateway.gguf.shape import Shape

VALUE_BYTES: Final = 4
TOKEN_BYTES: Final = 64
"""The bytes of a token's position, ids and indices."""


def compute_bytes(shape: Shape, settings: LoadSettings) -> int:
    """Returns the most bytes that llama.cpp needs, besides weights and cache, while it computes a batch."""
    return (
        _widest_moment(shape, settings)
        + mask_bytes(shape, settings)
        + TOKEN_BYTES * settings.batch
        + output_bytes(shape, settings)
    )


def mask_bytes(shape: Shape, settings: LoadSettings) -> int:
    """Returns the bytes of the attention masks: one for full and one for windowed attention, if the model has them."""
    attending = [layer.windowed for layer in shape.layers if layer.kv_heads]
    cells = settings.cells * (False in attending) + settings.window_cells(shape.window) * (True in attending)
    return cells * settings.batch * (2 if settings.flash_attention else VALUE_BYTES)


def output_bytes(shape: Shape, settings: LoadSettings) -> int:
    """Returns the bytes of the logits and embeddings that are handed out, which are always in main memory."""
    return (shape.vocabulary + shape.embedding) * settings.parallel * VALUE_BYTES


def _widest_moment(shape: Shape, settings: LoadSettings) -> int:
    attention = shape.heads * (2 * shape.key_length + (0 if settings.flash_attention else settings.cells))
    recurrent = 5 * shape.state_inner + shape.state_values * settings.parallel // settings.batch
    per_token = max(3 * shape.feed_forward, attention, recurrent)
    logits = shape.vocabulary * (settings.batch if settings.embeddings else min(settings.parallel, settings.batch))
    return (max(per_token * settings.batch, logits) + 5 * shape.embedding * settings.batch) * VALUE_BYTES
