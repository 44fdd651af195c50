"""The beginning of a file that is being fetched. It is on disk, so that a later download continues where it ends.

Beside `NAME.part` lies `NAME.note`, which records how the server named the bytes. The part is locked while it is
written, and the kernel frees the lock with the process. Everything here blocks.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final, Self

import trio

from gateway.private_files import try_lock
from gateway.worker.artifacts.http_answer import Asked, strong

PART_SUFFIX = ".part"
STATE_SUFFIX = ".note"


class PartialFile:
    """A part. `try_open` makes it. Two threads must not use it at a time."""

    def __init__(self, target: Path, descriptor: int) -> None:
        self._target = target
        self._path = part_of(target)
        self._state_path = state_file_of(target)
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.etag, self.total = _read_state(self._state_path)
        self._digest = hashlib.sha256() if self.size == 0 else None
        """The hash of all bytes that are here, or None if it is not known without reading them."""

    @classmethod
    def try_open(cls, target: Path) -> Self | None:
        """Opens and locks the part of the file that will be `target`. Returns None if another process writes it."""
        while True:
            descriptor = try_lock(part_of(target), flags=os.O_APPEND | os.O_NOFOLLOW, mode=0o644)
            if descriptor is None:
                return None
            if _is_still_there(descriptor, part_of(target)):
                return cls(target, descriptor)
            os.close(descriptor)  # It was finished or removed between the two calls.

    def asked(self, *, has_digest: bool) -> Asked:
        """Returns what the next request has to know of the part. A part that is longer than the whole file is emptied
        first."""
        if self.total is not None and self.size > self.total:
            self.begin(None, None)
        return Asked(self.size, self.etag, self.total, has_digest)

    def begin(self, etag: str | None, total: int | None) -> None:
        """Empties the part, for bytes that the server names this way. It empties the part before it writes the note,
        because a note about no bytes does no harm."""
        os.ftruncate(self._descriptor, 0)
        self.size, self._digest = 0, hashlib.sha256()
        self.etag, self.total = etag, total
        _write_state(self._state_path, etag, total)

    def append(self, data: bytes) -> None:
        """Adds data. Raises `OSError`; then nothing, or a part of `data`, has been added."""
        rest = memoryview(data)
        while rest:
            written = os.write(self._descriptor, rest)
            if self._digest is not None:
                self._digest.update(rest[:written])
            self.size += written
            rest = rest[written:]

    @property
    def sha256(self) -> str | None:
        """SHA-256 (hex) of the whole part. Returns None if it was not all written by this object."""
        return self._digest.hexdigest() if self._digest is not None else None

    @property
    def path(self) -> Path:
        """The path of the part itself, `NAME.part`."""
        return self._path

    def promote(self) -> None:
        """Makes the complete part the file itself."""
        os.fsync(self._descriptor)
        self._path.replace(self._target)
        self._state_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file and releases its lock. What was written stays for the next download."""
        os.close(self._descriptor)


def part_of(target: Path) -> Path:
    """Returns the path of the part of `target`, `NAME.part`."""
    return target.with_name(target.name + PART_SUFFIX)


def state_file_of(target: Path) -> Path:
    """Returns the path of the note beside the part of `target`, `NAME.note`."""
    return target.with_name(target.name + STATE_SUFFIX)


def remove_part(part: Path) -> bool:
    """Removes a part. Returns False if another process writes it."""
    target = part.with_name(part.name.removesuffix(PART_SUFFIX))
    held = PartialFile.try_open(target)
    if held is None:
        return False
    try:
        part.unlink(missing_ok=True)
        state_file_of(target).unlink(missing_ok=True)
    finally:
        held.close()
    return True


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _read_state(path: Path) -> tuple[str | None, int | None]:
    try:
        state: Any = json.loads(path.read_text())
        etag, total = state["etag"], state["total"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    return strong(etag) if isinstance(etag, str) else None, total if isinstance(total, int) else None


def _write_state(path: Path, etag: str | None, total: int | None) -> None:
    made = path.with_name(path.name + ".new")  # No other process does, because this one holds the part.
    made.write_text(json.dumps({"etag": etag, "total": total}))
    made.replace(path)


CHUNK_BYTES: Final = 1024 * 1024


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file. It runs in a thread of `trio.to_thread`, and every chunk is a cancellation
    checkpoint (L6)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            trio.from_thread.check_cancelled()
    return digest.hexdigest()
