"""`gateway estimate`: the table, the JSON, and how a file that can't be read is told."""

import json
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.cli import main
from gateway.gguf.cache import LoadSettings
from gateway.gguf.estimate import estimate
from gateway.gguf.files import read_model
from tests.fakes.gguf_models import Shape, write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "m.gguf", Shape(layers=2, embedding=256, feed_forward=512, vocabulary=1000, kv_heads=2))
    return tmp_path / "m.gguf"


def test_a_table_for_people(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(model), "--context", "1024", "--parallel", "2", "--gpu-layers", "1"]) == 0
    text = capsys.readouterr().out
    total = estimate(read_model(model), LoadSettings(1024, 2)).total_bytes / 2**20
    assert f"total without a GPU       {total:.1f} MiB" in text
    assert "cache of 2 x 1024 tokens" in text
    assert "GPU, with 1 of 3 layers" in text


def test_bytes_for_programs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = estimate(read_model(model))
    assert (found["total_bytes"], found["vram_bytes"]) == (expected.total_bytes, expected.vram_bytes)


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "No such file or directory"), (b"no model", "not a GGUF file"), (b"GGUF\3\0\0\0", "is cut short")],
)
def test_a_broken_file_is_one_line(
    data: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.gguf"
    if data is not None:
        path.write_bytes(data)
    assert main(["estimate", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("options", [["--context", "0"], ["--parallel", "-1"], ["--gpu-layers", "-2"]])
def test_numbers_that_can_not_be_are_bad_usage(
    options: list[str], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(model), *options]) == 2
    assert options[0] in capsys.readouterr().err
