"""The hash of a file on disk."""

import hashlib
from pathlib import Path
from typing import Final

import trio

CHUNK_BYTES: Final = 1024 * 1024


def file_sha256(path: Path) -> str:
    """Runs in a thread of `trio.to_thread`; every chunk is a cancellation checkpoint (L6)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            trio.from_thread.check_cancelled()
    return digest.hexdigest()
