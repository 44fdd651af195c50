"""What follows from a header: which layers remember what, what goes to a GPU; llama.cpp itself is asked elsewhere."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.domain.ids import ModelName
from gateway.domain.model_spec import ModelSpec
from gateway.gguf.cache import LoadSettings
from gateway.gguf.errors import BrokenHeader
from gateway.gguf.estimate import (
    GPU_PROCESS_BYTES,
    PROCESS_BYTES,
    Estimate,
    estimate,
    estimate_other,
    load_settings_of,
    requirement_of,
)
from gateway.gguf.files import read_file
from gateway.gguf.header import Header
from gateway.gguf.reader import Scalar
from gateway.gguf.shape import shape_of
from gateway.gguf.tensors import Tensor
from tests.fakes.gguf_models import Shape, write_model

USE = LoadSettings(2048, 2)
LAYERS = 6
SPEC = ModelSpec(name=ModelName("m"), backend="llama-cpp", artifact="file:/m.gguf")


@pytest.fixture
def header(tmp_path: Path) -> Header:
    write_model(tmp_path / "m.gguf", Shape(layers=LAYERS, embedding=256, feed_forward=512, vocabulary=1000, kv_heads=2))
    return read_file(tmp_path / "m.gguf")


def model(architecture: str, **metadata: Scalar) -> Header:
    """A header without weights; two underscores stand for a dot."""
    layers = 8
    numbers = {"block_count": layers, "embedding_length": 64, "attention__head_count": 4} | metadata
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in numbers.items()}
    keys = tuple(Tensor(f"blk.{layer}.attn_k.weight", (), "f32", 4 * layer) for layer in range(layers))
    return Header(3, {"general.architecture": architecture} | named, {}, {}, keys, 0, 4 * layers)


def windowed(header: Header) -> str:
    return "".join("w" if layer.windowed else "-" for layer in shape_of(header).layers)


@pytest.mark.parametrize(
    ("header", "pattern"),
    [
        (model("llama", attention__sliding_window=512), "--------"),
        (model("gemma2"), "w-w-w-w-"),
        (model("gemma3", attention__sliding_window=512), "wwwww-ww"),
        (model("gemma3"), "--------"),
        (model("gpt-oss", attention__sliding_window=128), "w-w-w-w-"),
        (model("llama4"), "www-www-"),
        (model("llama4", attention__sliding_window=0), "--------"),
        (model("smallthinker", attention__sliding_window=1), "-www-www"),
        (model("cohere2", attention__sliding_window=9, attention__sliding_window_pattern=2), "w-w-w-w-"),
        (
            replace(
                model("gemma4", attention__sliding_window=9),
                arrays={"gemma4.attention.sliding_window_pattern": (True, False) * 4},
                lengths={"gemma4.attention.sliding_window_pattern": 8},
            ),
            "w-w-w-w-",
        ),
    ],
)
def test_windows_are_where_llama_cpp_has_them(header: Header, pattern: str) -> None:
    assert windowed(header) == pattern


def test_a_window_of_an_unknown_kind_is_counted_in_full_and_said() -> None:
    assert "counted in full" in " ".join(estimate(model("novel", attention__sliding_window=9)).notes)
    assert not estimate(model("llama")).notes


def test_a_window_bounds_the_cache() -> None:
    """Cells: the window and a batch, rounded up to 256."""
    short, long = (
        estimate(model("gpt-oss", attention__sliding_window=128), LoadSettings(size, 1)) for size in (4096, 8192)
    )
    per_cell = 2 * 4 * 16 * 2  # keys and values, heads, values of a head, bytes
    assert short.kv_bytes == per_cell * 4 * (4096 + 768)
    assert long.kv_bytes - short.kv_bytes == per_cell * 4 * 4096


def test_layers_that_share_a_cache_have_none() -> None:
    assert [layer.kv_heads for layer in shape_of(model("gemma4", attention__shared_kv_layers=3)).layers] == [4] * 5 + [
        0
    ] * 3
    assert estimate(model("bert")).kv_bytes == 0


def test_the_cache_grows_with_context_and_requests(header: Header) -> None:
    one = estimate(header, LoadSettings(2048, 1)).kv_bytes
    assert (
        estimate(header, LoadSettings(4096, 1)).kv_bytes == estimate(header, LoadSettings(2048, 2)).kv_bytes == 2 * one
    )
    assert estimate(header, LoadSettings(2047, 1)).kv_bytes == one


def test_p3_without_a_gpu_everything_is_in_ram(header: Header) -> None:
    found = estimate(header, USE, gpu_layers=0)
    assert (found.vram_bytes, found.ram_bytes, found.offloaded_layers) == (0, found.total_bytes, 0)


def test_with_every_layer_on_a_gpu_ram_keeps_the_embedding(header: Header) -> None:
    found = estimate(header, USE)
    assert found.offloaded_layers == found.layers == LAYERS + 1
    gone = found.weights_bytes - header.weights.embedding + found.kv_bytes
    assert found.vram_bytes > gone + GPU_PROCESS_BYTES
    assert header.weights.embedding < found.ram_bytes < found.total_bytes - gone + found.compute_bytes


def test_an_output_that_is_the_embedding_is_there_twice(header: Header) -> None:
    tied = replace(header, tensors=tuple(each for each in header.tensors if each.name != "output.weight"))
    assert estimate(tied).vram_bytes == estimate(header).vram_bytes  # both matrices are of one size


def test_each_further_layer_moves_its_weights_and_its_cache(header: Header) -> None:
    found = [estimate(header, USE, gpu_layers=layers) for layers in range(1, LAYERS + 2)]
    per_layer = header.weights.layers[0] + found[0].kv_bytes // LAYERS
    assert {after.vram_bytes - before.vram_bytes for before, after in pairwise(found)} == {per_layer}
    assert all(gone(before) + per_layer == gone(after) for before, after in pairwise(found[:-1]))


def gone(found: Estimate) -> int:
    return found.total_bytes - found.ram_bytes


def test_a_companion_counts_where_the_model_is(header: Header) -> None:
    alone, both = estimate(header, USE), estimate(header, USE, companion_bytes=1000)
    assert (both.vram_bytes - alone.vram_bytes, both.total_bytes - alone.total_bytes) == (1000, 1000)
    assert both.ram_bytes == alone.ram_bytes


def test_one_part_of_a_split_file_says_so(header: Header) -> None:
    part = replace(header, metadata={**header.metadata, "split.count": 3, "split.tensors.count": 999})
    assert "one of 3 parts" in " ".join(estimate(part).notes)


@pytest.mark.parametrize(
    "metadata",
    [
        {"block_count": 2**31},
        {"block_count": True * 2**40},
        {"attention__head_count": "many"},
        {"attention__head_count": -1},
        {"embedding_length": 0.5},
    ],
)
def test_numbers_beyond_reason_are_refused(metadata: dict[str, Scalar]) -> None:
    with pytest.raises(BrokenHeader):
        shape_of(replace(model("llama"), metadata=model("llama", **metadata).metadata))


def test_an_array_shorter_than_the_model_is_refused() -> None:
    key = "llama.attention.head_count_kv"
    with pytest.raises(BrokenHeader, match="3 items for 8 layers"):
        shape_of(replace(model("llama"), arrays={key: (1, 2, 3)}, lengths={key: 3}))


def test_a_requirement_is_of_one_replica(header: Header) -> None:
    spec = replace(SPEC, context_size=2048, parallel=2)
    found = requirement_of(spec, header, size_bytes=77)
    expected = estimate(header, USE)
    assert (found.vram_bytes, found.disk_bytes, found.measured) == (expected.vram_bytes, 77, False)
    assert found.ram_bytes == expected.total_bytes + PROCESS_BYTES + 256 * 2**20
    smaller = requirement_of(replace(spec, prompt_cache=2**20), header, 77)
    assert (found.ram_bytes or 0) - (smaller.ram_bytes or 0) == 255 * 2**20
    fewer = requirement_of(replace(spec, gpu_layers=2), header, 77).vram_bytes
    assert fewer == estimate(header, USE, gpu_layers=2).vram_bytes


def test_a_spec_is_used_as_the_engine_uses_it() -> None:
    assert load_settings_of(SPEC) == LoadSettings()
    options = {"batch": "64", "embeddings": "false", "flash_attention": "off"}
    assert load_settings_of(replace(SPEC, options=options)) == LoadSettings(
        batch_tokens=64, embeddings=False, flash_attention=False
    )
    assert load_settings_of(replace(SPEC, options={"batch": "9" * 5000})) == LoadSettings()


def test_another_format_is_estimated_by_its_size() -> None:
    found = estimate_other(replace(SPEC, backend="other"), 10 * 2**30)
    assert found.disk_bytes == 10 * 2**30
    assert found.ram_bytes == found.vram_bytes == 12 * 2**30 + 512 * 2**20
    assert estimate_other(replace(SPEC, prompt_cache=5), 0).ram_bytes == 512 * 2**20 + 5


@pytest.mark.parametrize("wrong", [{"parallel": 0}, {"context_size": -1}, {"cache_type_k": "q9_0"}])
def test_a_use_that_can_not_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be positive|can't be of type"):
        LoadSettings(**wrong)
