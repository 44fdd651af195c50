"""Turns a model's artifact into a file of this machine, complete and verified before any process starts (L23)."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

import trio

from gateway.domain.model_spec import ModelSpec

CHUNK_BYTES: Final = 1024 * 1024
TINY_FORMAT: Final = 1
"""To be raised when `write_tiny_model` writes something else than before: files of the old format are left unused."""


class ArtifactError(Exception):
    """The artifact can't be used; the message names it and, where there is one, the remedy."""


@dataclass(frozen=True)
class Artifact:
    path: Path | None
    """Absolute. None: the backend needs no file."""
    size_bytes: int


NO_ARTIFACT: Final = Artifact(None, 0)


class ArtifactStore:
    """The artifacts of one worker, below its `models_dir`."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._making = trio.Lock()

    async def fetch(self, spec: ModelSpec) -> Artifact:
        """Raises `ArtifactError`."""
        if not spec.artifact:
            await trio.lowlevel.checkpoint()
            return NO_ARTIFACT
        kind, _, name = spec.artifact.partition(":")
        match kind:
            case "file":
                path = await trio.to_thread.run_sync(self._find_file, spec, Path(name))
            case "builtin":
                path = await self._find_builtin(name)
            case _:
                raise ArtifactError(f"artifact {spec.artifact!r} is not supported yet: use file:PATH or builtin:NAME")
        return await trio.to_thread.run_sync(_verified, path, spec.sha256)

    def _find_file(self, spec: ModelSpec, name: Path) -> Path:
        path = (self._models_dir / name).resolve()
        # The configuration file may name any path, the API only what the operator has put under models_dir.
        if spec.source == "api" and not path.is_relative_to(self._models_dir.resolve()):
            raise ArtifactError(f"artifact file {path} is not in the models folder")
        if not path.exists():
            raise ArtifactError(f"artifact file {path} does not exist")
        if not path.is_file():
            raise ArtifactError(f"artifact {path} is not a regular file")
        return path

    async def _find_builtin(self, name: str) -> Path:
        if name in _SHIPPED:
            return await trio.to_thread.run_sync(_shipped_file, name)
        if name in _MADE:
            return await self._make_builtin(*_MADE[name])
        known = ", ".join(sorted((*_SHIPPED, *_MADE)))
        raise ArtifactError(f"unknown artifact builtin:{name}; there is {known}")

    async def _make_builtin(self, file_name: str, write: Callable[[Path], None]) -> Path:
        path = (self._models_dir / "builtin" / file_name).resolve()
        async with self._making:  # replicas that come up together make it once
            if not path.exists():
                await trio.to_thread.run_sync(_write_whole, path, write, abandon_on_cancel=True)
        return path


_SHIPPED: Final[Mapping[str, str]] = MappingProxyType({"demo": "engines/llama_cpp/models/demo.gguf"})
"""Name -> file of the package. It is used where it lies: every machine with a worker has the package."""


def _shipped_file(name: str) -> Path:
    path = Path(str(resources.files("gateway").joinpath(_SHIPPED[name])))
    if not path.is_file():
        raise ArtifactError(f"builtin:{name} is missing from this installation ({path}): install gateway again")
    return path


def _write_tiny(path: Path) -> None:
    try:
        from gateway.engines.llama_cpp.tiny_model import write_tiny_model  # here, since it needs an extra
    except ImportError as error:
        raise ArtifactError("builtin:tiny needs the llama extra: pip install 'gateway[llama]'") from error
    write_tiny_model(path)


_MADE: Final[Mapping[str, tuple[str, Callable[[Path], None]]]] = MappingProxyType(
    {"tiny": (f"tiny-{TINY_FORMAT}.gguf", _write_tiny)}
)
"""Name -> file name, and what writes the file."""


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Nobody ever sees half a file, also when two workers share the folder or this one is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
        made = Path(folder) / path.name
        write(made)
        made.replace(path)


def _verified(path: Path, sha256: str | None) -> Artifact:
    if sha256 is not None and (actual := _hash(path)) != sha256.lower():
        raise ArtifactError(f"artifact {path} has sha256 {actual}, expected {sha256}")
    return Artifact(path, path.stat().st_size)


def _hash(path: Path) -> str:
    """Runs in a thread; every chunk is a cancellation checkpoint (L6)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            trio.from_thread.check_cancelled()
    return digest.hexdigest()
