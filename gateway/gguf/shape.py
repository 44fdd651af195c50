"""The numbers of a GGUF header that decide about memory, read as llama.cpp reads them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from gateway.gguf.errors import BrokenHeader
from gateway.gguf.header import Header
from gateway.gguf.tensors import Tensor

LAYERS_MAX: Final = 4096
NUMBER_MAX: Final = 2**32
"""The limit of every number. llama.cpp reads all of them into 32 bits."""

WINDOW_PERIODS: Final[Mapping[str, int]] = MappingProxyType({
    "afmoe": 4, "cohere2": 4, "cohere2moe": 4, "exaone4": 4, "exaone-moe": 4, "gemma-embedding": 6, "gemma2": 2,
    "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "llama4": 4, "olmo2": 4, "plamo3": 8, "smallthinker": 4,
})  # fmt: skip
"""The number of layers from one with full attention to the next, by architecture, for files that do not say."""
FULL_LAYER_FIRST: Final = frozenset({"smallthinker"})
"""The architectures in which the first layer of each period has full attention. In all others it is the last one."""
WINDOW_TOKENS: Final[Mapping[str, int]] = MappingProxyType({"gemma2": 4096, "llama4": 8192})
"""The window in tokens, by architecture, for files that do not say."""
FIXED_WINDOW_TOKENS: Final[Mapping[str, int]] = MappingProxyType({"llama4": 8192, "smallthinker": 4096})
"""The window in tokens, by architecture, whatever the file says, unless that is 0."""
CACHELESS: Final = frozenset({
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada", "llada-moe", "modern-bert",
    "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1", "wavtokenizer-dec",
})  # fmt: skip
"""The architectures without a cache, because they process a whole input at once."""
OWN_CACHE_LAYERS: Final[Mapping[str, int]] = MappingProxyType({"gemma3n": 20})
"""The number of layers with a cache of their own. Later layers use those caches. Other architectures say so by
`shared_kv_layers`."""
RECURRENT_ROLES: Final = ("ssm_", "shortconv.", "time_mix_")
KEY_ROLES: Final = frozenset({"attn_k.weight", "attn_kv_a_mqa.weight", "attn_kv_b.weight"})
FUSED_ROLE: Final = "attn_qkv.weight"


@dataclass(frozen=True)
class Layer:
    """The properties of one layer that decide about the memory of its cache."""

    kv_heads: int
    """The number of heads of keys and values. It is 0 for a layer without attention, or without a cache of its own."""
    windowed: bool
    """Whether its attention reaches back a fixed number of tokens only."""
    recurrent: bool


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model that decide about its memory. A number is 0 if the model has no such part."""

    layers: tuple[Layer, ...]
    embedding: int
    vocabulary: int
    heads: int
    key_length: int
    value_length: int
    window_key_length: int
    window_value_length: int
    window: int
    latent: bool
    """Whether the model has multi-head latent attention: values are computed from the keys' cache."""
    feed_forward: int
    """The number of values per token between the two halves of the widest feed-forward part, of all chosen experts
    together."""
    state_inner: int
    state_values: int
    """The number of values, always F32, that one recurrent layer keeps for one request."""
    notes: tuple[str, ...] = field(default=())


def shape_of(header: Header) -> Shape:
    """Returns the shape. Raises `BrokenHeader` for a value that is no number, or one beyond reason."""
    return _ShapeReader(header).read()


