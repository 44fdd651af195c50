"""The folder of fetched files. Each file is fetched once, however many replicas need it, and unused files make room for
new ones.

Names derive from what is fetched and never from a server's answer, so nothing is written outside the folder.
"""

import hashlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

import structlog
import trio

from gateway.worker.artifacts.disk_space import CachedFile, Disk, describe_shortage, plan_disk_space
from gateway.worker.artifacts.download import Download, HttpClient, OnProgress
from gateway.worker.artifacts.partial_file import PART_SUFFIX, STATE_SUFFIX, PartialFile, remove_part
from gateway.worker.artifacts.reference import ArtifactError
from gateway.worker.artifacts.source import Source

log = structlog.get_logger(__name__)

SHARED_FETCH_POLL_SECONDS: Final = 1.0
"""The time between two checks whether a file has arrived that another replica, or another worker with the same folder,
fetches."""
PART_SECONDS_MAX: Final = 24 * 3600.0
"""The age of an abandoned part. It is removed when the next download begins."""
_ENDING: Final = re.compile(r"\.[A-Za-z0-9]{1,12}")


def cache_name(url: str, sha256: str | None) -> str:
    """Returns the file name for what `url` gives, if that must have the hash `sha256`. Backends may go by the ending of
    the name."""
    digest = hashlib.sha256(f"{url}\n{(sha256 or '').lower()}".encode()).hexdigest()
    ending = PurePosixPath(unquote(urlsplit(url).path)).suffix
    kept = ending if _ENDING.fullmatch(ending) and ending not in {PART_SUFFIX, STATE_SUFFIX} else ""
    return digest[:40] + kept


@dataclass
class _Flight:
    """A download that at least one replica wants."""

    listeners: list[OnProgress] = field(default_factory=list)
    part: PartialFile | None = None
    """The part of the file while it is written."""
    reserved_bytes: int = 0
    """The size up to which the part may grow."""

    @property
    def missing_bytes(self) -> int:
        """The number of bytes that are reserved and not yet visible on the disk. Data that waits in memory to be
        written belongs to them."""
        return max(0, self.reserved_bytes - self.part.size) if self.part is not None else 0

    def record(self, done: int, total: int | None) -> None:
        """Tells every replica that waits for this file how much of it is here."""
        for tell in self.listeners:
            tell(done, total)


@dataclass
class Cache:
    """The folder of fetched files. The least recently used ones make room for new ones."""

    folder: Path
    bytes_max: int | None = None
    http_client: HttpClient = field(default_factory=HttpClient)
    read_disk: Callable[[Path], Disk] = field(default=lambda folder: _read_disk(folder))
    _held: Counter[str] = field(default_factory=Counter, init=False)
    _flights: dict[str, _Flight] = field(default_factory=dict, init=False)

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """Keeps the file, whether it exists yet or not, from being removed during this context."""
        self._held[name] += 1
        try:
            yield
        finally:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    async def fetch(self, name: str, locate: Callable[[], Source], sha256: str | None, on_progress: OnProgress) -> Path:
        """Returns the file, complete and verified. A file that is here is not fetched again, whatever the server has
        now.

        Raises `ArtifactError`, `OSError`. A cancel keeps what has arrived for the next time.
        """
        flight = self._flights.setdefault(name, _Flight())
        flight.listeners.append(on_progress)
        try:
            with self.keeping(name):
                return await self._fetch(name, flight, locate, sha256)
        finally:
            flight.listeners.remove(on_progress)
            if not flight.listeners:
                self._flights.pop(name, None)

    async def _fetch(self, name: str, flight: _Flight, locate: Callable[[], Source], sha256: str | None) -> Path:
        target = (self.folder / name).absolute()
        part = await self._open_part(target)
        if part is None:
            return target
        flight.part = part
        try:
            download = Download(
                http_client=self.http_client,
                locate=locate,
                part=part,
                sha256=sha256,
                make_room=partial(self._make_room, name),
                on_progress=flight.record,
            )
            await download.run()
            await trio.to_thread.run_sync(part.promote)
        finally:
            part.close()
            flight.part = None
        log.info("worker.fetched", file=name, size_bytes=part.size)
        return target

    async def _open_part(self, target: Path) -> PartialFile | None:
        """Opens the part of a file, and continues an earlier one. Waits while another process fetches the file. Returns
        None if the file is there."""
        while True:
            if await trio.to_thread.run_sync(_touch, target):
                return None
            part = await trio.to_thread.run_sync(_open_part_of, target)
            if part is not None:
                return part
            await trio.sleep(SHARED_FETCH_POLL_SECONDS)

    async def _make_room(self, name: str, need_bytes: int) -> None:
        """Removes unused files until `need_bytes` more fit. Raises `ArtifactError`."""
        promised = sum(flight.missing_bytes for other, flight in self._flights.items() if other != name)
        flight = self._flights[name]
        flight.reserved_bytes = need_bytes + (
            flight.part.size if flight.part is not None else 0
        )  # This has to come before other tasks look.
        held = frozenset(self._held)
        await trio.to_thread.run_sync(self._make_room_blocking, held, need_bytes, promised)

    def _make_room_blocking(self, held: frozenset[str], need_bytes: int, promised_bytes: int) -> None:
        cached = list(_cached_files(self.folder, held))
        plan = plan_disk_space(
            need_bytes,
            cached,
            self.read_disk(self.folder),
            promised_bytes=promised_bytes,
            cache_bytes_max=self.bytes_max,
        )
        if plan.shortage is not None:
            raise ArtifactError(describe_shortage(need_bytes, plan.shortage, promised_bytes=promised_bytes))
        stale = (each for each in cached if each.is_free and _is_stale(each))
        for each in dict.fromkeys((*plan.remove, *stale)):
            _remove(each)


def _touch(path: Path) -> bool:
    """Returns whether the file is there, and if so, marks it as used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _open_part_of(target: Path) -> PartialFile | None:
    """Opens the part, or returns None if the file has to be looked for again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = PartialFile.try_open(target)
    if part is not None and target.exists():  # Another process has just finished it.
        _remove_left_over(part)
        return None
    return part


def _remove_left_over(part: PartialFile) -> None:
    part.path.unlink(missing_ok=True)
    part.close()


def _cached_files(folder: Path, held: frozenset[str]) -> Iterator[CachedFile]:
    for entry in os.scandir(folder):
        if not entry.is_file(follow_symlinks=False) or entry.name.endswith((STATE_SUFFIX, STATE_SUFFIX + ".new")):
            continue
        status = entry.stat(follow_symlinks=False)
        is_free = entry.name.removesuffix(PART_SUFFIX) not in held
        yield CachedFile(Path(entry.path), status.st_size, status.st_mtime, is_free)


def _is_stale(file: CachedFile) -> bool:
    return file.path.name.endswith(PART_SUFFIX) and time.time() - file.used_at > PART_SECONDS_MAX


def _remove(file: CachedFile) -> None:
    if not file.path.name.endswith(PART_SUFFIX):
        file.path.unlink(missing_ok=True)
    elif not remove_part(file.path):
        return
    log.info("worker.cache_removed", file=file.path.name, size_bytes=file.size_bytes)


def _read_disk(folder: Path) -> Disk:
    usage = shutil.disk_usage(folder)
    return Disk(usage.total, usage.free)
