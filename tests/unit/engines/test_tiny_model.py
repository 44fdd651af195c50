"""The tiny model as a file; that llama.cpp loads and runs it is what every integration test shows."""

from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from gateway.gguf.files import read_file


def written(folder: Path, name: str, *, seed: int = 7) -> bytes:
    path = folder / name
    write_tiny_model(path, seed=seed)
    return path.read_bytes()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second, other = written(tmp_path, "a"), written(tmp_path, "b"), written(tmp_path, "c", seed=8)
    assert first == second
    assert first != other


def test_it_is_small_and_claims_a_long_context(tmp_path: Path) -> None:
    assert len(written(tmp_path, "tiny.gguf")) < 1_000_000
    assert read_file(tmp_path / "tiny.gguf").metadata["llama.context_length"] == 32_768


def test_a_failed_write_leaves_neither_a_part_nor_a_change(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="multiple of 32"):
        write_tiny_model(path, embedding_length=33)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]
    assert path.read_bytes() == b"before"
