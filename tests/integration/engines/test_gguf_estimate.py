"""The estimate of a model's memory, against what real llama.cpp reserves for models of many shapes."""

from pathlib import Path

import pytest

from gateway.gguf.cache import LoadSettings
from gateway.gguf.estimate import estimate
from gateway.gguf.files import read_model
from tests.fakes.gguf_models import CASES, Shape, write_model
from tests.fakes.llama_buffers import buffers_in, measure

MIB = 1024**2
ROUNDING_MIB = 0.02
"""llama.cpp prints two digits of each buffer."""
SHORT = LoadSettings(2048, 2)
"""Longer than any window here."""
USES = (
    LoadSettings(1024, 1),
    LoadSettings(4096, 4),
    LoadSettings(1000, 3, cache_type_k="q8_0", cache_type_v="q4_0"),
    LoadSettings(4096, 2, flash_attention=False),
    LoadSettings(2048, 2, embeddings=False, batch_tokens=1024),
)


def compare(path: Path, shape: Shape, use: LoadSettings) -> None:
    write_model(path, shape)
    found, real = estimate(read_model(path), use), measure(path, use)
    assert found.weights_bytes / MIB == pytest.approx(real.weights, rel=0.02, abs=ROUNDING_MIB)
    assert found.kv_bytes / MIB == pytest.approx(real.cache, rel=0.02, abs=ROUNDING_MIB)
    assert found.total_bytes / MIB == pytest.approx(real.total, rel=0.15)


@pytest.mark.parametrize("name", CASES)
def test_p4_an_estimate_is_what_llama_cpp_reserves(name: str, tmp_path: Path) -> None:
    compare(tmp_path / "model.gguf", CASES[name], SHORT)


@pytest.mark.parametrize("use", USES, ids=str)
@pytest.mark.parametrize("name", ["grouped", "gemma3", "layers differ"])
def test_p4_however_it_is_loaded(name: str, use: LoadSettings, tmp_path: Path) -> None:
    compare(tmp_path / "model.gguf", CASES[name], use)


def test_a_log_without_a_load_is_no_measurement() -> None:
    with pytest.raises(AssertionError):
        buffers_in("CPU KV buffer size = 4.00 MiB")
