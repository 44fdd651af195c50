"""Files that only their owner may read: registries, secrets, credentials; files that are written whole or not at all;
and file locks. Everything here blocks."""

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

OWNER_ONLY: Final = 0o600
_OTHERS: Final = 0o077


def make_private(path: Path) -> None:
    """Makes the file, empty, if there is none. An existing one is handled as in `narrow`. Raises `OSError`."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY))
    except FileExistsError:
        narrow(path)


def narrow(path: Path) -> None:
    """Removes the permissions of other users. Does nothing if there is no file.

    The log says whether that succeeded: the file may belong to another user, who has to change it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & _OTHERS:
            return
        path.chmod(mode & ~_OTHERS)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("file.open_to_others", path=str(path), error=error.strerror, remedy="chmod 600, by its owner")
        return
    log.warning("file.narrowed", path=str(path), mode=f"{mode:04o}", to=f"{mode & ~_OTHERS:04o}")


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, as `write_whole` does. Raises `OSError`."""

    def write(made: Path) -> None:
        """Writes the text to a new file of its owner."""
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "w", encoding="utf-8") as file:
            file.write(text)

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` make the file at another path, and puts it at `path` as a whole or not at all, also when another
    process does the same at the same time. Raises `OSError`, and the errors of `write`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        made = Path(folder) / path.name
        write(made)
        made.replace(path)


def try_lock(path: Path, *, flags: int = 0, mode: int = OWNER_ONLY) -> int | None:
    """Opens the file, which is made if there is none, and locks it for this process alone.

    Returns the descriptor, and closing it unlocks the file; so does the end of the process, however it ends. Processes
    that this one starts do not inherit it. Returns None if somebody else holds the lock. Raises `OSError`.
    `flags` are added to those of `open(2)`, and `mode` is for a new file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