class _ShapeReader:
    def __init__(self, header: Header) -> None:
        self._header = header
        self._architecture = header.architecture
        self._notes: list[str] = []
        if not self._architecture:
            raise BrokenHeader("the file does not say of which architecture it is")
        self._count = self._layer_count()
        self._embedding = self._number("embedding_length")
        self._heads = self._each_layer("attention.head_count", 0)
        self._key_length = self._number("attention.key_length", self._embedding // max((*self._heads[:1], 1)))
        self._value_length = self._number("attention.value_length", self._key_length)
        self._window = self._window_tokens()

    def read(self) -> Shape:
        """Returns the shape. Raises `BrokenHeader`."""
        layers = self._layers()
        return Shape(
            layers=layers,
            embedding=self._embedding,
            vocabulary=self._vocabulary(),
            heads=max(self._heads, default=0),
            key_length=self._key_length,
            value_length=self._value_length,
            window_key_length=self._number("attention.key_length_swa", self._key_length),
            window_value_length=self._number("attention.value_length_swa", self._value_length),
            window=self._window,
            latent=self._number("attention.key_length_mla") > 0,
            feed_forward=max(self._dense(), self._experts()),
            state_inner=self._number("ssm.inner_size"),
            state_values=self._state_values(),
            notes=tuple(self._notes),
        )

    def _layer_count(self) -> int:
        found = {tensor.layer for tensor in self._header.tensors if tensor.layer is not None}
        count = self._number("block_count", max(found, default=-1) + 1)
        if count > LAYERS_MAX:
            raise BrokenHeader(f"{count} layers; at most {LAYERS_MAX} are read")
        return count

    def _layers(self) -> tuple[Layer, ...]:
        """Returns the layers. The tensors say what a layer consists of, the metadata how many heads it has."""
        roles = _roles_by_layer(self._header.tensors)
        kv_heads = self._kv_heads()
        windowed = self._windowed()
        own = self._own_cache_layers()
        layers = []
        for index in range(self._count):
            has = roles.get(index, set())
            recurrent = any(role.startswith(RECURRENT_ROLES) for role in has)
            attends = bool(has & KEY_ROLES) or (FUSED_ROLE in has and not recurrent)
            remembers = attends and index < own and self._architecture not in CACHELESS
            layers.append(Layer(kv_heads[index] if remembers else 0, windowed[index], recurrent))
        return tuple(layers)

    def _kv_heads(self) -> tuple[int, ...]:
        given = self._each_layer("attention.head_count_kv", -1)
        return tuple(heads if each < 0 else each for heads, each in zip(self._heads, given, strict=True))

    def _own_cache_layers(self) -> int:
        """Returns the number of layers with a cache of their own. Layers that share a cache have none, nor have those
        that predict several tokens at once."""
        shared = self._number("attention.shared_kv_layers") + self._number("nextn_predict_layers")
        return OWN_CACHE_LAYERS.get(self._architecture, max(self._count - shared, 0))

    def _window_tokens(self) -> int:
        given = self._number("attention.sliding_window", WINDOW_TOKENS.get(self._architecture, 0))
        return FIXED_WINDOW_TOKENS.get(self._architecture, given) if given else 0

    def _windowed(self) -> tuple[bool, ...]:
        key = f"{self._architecture}.attention.sliding_window_pattern"
        if self._window == 0:
            return (False,) * self._count
        if key in self._header.arrays:
            return tuple(bool(each) for each in self._each_layer("attention.sliding_window_pattern", 0))
        if self._architecture not in WINDOW_PERIODS:
            self._notes.append("which layers have its sliding window is not known: all are counted in full")
            return (False,) * self._count
        period = max(self._number("attention.sliding_window_pattern", WINDOW_PERIODS[self._architecture]), 1)
        full = 0 if self._architecture in FULL_LAYER_FIRST else period - 1
        return tuple(index % period != full for index in range(self._count))

    def _vocabulary(self) -> int:
        counted = self._header.lengths.get("tokenizer.ggml.tokens", 0)
        return counted or self._number("vocab_size")

    def _dense(self) -> int:
        if not any(tensor.role in {"ffn_up.weight", "ffn_down.weight"} for tensor in self._header.tensors):
            return 0
        return max(self._each_layer("feed_forward_length", 0), default=0)

    def _experts(self) -> int:
        used = self._number("expert_used_count")
        each = self._number("expert_feed_forward_length", max(self._each_layer("feed_forward_length", 0), default=0))
        return used * each + self._number("expert_shared_feed_forward_length")

    def _state_values(self) -> int:
        """Returns the values of one recurrent layer's state, as `llama_hparams::n_embd_r` and `n_embd_s` count them."""
        if wkv := self._number("wkv.head_size"):
            return self._embedding * (self._number("token_shift_count", 2) + wkv)
        if taps := self._number("shortconv.l_cache"):
            return self._embedding * (taps - 1)
        taps = max(self._number("ssm.conv_kernel") - 1, 0)
        if head := self._number("kda.head_dim"):
            return max(self._heads, default=0) * head * (3 * taps + head)
        inner, size = self._number("ssm.inner_size"), self._number("ssm.state_size")
        return taps * (inner + 2 * self._number("ssm.group_count") * size) + inner * size

    def _each_layer(self, key: str, default: int) -> tuple[int, ...]:
        """Returns a number for each layer. The file has one number for all, or an array. Raises `BrokenHeader` for an
        array that is too short."""
        name = f"{self._architecture}.{key}"
        if name not in self._header.lengths:
            return (self._number(key, default),) * self._count
        numbers = self._header.arrays.get(name, ())
        if len(numbers) < self._count:
            raise BrokenHeader(f"{name} has {self._header.lengths[name]} items for {self._count} layers")
        return tuple(_checked(name, number) for number in numbers[: self._count])

    def _number(self, key: str, default: int = 0) -> int:
        name = f"{self._architecture}.{key}"
        return _checked(name, self._header.metadata[name]) if name in self._header.metadata else default


def _checked(name: str, value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= NUMBER_MAX:
        raise BrokenHeader(f"{name} is {value!r}, not a number up to {NUMBER_MAX}")
    return int(value)


def _roles_by_layer(tensors: tuple[Tensor, ...]) -> Mapping[int, set[str]]:
    roles: dict[int, set[str]] = {}
    for tensor in tensors:
        if (layer := tensor.layer) is not None:
            roles.setdefault(layer, set()).add(tensor.role)
    return roles
