"""Model files of given shapes whose weights are all zero and take no room on the disk, for llama.cpp to load."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np

QUANTISED_DIMENSIONS: Final = 2
"""Vectors stay F32, as every converter leaves them."""
ALWAYS_F32: Final = ("conv", "ffn_gate_inp", "ssm_a", ".bias")
SPECIAL_TOKENS: Final = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class Shape:
    """The dimensions that decide about memory, by the names that llama.cpp has for them."""

    architecture: str = "llama"
    layers: int = 8
    embedding: int = 512
    heads: int = 8
    kv_heads: int | Sequence[int] = 8
    head_length: int = 64
    feed_forward: int = 1536
    vocabulary: int = 8_000
    weights: str = "F16"
    window: int = 0
    experts: int = 0
    experts_used: int = 0
    state: int = 0
    """Of a recurrent layer; 0: there is none."""
    extra: tuple[tuple[str, int | Sequence[int] | Sequence[bool]], ...] = ()
    """More metadata of the architecture."""

    def kv_heads_of(self, layer: int) -> int:
        return self.kv_heads if isinstance(self.kv_heads, int) else self.kv_heads[layer]


Tensors = Iterator[tuple[str, tuple[int, ...]]]
"""Names, with rows before columns."""


def write_model(path: Path, shape: Shape) -> None:
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_metadata(writer, shape)
    _add_tokenizer(writer, shape.vocabulary)
    for name, dimensions in _tensors(shape):
        _add_tensor(writer, name, dimensions, shape.weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    sizes = [gguf.GGUFWriter.ggml_pad(info.nbytes, 32) for infos in writer.tensors for info in infos.values()]
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + sum(sizes))


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(131_072)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_length)
    writer.add_value_length(shape.head_length)
    writer.add_rope_dimension_count(64 if shape.architecture == "deepseek2" else shape.head_length)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.feed_forward)
    if shape.state:
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * shape.embedding)
        writer.add_ssm_state_size(shape.state)
        writer.add_ssm_time_step_rank(shape.embedding // 16)
    for key, value in shape.extra:
        name = f"{shape.architecture}.{key}"
        writer.add_uint32(name, value) if isinstance(value, int) else writer.add_array(name, value)


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    tokens = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    words = [f"w{number}" for number in range(size - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + words)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _add_tensor(writer: gguf.GGUFWriter, name: str, dimensions: tuple[int, ...], weights: str) -> None:
    plain = len(dimensions) < QUANTISED_DIMENSIONS or any(part in name for part in ALWAYS_F32)
    kind = gguf.GGMLQuantizationType["F32" if plain else weights]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(dimensions))
    stored = gguf.quant_shape_to_byte_shape(dimensions, kind) if block > 1 else dimensions
    writer.add_tensor_info(
        name, stored, np.dtype(np.uint8 if block > 1 else np.float16), count // block * block_bytes, raw_dtype=kind
    )


def _tensors(shape: Shape) -> Tensors:
    yield "token_embd.weight", (shape.vocabulary, shape.embedding)
    yield ("token_embd_norm.weight" if shape.architecture == "lfm2" else "output_norm.weight"), (shape.embedding,)
    if shape.architecture not in TIED:
        yield "output.weight", (shape.vocabulary, shape.embedding)
    for layer in range(shape.layers):
        for name, dimensions in _layer(shape, layer):
            yield f"blk.{layer}.{name}", dimensions


def _layer(shape: Shape, layer: int) -> Tensors:
    yield "attn_norm.weight", (shape.embedding,)
    if shape.architecture == "mamba":
        yield from _state_space(shape)
    elif shape.architecture == "lfm2" and not shape.kv_heads_of(layer):
        yield from _short_convolution(shape)
        yield from _dense(shape)
    elif shape.architecture == "deepseek2":
        yield from _latent_attention(shape)
        yield from _dense(shape)
    elif shape.kv_heads_of(layer):
        yield from _attention(shape, layer)
        yield from _experts(shape) if shape.experts else _dense(shape)
    else:
        yield from _dense(shape)


def _attention(shape: Shape, layer: int) -> Tensors:
    queries = shape.heads * shape.head_length
    keys = shape.kv_heads_of(layer) * shape.head_length
    yield "attn_q.weight", (queries, shape.embedding)
    yield "attn_k.weight", (keys, shape.embedding)
    yield "attn_v.weight", (keys, shape.embedding)
    yield "attn_output.weight", (shape.embedding, queries)
    if shape.architecture in NORMED_HEADS:
        yield "attn_q_norm.weight", (shape.head_length,)
        yield "attn_k_norm.weight", (shape.head_length,)
    if shape.architecture in {"gemma2", "gemma3", "gpt-oss"}:
        yield "post_attention_norm.weight", (shape.embedding,)
    if shape.architecture == "gpt-oss":
        yield "attn_q.bias", (queries,)
        yield "attn_k.bias", (keys,)
        yield "attn_v.bias", (keys,)
        yield "attn_output.bias", (shape.embedding,)
        yield "attn_sinks.weight", (shape.heads,)


def _latent_attention(shape: Shape) -> Tensors:
    """Multi-head latent attention as of DeepSeek V2 Lite, with 512 latent and 64 rotated dimensions."""
    yield "attn_q.weight", (shape.heads * 192, shape.embedding)
    yield "attn_kv_a_mqa.weight", (576, shape.embedding)
    yield "attn_kv_a_norm.weight", (512,)
    yield "attn_k_b.weight", (shape.heads, 512, 128)
    yield "attn_v_b.weight", (shape.heads, 128, 512)
    yield "attn_output.weight", (shape.embedding, shape.heads * 128)


def _dense(shape: Shape) -> Tensors:
    yield "ffn_norm.weight", (shape.embedding,)
    yield "ffn_gate.weight", (shape.feed_forward, shape.embedding)
    yield "ffn_up.weight", (shape.feed_forward, shape.embedding)
    yield "ffn_down.weight", (shape.embedding, shape.feed_forward)
    if shape.architecture in {"gemma2", "gemma3"}:
        yield "post_ffw_norm.weight", (shape.embedding,)


def _experts(shape: Shape) -> Tensors:
    inner = {"ffn_gate": (shape.feed_forward, shape.embedding), "ffn_up": (shape.feed_forward, shape.embedding)}
    if shape.architecture != "gpt-oss":
        yield "ffn_norm.weight", (shape.embedding,)
    yield "ffn_gate_inp.weight", (shape.experts, shape.embedding)
    for name, dimensions in {**inner, "ffn_down": (shape.embedding, shape.feed_forward)}.items():
        yield f"{name}_exps.weight", (shape.experts, *dimensions)
        if shape.architecture == "gpt-oss":
            yield f"{name}_exps.bias", (shape.experts, dimensions[0])
    if shape.architecture == "gpt-oss":
        yield "ffn_gate_inp.bias", (shape.experts,)


def _state_space(shape: Shape) -> Tensors:
    inner, rank = 2 * shape.embedding, shape.embedding // 16
    yield "ssm_in.weight", (2 * inner, shape.embedding)
    yield "ssm_conv1d.weight", (inner, 4)
    yield "ssm_conv1d.bias", (inner,)
    yield "ssm_x.weight", (rank + 2 * shape.state, inner)
    yield "ssm_dt.weight", (inner, rank)
    yield "ssm_dt.bias", (inner,)
    yield "ssm_a", (inner, shape.state)
    yield "ssm_d", (inner,)
    yield "ssm_out.weight", (shape.embedding, inner)


def _short_convolution(shape: Shape) -> Tensors:
    yield "shortconv.conv.weight", (shape.embedding, 3)
    yield "shortconv.in_proj.weight", (3 * shape.embedding, shape.embedding)
    yield "shortconv.out_proj.weight", (shape.embedding, shape.embedding)


TIED: Final = frozenset({"gemma2", "gemma3", "lfm2", "mamba"})
"""Their output matrix is the token embedding."""
NORMED_HEADS: Final = frozenset({"gemma3", "qwen3moe", "lfm2"})
CASES: Final[Mapping[str, Shape]] = {
    "plain": Shape(),
    "grouped": Shape(heads=16, kv_heads=4, embedding=1024, feed_forward=4096, vocabulary=32_000, layers=3),
    "one kv head": Shape(kv_heads=1),
    "wide words": Shape(embedding=256, heads=4, kv_heads=2, layers=4, feed_forward=1024, vocabulary=128_000),
    "q8_0": Shape(weights="Q8_0", heads=16, kv_heads=4, embedding=1024, feed_forward=4096),
    "q4_0": Shape(weights="Q4_0", heads=16, kv_heads=4, embedding=1024, feed_forward=4096),
    "q4_k": Shape(weights="Q4_K", heads=16, kv_heads=4, embedding=1024, feed_forward=4096),
    "layers differ": Shape(architecture="deci", kv_heads=(8, 2, 4, 8, 1, 2, 8, 8)),
    "gemma2": Shape(architecture="gemma2", heads=8, kv_heads=4, window=1024),
    "gemma3": Shape(architecture="gemma3", layers=13, heads=8, kv_heads=4, window=512),
    "gpt-oss": Shape(architecture="gpt-oss", layers=4, heads=16, kv_heads=4, window=128, experts=8, experts_used=4),
    "experts": Shape(
        architecture="qwen3moe", heads=16, kv_heads=4, experts=16, experts_used=4, feed_forward=512, weights="Q8_0"
    ),
    "mamba": Shape(architecture="mamba", state=16, kv_heads=0, heads=0),
    "hybrid": Shape(
        architecture="lfm2", kv_heads=(0, 0, 4, 0, 0, 4, 0, 4), extra=(("shortconv.l_cache", 3),)
    ),
    "latent": Shape(
        architecture="deepseek2", layers=27, kv_heads=1, head_length=576,
        extra=(
            ("attention.kv_lora_rank", 512), ("attention.key_length_mla", 192), ("attention.value_length_mla", 128),
            ("leading_dense_block_count", 27), ("expert_feed_forward_length", 512), ("expert_count", 0),
            ("expert_used_count", 0), ("expert_shared_count", 0),
        ),
    ),
    "wide heads": Shape(heads=32, kv_heads=8, head_length=128, feed_forward=512, vocabulary=1000),
    "many experts": Shape(
        architecture="qwen3moe", heads=16, kv_heads=4, experts=16, experts_used=8, feed_forward=512, vocabulary=1000
    ),
    "few words, states": Shape(architecture="mamba", state=16, kv_heads=0, heads=0, vocabulary=1000),
}  # fmt: skip
