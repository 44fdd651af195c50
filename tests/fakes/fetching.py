"""A cache and a downloader over a real folder and real sockets, with a clock that jumps only when nothing comes."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
from trio.testing import MockClock

from gateway.worker.artifacts.cache import Cache
from gateway.worker.artifacts.disk_space import Disk
from gateway.worker.artifacts.source import Source
from tests.fakes.file_server import FileServer

IDLE_SECONDS: Final = 0.05
"""Of real time without any event: then what waits for a deadline gets it. More than a socket or a thread needs."""
GIB: Final = 2**30
NAME: Final = "name.gguf"


def patient_clock() -> MockClock:
    return MockClock(autojump_threshold=IDLE_SECONDS)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Fetching:
    """Fetches what `server` has into `folder`."""

    folder: Path
    server: FileServer
    headers: Mapping[str, str] = field(default_factory=dict)
    bytes_max: int | None = None
    disk: Disk = field(default_factory=lambda: Disk(1000 * GIB, 900 * GIB))
    progress: list[tuple[int, int | None]] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.cache = Cache(self.folder, self.bytes_max, read_disk=lambda _folder: self.disk)

    async def fetch(
        self, sha256: str | None = None, name: str = NAME, locate: Callable[[], Source] | None = None
    ) -> bytes:
        path = await self.cache.fetch(name, locate or self.source, sha256, self._note)
        return path.read_bytes()

    def source(self) -> Source:
        return Source(self.server.url, self.headers, is_trusted=True)

    def _note(self, done: int, total: int | None) -> None:
        self.progress.append((done, total))
        self._changed.set()
        self._changed = trio.Event()

    async def wait_progress(self, done: int) -> None:
        while not self.progress or self.progress[-1][0] < done:
            await self._changed.wait()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())
