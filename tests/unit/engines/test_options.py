"""What LoadModel is asked, read into what the engine loads."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import LoadError
from gateway.engines.llama_cpp.options import OPTIONS, LoadOptions, load_options

FILE = "/models/tiny.gguf"


def options(*pairs: str) -> LoadOptions:
    return load_options(pb.ModelOptions(Model="tiny", ModelFile=FILE, Options=pairs))


def test_what_is_not_set_has_a_default() -> None:
    assert options() == LoadOptions(
        identity="tiny",
        file=Path(FILE),
        context_tokens=4096,
        gpu_layers=-1,
        threads=0,
        parallel=4,
        batch_tokens=512,
        embeddings=True,
        pooling="auto",
        flash_attention="auto",
        prompt_cache_bytes=256 * 2**20,
        reproducible=False,
    )


def test_every_option_is_read() -> None:
    read = options(
        "parallel:2",
        "threads: 3",
        "batch:64",
        "embeddings:false",
        "pooling:last",
        "flash_attention:off",
        "prompt_cache:7",
        "reproducible:true",
    )
    expected = dataclasses.replace(
        options(),
        parallel=2,
        threads=3,
        batch_tokens=64,
        embeddings=False,
        pooling="last",
        flash_attention="off",
        prompt_cache_bytes=7,
        reproducible=True,
    )
    assert read == expected


def test_the_fields_of_the_request_are_read() -> None:
    read = load_options(pb.ModelOptions(ModelFile=FILE, ContextSize=512, NGPULayers=7, Threads=2))
    assert (read.context_tokens, read.gpu_layers, read.threads) == (512, 7, 2)


def test_a_context_is_rounded_up_never_down() -> None:
    assert load_options(pb.ModelOptions(ModelFile=FILE, ContextSize=257)).context_tokens == 512


@pytest.mark.parametrize("parallel", [1, 3, 5, 7, 256])
def test_a_batch_can_be_shared_evenly_among_the_slots(parallel: int) -> None:
    """llama.cpp aborts the process otherwise, as soon as embeddings are pooled by their mean."""
    read = options(f"parallel:{parallel}")
    assert read.batch_tokens % parallel == 0
    assert 512 <= read.batch_tokens < 512 + parallel


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("paralel:2", "unknown option 'paralel'"),
        ("parallel", "key:value"),
        ("parallel:0", "option parallel"),
        ("parallel:two", "option parallel"),
        ("threads:-1", "option threads"),
        ("batch:1", "option batch"),
        ("embeddings:yes", "option embeddings"),
        ("pooling:median", "option pooling"),
        ("flash_attention:true", "option flash_attention"),
    ],
)
def test_a_wrong_option_is_named(option: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        options(option)


def test_a_relative_file_is_refused() -> None:
    with pytest.raises(LoadError, match="absolute path"):
        load_options(pb.ModelOptions(ModelFile="tiny.gguf"))


def test_a_negative_context_is_refused() -> None:
    with pytest.raises(LoadError, match="ContextSize"):
        load_options(pb.ModelOptions(ModelFile=FILE, ContextSize=-1))


@given(name=st.sampled_from(sorted(OPTIONS)), value=st.text())
def test_any_value_is_read_or_refused(name: str, value: str) -> None:
    with contextlib.suppress(LoadError):
        assert options(f"{name}:{value}").identity == "tiny"
