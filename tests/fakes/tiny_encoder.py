"""Writes BERT models of random weights: one that embeds text, and one that scores a query with a document."""

from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt

from gateway.engines.llama_cpp.tiny_model import add_tokenizer, vocabulary_tokens

EMBEDDING_LENGTH: Final = 32
HIDDEN_LENGTH: Final = 64
HEADS: Final = 2
LAYERS: Final = 2
CONTEXT_TOKENS: Final = 256
TOKEN_TYPES: Final = 2


def write_tiny_encoder(path: Path, *, reranks: bool = False, seed: int = 7) -> None:
    """Writes the model; the same arguments give the same bytes. One that `reranks` has a head with one score."""
    vocabulary = tuple(vocabulary_tokens())
    writer = gguf.GGUFWriter(path, "bert")
    _add_shape(writer, len(vocabulary), reranks=reranks)
    add_tokenizer(writer, vocabulary)
    _add_weights(writer, np.random.default_rng(seed), len(vocabulary), reranks=reranks)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, vocabulary_size: int, *, reranks: bool) -> None:
    writer.add_vocab_size(vocabulary_size)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(EMBEDDING_LENGTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN_LENGTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_token_type_count(TOKEN_TYPES)
    writer.add_pooling_type(gguf.PoolingType.RANK if reranks else gguf.PoolingType.MEAN)


def _add_weights(writer: gguf.GGUFWriter, rng: np.random.Generator, vocabulary_size: int, *, reranks: bool) -> None:
    def add(name: str, *shape: int) -> None:
        """Adds a matrix of random weights, or a bias with random values."""
        values: npt.NDArray[Any] = rng.standard_normal(shape) * shape[-1] ** -0.5
        writer.add_tensor(name, values.astype(np.float32))

    def add_norm(name: str) -> None:
        """Adds a normalization that changes nothing."""
        writer.add_tensor(f"{name}.weight", np.ones(EMBEDDING_LENGTH, dtype=np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(EMBEDDING_LENGTH, dtype=np.float32))

    def add_linear(name: str, rows: int, columns: int) -> None:
        """Adds a layer with its bias."""
        add(f"{name}.weight", rows, columns)
        add(f"{name}.bias", rows)

    add("token_embd.weight", vocabulary_size, EMBEDDING_LENGTH)
    add("position_embd.weight", CONTEXT_TOKENS, EMBEDDING_LENGTH)
    add("token_types.weight", TOKEN_TYPES, EMBEDDING_LENGTH)
    add_norm("token_embd_norm")
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add_linear(f"blk.{layer}.{name}", EMBEDDING_LENGTH, EMBEDDING_LENGTH)
        add_linear(f"blk.{layer}.ffn_up", HIDDEN_LENGTH, EMBEDDING_LENGTH)
        add_linear(f"blk.{layer}.ffn_down", EMBEDDING_LENGTH, HIDDEN_LENGTH)
        add_norm(f"blk.{layer}.attn_output_norm")
        add_norm(f"blk.{layer}.layer_output_norm")
    if reranks:
        add_linear("cls", EMBEDDING_LENGTH, EMBEDDING_LENGTH)
        add_linear("cls.output", 1, EMBEDDING_LENGTH)
