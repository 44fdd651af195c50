"""Turns a model's artifact into a file on this machine, complete and verified before any process starts (L23)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

import trio

from gateway.domain.model_spec import ModelSpec
from gateway.private_files import write_whole
from gateway.worker.artifacts.cache import Cache, cache_name
from gateway.worker.artifacts.download import OnProgress
from gateway.worker.artifacts.partial_file import file_sha256
from gateway.worker.artifacts.reference import (
    ArtifactError,
    Builtin,
    Hub,
    LocalFile,
    Reference,
    WebFile,
    parse_reference,
)
from gateway.worker.artifacts.source import GatewaySource, Source

WriteModel = Callable[[Path], None]
"""Writes a model's file at the path. Blocks. Raises `ArtifactError`, `OSError`."""

CACHE_FOLDER: Final = "cache"
DEFAULT_HUB: Final = Hub()
TINY: Final = "tiny"
TINY_FORMAT: Final = 1
"""The format of the built-in tiny model's file. It has to be raised when another file is written than before; old
files are then left unused."""
TINY_FILE: Final = f"tiny-{TINY_FORMAT}.gguf"


@dataclass(frozen=True)
class Artifact:
    """A model's file on this machine, ready to be loaded."""

    path: Path | None
    """The absolute path, or None if the backend needs no file."""
    size_bytes: int


def _ignore_progress(_done: int, _total: int | None) -> None:
    pass


NO_ARTIFACT: Final = Artifact(None, 0)


def no_tiny_model(_path: Path) -> None:
    """Raises `ArtifactError`. It is the `WriteModel` of a worker that was given none."""
    raise ArtifactError("builtin:tiny can't be made here")


class ArtifactStore:
    """The artifacts of one worker, below its `models_dir`.

    `gateway` is the source of `file:` artifacts that are not on this machine. None means that this worker runs in its
    gateway. `plain_loopback` allows `http://` to this machine itself. `write_tiny_model` makes the file of
    `builtin:tiny`.
    """

    def __init__(
        self,
        models_dir: Path,
        *,
        cache_bytes_max: int | None = None,
        hub: Hub = DEFAULT_HUB,
        gateway: GatewaySource | None = None,
        plain_loopback: bool = False,
        write_tiny_model: WriteModel = no_tiny_model,
    ) -> None:
        self._models_dir = models_dir
        self._hub = hub
        self._gateway = gateway
        self._plain_loopback = plain_loopback
        self._write_tiny_model = write_tiny_model
        self._making = trio.Lock()
        self.cache = Cache(models_dir / CACHE_FOLDER, cache_bytes_max)

    def keeping(self, spec: ModelSpec) -> AbstractContextManager[None]:
        """Keeps what `fetch` brings for this model during this context."""
        try:
            reference = self._parse(spec)
        except ArtifactError:
            return nullcontext()  # `fetch` will raise this error.
        name = _cache_name(reference, spec.sha256)
        return self.cache.keeping(name) if name is not None else nullcontext()

    async def fetch(self, spec: ModelSpec, on_progress: OnProgress = _ignore_progress) -> Artifact:
        """Returns the model's file, and fetches it if necessary. Raises `ArtifactError`, `OSError`."""
        match self._parse(spec):
            case None:
                await trio.lowlevel.checkpoint()
                return NO_ARTIFACT
            case Builtin(name):
                path = await self._find_builtin(name)
            case LocalFile(path):
                found = await trio.to_thread.run_sync(self._find_file, spec, path)
                if found is None:
                    return await self._fetch_from_gateway(spec, path, on_progress)
                path = found
            case WebFile() as file:
                return await self._fetch_from_web(spec, file, on_progress)
        return await trio.to_thread.run_sync(_verified, path, spec.sha256)

    def _parse(self, spec: ModelSpec) -> Reference | None:
        if not spec.artifact:
            return None
        return parse_reference(spec.artifact, self._hub, plain_loopback=self._plain_loopback)

    def _find_file(self, spec: ModelSpec, name: Path) -> Path | None:
        """Returns the file of a `file:` reference, or None if it is not here but may be at the gateway."""
        path = (self._models_dir / name).resolve()
        # The configuration file may name any path, the API only files that the operator has put under models_dir.
        if spec.source == "api" and not path.is_relative_to(self._models_dir.resolve()):
            raise ArtifactError(f"artifact file {path} is not in the models folder")
        if not path.exists():
            if self._gateway is not None and spec.sha256 is not None:
                return None
            hint = "; with sha256 set, this worker fetches it from its gateway" if self._gateway is not None else ""
            raise ArtifactError(f"artifact file {path} does not exist{hint}")
        if not path.is_file():
            raise ArtifactError(f"artifact {path} is not a regular file")
        return path

    async def _fetch_from_gateway(self, spec: ModelSpec, name: Path, on_progress: OnProgress) -> Artifact:
        assert self._gateway is not None  # noqa: S101 - `_find_file` has asked
        assert spec.sha256 is not None  # noqa: S101
        locate = partial(self._gateway.source, spec.sha256)
        return await self._fetched(_gateway_name(name, spec.sha256), locate, spec, on_progress)

    async def _fetch_from_web(self, spec: ModelSpec, file: WebFile, on_progress: OnProgress) -> Artifact:
        token = {"authorization": f"Bearer {self._hub.token}"} if file.is_from_hub and self._hub.token else {}
        source = Source(
            file.url,
            MappingProxyType(token),
            is_trusted=file.is_from_hub,
            public_only=spec.source == "api",
            plain_loopback=self._plain_loopback,
        )
        return await self._fetched(cache_name(file.url, spec.sha256), lambda: source, spec, on_progress)

    async def _fetched(
        self, name: str, locate: Callable[[], Source], spec: ModelSpec, on_progress: OnProgress
    ) -> Artifact:
        path = await self.cache.fetch(name, locate, spec.sha256, on_progress)
        return Artifact(path, (await trio.to_thread.run_sync(path.stat)).st_size)

    async def _find_builtin(self, name: str) -> Path:
        if name in _SHIPPED:
            return await trio.to_thread.run_sync(_shipped_file, name)
        if name == TINY:
            return await self._make_tiny()
        known = ", ".join(sorted((*_SHIPPED, TINY)))
        raise ArtifactError(f"unknown artifact builtin:{name}; there is {known}")

    async def _make_tiny(self) -> Path:
        path = (self._models_dir / "builtin" / TINY_FILE).resolve()
        async with self._making:  # replicas that come up together make it once
            if not path.exists():
                await trio.to_thread.run_sync(_write_model, path, self._write_tiny_model, abandon_on_cancel=True)
        return path


