"""How much memory a model takes, before anything is loaded: weights, cache, computation; on GPU and in RAM. Pure.

Compared with what llama.cpp reports of its buffers (`python -m bench estimate`): weights and cache are exact, and the
total is within a few per cent. The split among GPUs follows llama.cpp's rules, but was not measured on one.
"""

from dataclasses import dataclass
from typing import Final

from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Requirement
from gateway.gguf.cache import LoadSettings, layer_cache_bytes
from gateway.gguf.compute import compute_bytes, mask_bytes, output_bytes
from gateway.gguf.header import Header
from gateway.gguf.shape import Shape, shape_of

GPU_PROCESS_BYTES: Final = 300 * 1024**2
"""The memory that a GPU's driver takes for each process. It is an assumption."""
PROCESS_BYTES: Final = 64 * 1024**2
"""The memory of the built-in engine's process without a model, vocabulary included."""
OTHER_FACTOR: Final = 1.2
OTHER_BYTES: Final = 512 * 1024**2
"""The memory that a backend of another kind takes beside `OTHER_FACTOR` times its file: a safe guess for runtimes in
Python."""
DEFAULT_USE: Final = LoadSettings()
DIGITS_MAX: Final = 9


@dataclass(frozen=True)
class Estimate:
    """The memory that a model will take once it is loaded, in bytes, by part and by where it lies."""

    weights_bytes: int
    kv_bytes: int
    """The bytes of the cache of all requests together, states of recurrent layers included."""
    compute_bytes: int
    vram_bytes: int
    """The bytes on GPUs, with `offloaded_layers` there."""
    ram_bytes: int
    """The bytes in main memory, with `offloaded_layers` on GPUs."""
    layers: int
    """The number of layers as llama.cpp counts them: the output is one more."""
    offloaded_layers: int
    notes: tuple[str, ...]
    """The facts that were unknown, each with the assumption that replaced it."""

    @property
    def total_bytes(self) -> int:
        """The bytes that the model takes on a machine without a GPU. On a machine with GPUs `vram_bytes + ram_bytes` is
        more, because some data is in both memories."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def estimate(
    header: Header, settings: LoadSettings = DEFAULT_USE, *, gpu_layers: int | None = None, companion_bytes: int = 0
) -> Estimate:
    """Returns the memory that a model takes, computed from its header and the load settings.

    `gpu_layers` is the number of layers that go to GPUs; None means all. `companion_bytes` is the size of files that
    are loaded beside the model, such as an mmproj. Raises `BrokenHeader`.
    """
    shape = shape_of(header)
    caches = [layer_cache_bytes(shape, layer, settings) for layer in shape.layers]
    working = compute_bytes(shape, settings)
    layers = len(shape.layers) + 1
    offloaded = layers if gpu_layers is None else max(0, min(gpu_layers, layers))
    weights = header.weights.total + companion_bytes
    vram = _vram_bytes(header, shape, caches, settings, offloaded) + (companion_bytes if offloaded else 0)
    moved = _moved_bytes(header, caches, offloaded) + (companion_bytes if offloaded else 0)
    host = _host_compute_bytes(shape, settings) if offloaded == layers else working
    return Estimate(
        weights_bytes=weights,
        kv_bytes=sum(caches),
        compute_bytes=working,
        vram_bytes=vram,
        ram_bytes=weights + sum(caches) - moved + host,
        layers=layers,
        offloaded_layers=offloaded,
        notes=shape.notes + _notes(header),
    )


def estimate_other(spec: ModelSpec, size_bytes: int) -> Requirement:
    """Returns a safe guess for weights in a format other than GGUF, made from the size of the file alone."""
    needed = int(size_bytes * OTHER_FACTOR) + OTHER_BYTES
    return Requirement(vram_bytes=needed, ram_bytes=needed + spec.prompt_cache_bytes, disk_bytes=size_bytes)


def requirement_of(spec: ModelSpec, header: Header, size_bytes: int, *, companion_bytes: int = 0) -> Requirement:
    """Returns what one replica takes in VRAM, RAM and disk; `size_bytes` is the artifact's. Raises `BrokenHeader`."""
    found = estimate(header, load_settings_of(spec), gpu_layers=_gpu_layers(spec), companion_bytes=companion_bytes)
    ram_bytes = found.total_bytes + PROCESS_BYTES + spec.prompt_cache_bytes
    return Requirement(vram_bytes=found.vram_bytes, ram_bytes=ram_bytes, disk_bytes=size_bytes)


def load_settings_of(spec: ModelSpec) -> LoadSettings:
    """Returns how a backend loads the model. Options that the backend would refuse count as not given."""
    return LoadSettings(
        context_size=spec.context_tokens or DEFAULT_USE.context_size,
        parallel=spec.slots,
        batch_tokens=_batch_tokens(spec.options.get("batch", "")),
        embeddings=spec.options.get("embeddings") != "false",
        flash_attention=spec.options.get("flash_attention") != "off",
    )


def _batch_tokens(text: str) -> int:
    digits = text.isascii() and text.isdecimal() and len(text) < DIGITS_MAX
    return (int(text) if digits else 0) or DEFAULT_USE.batch_tokens


def _gpu_layers(spec: ModelSpec) -> int | None:
    """Returns the number of layers on GPUs. On the wire 0 is "not set", which means all of them, as far as they fit."""
    return spec.gpu_layers if spec.gpu_layers is not None and spec.gpu_layers > 0 else None


def _vram_bytes(header: Header, shape: Shape, caches: list[int], settings: LoadSettings, offloaded: int) -> int:
    if offloaded == 0:
        return 0
    # llama.cpp copies a token embedding that is the output matrix as well.
    copied = header.weights.embedding if header.weights.tied else 0
    working = compute_bytes(shape, settings) - output_bytes(shape, settings)
    return _moved_bytes(header, caches, offloaded) + copied + working + GPU_PROCESS_BYTES


def _moved_bytes(header: Header, caches: list[int], offloaded: int) -> int:
    """Returns the bytes that main memory is spared. The output goes first, then layers from the last one backwards."""
    if offloaded == 0:
        return 0
    first = len(caches) - (offloaded - 1)
    weights = sum(size for layer, size in header.weights.layers.items() if layer >= first)
    return header.weights.output + weights + sum(caches[first:])


def _host_compute_bytes(shape: Shape, settings: LoadSettings) -> int:
    """Returns the bytes in main memory for what goes in and what comes out when every layer is on a GPU."""
    return 2 * shape.embedding * settings.batch * 4 + mask_bytes(shape, settings) + output_bytes(shape, settings)


def _notes(header: Header) -> tuple[str, ...]:
    parts = header.metadata.get("split.count", 0)
    listed = header.metadata.get("split.tensors.count", 0)
    missing = isinstance(listed, int) and listed > len(header.tensors)
    return (f"one of {parts} parts: the weights of the others are not counted",) if missing else ()
