"""What a gateway can tell of a model from its file: of the shipped one, of files here, and of nothing else."""

from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.composition.services import estimate_requirement
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from gateway.gguf.estimate import estimate_other
from tests.contract.samples import spec


async def test_p1_the_shipped_model_is_estimated(tmp_path: Path) -> None:
    found = await estimate_requirement(tmp_path, spec(artifact="builtin:demo"))
    assert found is not None
    assert (found.ram_bytes or 0) > 2**20
    assert (found.disk_bytes, found.measured) == (None, False)


async def test_p1_a_file_takes_more_with_more_context(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m.gguf")
    few, many = [
        await estimate_requirement(tmp_path, spec(artifact="file:m.gguf", context_size=size)) for size in (256, 8192)
    ]
    assert few is not None
    assert many is not None
    assert (many.ram_bytes or 0) > (few.ram_bytes or 0) > 0


async def test_another_format_is_estimated_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"x" * 1000)
    model = spec(artifact="file:m.bin")
    assert await estimate_requirement(tmp_path, model) == estimate_other(model, 1000)


@pytest.mark.parametrize(
    "artifact", ["file:none.gguf", "builtin:none", "builtin:tiny", "https://host/m.gguf", "", "file:broken.gguf"]
)
async def test_what_is_not_here_or_broken_is_not_known(tmp_path: Path, artifact: str) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert await estimate_requirement(tmp_path, spec(artifact=artifact)) is None


async def test_what_the_api_names_is_looked_for_in_the_models_folder_only(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    models_dir.mkdir()
    (tmp_path / "m.bin").write_bytes(b"x")
    (models_dir / "link.bin").symlink_to(tmp_path / "m.bin")
    for artifact in ("file:../m.bin", f"file:{tmp_path}/m.bin", "file:link.bin"):
        assert await estimate_requirement(models_dir, spec(artifact=artifact)) is not None
        assert await estimate_requirement(models_dir, spec(artifact=artifact, source="api")) is None
