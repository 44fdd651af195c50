"""Locks on port numbers that all workers share which could take each other's ports.

On Linux a lock is a name in the abstract namespace of Unix sockets: it exists once in each network namespace, as a port
does, whoever binds it and whatever folder for temporary files systemd's PrivateTmp or TMPDIR gives each worker. The
kernel frees it with the process, however that ends. Elsewhere, and where a folder is given, it is a locked file.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from gateway.private_files import try_lock

NAME: Final = "\0gateway-port-{}"
"""The NUL makes it abstract (unix(7))."""

Release: TypeAlias = Callable[[], None]
TryLock: TypeAlias = Callable[[int], Release | None]
"""A port's lock, which is held until the result is called; None: somebody else has it. Raises `OSError`."""


def machine_locks() -> TryLock:
    """Returns the locks that all workers in this network namespace share.

    Raises `OSError` where that needs a folder which is not ours.
    """
    return try_name if sys.platform == "linux" else folder_locks(_shared_folder())


def try_name(port: int) -> Release | None:
    """Locks the port by its name in the abstract namespace (unix(7)).

    Returns None if somebody else has it. Raises `OSError`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:  # not inherited by the processes that are started
        try:
            lock.bind(NAME.format(port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise
        return partial(os.close, lock.detach())


def folder_locks(folder: Path) -> TryLock:
    """Files `PORT.lock` in the folder. They stay for ever: removing one would race with other lockers."""

    def try_file(port: int) -> Release | None:
        lock = try_lock(folder / f"{port}.lock")
        return None if lock is None else partial(os.close, lock)

    return try_file


def _shared_folder() -> Path:
    """One for all workers of this user, whatever TMPDIR says."""
    folder = Path(f"/tmp/gateway-ports-{os.getuid()}")  # noqa: S108 - checked below
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid():
        raise OSError(f"the port lock folder {folder} belongs to somebody else")
    return folder
