import hashlib
import sys
import tomllib
from pathlib import Path
from typing import Literal

import pytest
import trio

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.composition.tiny_model import write_tiny_model
from gateway.domain.ids import ModelName
from gateway.domain.model_spec import ModelSpec
from gateway.engines.llama_cpp import tiny_model
from gateway.worker.artifacts import store as artifacts
from gateway.worker.artifacts.partial_file import file_sha256
from gateway.worker.artifacts.reference import ArtifactError
from gateway.worker.artifacts.store import NO_ARTIFACT, Artifact, ArtifactStore

ROOT = Path(__file__).parents[4]


def spec(artifact: str, sha256: str | None = None, source: Literal["file", "api"] = "file") -> ModelSpec:
    return ModelSpec(ModelName("m"), "llama-cpp", artifact, sha256=sha256, source=source)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"weights")
    return path


async def test_no_artifact_needs_no_file(tmp_path: Path) -> None:
    assert await ArtifactStore(tmp_path / "missing").fetch(spec("")) == NO_ARTIFACT


async def test_a_file_is_found_relative_to_models_dir_or_anywhere(tmp_path: Path, weights: Path) -> None:
    found = Artifact(weights, 7)
    assert await ArtifactStore(tmp_path).fetch(spec("file:weights.gguf")) == found
    assert await ArtifactStore(tmp_path / "elsewhere").fetch(spec(f"file:{weights}")) == found


async def test_l23_what_is_no_file_is_named(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(ArtifactError, match=f"{tmp_path}/nowhere does not exist"):
        await store.fetch(spec("file:nowhere"))
    with pytest.raises(ArtifactError, match=f"{tmp_path} is not a regular file"):
        await store.fetch(spec("file:."))


async def test_a_model_set_through_the_api_stays_in_models_dir(tmp_path: Path, weights: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "link.gguf").symlink_to(weights)
    for name in (str(weights), "../weights.gguf", "link.gguf"):
        with pytest.raises(ArtifactError, match="not in the models folder"):
            await ArtifactStore(models).fetch(spec(f"file:{name}", source="api"))


async def test_the_hash_is_verified(tmp_path: Path, weights: Path) -> None:
    right = hashlib.sha256(b"weights").hexdigest()
    assert (await ArtifactStore(tmp_path).fetch(spec("file:weights.gguf", right.upper()))).path == weights
    with pytest.raises(ArtifactError, match=f"has sha256 {right}, expected {'0' * 64}"):
        await ArtifactStore(tmp_path).fetch(spec("file:weights.gguf", "0" * 64))


async def test_l6_hashing_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**31)
    with trio.move_on_after(0.05) as scope:
        await trio.to_thread.run_sync(file_sha256, large)
    assert scope.cancelled_caught


async def test_builtin_tiny_is_made_once(tmp_path: Path) -> None:
    written: list[Path] = []

    def write(path: Path) -> None:
        written.append(path)
        tiny_model.write_tiny_model(path)

    store = ArtifactStore(tmp_path, write_tiny_model=write)
    made: list[Artifact] = []

    async def fetch() -> None:
        made.append(await store.fetch(spec("builtin:tiny")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        nursery.start_soon(fetch)
    assert made[0] == made[1] == Artifact(tmp_path / "builtin" / "tiny-1.gguf", made[0].size_bytes)
    assert made[0].size_bytes > 100_000
    assert len(written) == 1
    assert list((tmp_path / "builtin").iterdir()) == [made[0].path]


async def test_builtin_demo_is_used_where_it_lies(tmp_path: Path) -> None:
    artifact = await ArtifactStore(tmp_path / "models").fetch(spec("builtin:demo"))
    assert artifact.path == ROOT / "gateway/engines/llama_cpp/models/demo.gguf"
    assert artifact.path.read_bytes()[:4] == b"GGUF"
    assert artifact.size_bytes <= 4_000_000


async def test_l23_an_installation_without_the_demo_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "_SHIPPED", {"demo": "engines/nowhere.gguf"})
    with pytest.raises(ArtifactError, match=r"builtin:demo is missing from this installation \(.*/nowhere\.gguf\)"):
        await ArtifactStore(tmp_path).fetch(spec("builtin:demo"))


def test_the_package_brings_every_model_that_it_ships() -> None:
    """An installed package has only what package-data names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["gateway"]
    for file in artifacts._SHIPPED.values():
        assert any((ROOT / "gateway" / file) in (ROOT / "gateway").glob(pattern) for pattern in patterns), file


async def test_builtin_tiny_without_its_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gateway.engines.llama_cpp.tiny_model", None)
    with pytest.raises(ArtifactError, match="needs the llama extra"):
        await ArtifactStore(tmp_path, write_tiny_model=write_tiny_model).fetch(spec("builtin:tiny"))


@pytest.mark.parametrize("artifact", ["hf://org/model", "http://host/model.gguf", "weights.gguf", "ftp://host/m"])
async def test_other_sources_are_refused_by_name(tmp_path: Path, artifact: str) -> None:
    with pytest.raises(ArtifactError, match=artifact):
        await ArtifactStore(tmp_path).fetch(spec(artifact))


async def test_an_unknown_builtin_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="unknown artifact builtin:huge; there is demo, tiny"):
        await ArtifactStore(tmp_path).fetch(spec("builtin:huge"))
