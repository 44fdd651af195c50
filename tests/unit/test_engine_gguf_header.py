"""GGUF metadata, from files written by the reference library and from broken ones."""

import contextlib
import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.engines.llama_cpp.gguf_header import BrokenHeader, read_metadata

HEADER = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)


def test_scalars_are_read_and_arrays_skipped(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_array("bert.numbers", [1, 2, 3])
    writer.add_array("bert.words", ["a", "bc", ""])
    writer.add_context_length(512)
    writer.add_layer_norm_eps(0.5)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_causal_attention(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_metadata(path) == {
        "general.architecture": "bert",
        "bert.context_length": 512,
        "bert.attention.layer_norm_epsilon": 0.5,
        "bert.pooling_type": 1,
        "bert.attention.causal": False,
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a GGUF file"),
        (b"127.0.0.1 localhost", "not a GGUF file"),
        (b"GGUF", "cut short"),
        (struct.pack("<4sIQQ", b"GGUF", 99, 0, 0), "version 99"),
        (HEADER, "cut short"),
        (HEADER + struct.pack("<Q", 2**60), "string of"),
        (HEADER + struct.pack("<Q1sI", 1, b"k", 77), "unknown type 77"),
        (HEADER + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 2**60), "array of"),
        (HEADER + struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1), "unknown type 9"),
    ],
)
def test_a_broken_file_says_how(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(BrokenHeader, match=message):
        read_metadata(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, entries: int) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, entries) + data)
    with contextlib.suppress(BrokenHeader):
        assert len(read_metadata(path)) <= entries
