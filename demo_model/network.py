"""The network: a llama of a few layers, with the names and the layout that llama.cpp expects."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON: Final = 1e-5
ROPE_BASE: Final = 10_000.0


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    feed_forward: int = 512
    context_tokens: int = 2048

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, NORM_EPSILON)


class Block(nn.Module):
    """One layer; its members are named as the tensors of a GGUF file."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.width, shape.kv_heads * shape.head_width
        self.attn_norm, self.ffn_norm = Norm(width), Norm(width)
        self.attn_q, self.attn_output = _linear(width, width), _linear(width, width)
        self.attn_k, self.attn_v = _linear(width, kv_width), _linear(width, kv_width)
        self.ffn_gate, self.ffn_up = _linear(width, shape.feed_forward), _linear(width, shape.feed_forward)
        self.ffn_down = _linear(shape.feed_forward, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self._attend(self.attn_norm(x), cos, sin)
        h = self.ffn_norm(x)
        output: Tensor = x + self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return output

    def _attend(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, width = h.shape
        q, k, v = (
            layer(h).view(rows, length, -1, self.shape.head_width).transpose(1, 2)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = self.attn_output(mixed.transpose(1, 2).reshape(rows, length, width))
        return output


class Network(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width)
        self._initialise()
        frequencies = ROPE_BASE ** (-torch.arange(0, shape.head_width, 2).float() / shape.head_width)
        angles = torch.outer(torch.arange(shape.context_tokens).float(), frequencies)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Logits of the next token, only where `wanted` (rows x length) is true: elsewhere nothing is learned.

        The output weights are those of the embedding, as llama.cpp takes it when a file has none.
        """
        x = self.token_embd(tokens)
        length = tokens.shape[1]
        for block in self.blk:
            x = block(x, self.cos[:length], self.sin[:length])
        chosen: Tensor = self.output_norm(x)[wanted]
        return chosen @ self.token_embd.weight.T

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=self._deviation(name))

    def _deviation(self, name: str) -> float:
        if "token_embd" in name:
            return 0.02
        # What adds to the residual stream starts smaller, so that depth does not let it grow.
        residual = "attn_output" in name or "ffn_down" in name
        return float(self.shape.width**-0.5 * ((2 * self.shape.layers) ** -0.5 if residual else 1))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE over neighbouring pairs, which is ggml's "norm" layout: q and k go into the file as they are."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