_SHIPPED: Final[Mapping[str, str]] = MappingProxyType({"demo": "engines/llama_cpp/models/demo.gguf"})
"""The file of the package by name. It is used where it is, because every machine with a worker has the package."""


def _shipped_path(name: str) -> Path:
    return Path(str(resources.files("gateway").joinpath(_SHIPPED[name])))


def _shipped_file(name: str) -> Path:
    path = _shipped_path(name)
    if not path.is_file():
        raise ArtifactError(f"builtin:{name} is missing from this installation ({path}): install gateway again")
    return path


def local_file(spec: ModelSpec, models_dir: Path) -> Path | None:
    """Returns the artifact's file if it is on this machine already. It neither makes nor fetches a file. It may
    block."""
    kind, _, name = spec.artifact.partition(":")
    if kind == "builtin" and name in _SHIPPED:
        path = _shipped_path(name)
    elif kind == "builtin" and name == TINY:
        path = models_dir / "builtin" / TINY_FILE
    elif kind == "file":
        path = (models_dir / name).resolve()
        if spec.source == "api" and not path.is_relative_to(models_dir.resolve()):
            return None
    else:
        return None
    return path if path.is_file() else None


def _write_model(path: Path, write: WriteModel) -> None:
    """Writes the file in one step: no reader sees half of it, also if two workers share the folder or one is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)


def _cache_name(reference: Reference | None, sha256: str | None) -> str | None:
    """Returns the name of the file in the cache, or None if it is not for the cache."""
    match reference:
        case WebFile(url):
            return cache_name(url, sha256)
        case LocalFile(path) if sha256 is not None:
            return _gateway_name(path, sha256)
        case _:
            return None


def _gateway_name(path: Path, sha256: str) -> str:
    return cache_name(f"gateway:{path.name}", sha256)


def _verified(path: Path, sha256: str | None) -> Artifact:
    if sha256 is not None and (actual := file_sha256(path)) != sha256.lower():
        raise ArtifactError(f"artifact {path} has sha256 {actual}, expected {sha256}")
    return Artifact(path, path.stat().st_size)
