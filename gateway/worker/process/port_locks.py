"""Locks on port numbers, shared by all workers that could take each other's ports.

On Linux a lock is a name in the abstract namespace of Unix sockets. Like a port, it exists once in each network
namespace, whoever binds it and whatever folder for temporary files each worker has (systemd's PrivateTmp, TMPDIR). The
kernel frees it with the process, however that ends. On other systems, and if a folder is given, it is a locked file.
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
"""The name of a lock. The NUL makes it abstract (unix(7))."""

Release: TypeAlias = Callable[[], None]
TryLock: TypeAlias = Callable[[int], Release | None]
"""Takes a port's lock. The lock is held until the result is called. Returns None if another worker has it. Raises
`OSError`."""


def machine_locks() -> TryLock:
    """Returns the locks that all workers in this network namespace share.

    Raises `OSError` if they need a folder that belongs to another user.
    """
    return try_name if sys.platform == "linux" else folder_locks(_shared_folder())


def try_name(port: int) -> Release | None:
    """Locks the port by its name in the abstract namespace (unix(7)).

    Returns None if somebody else has it. Raises `OSError`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:  # The processes that are started do not inherit it.
        try:
            lock.bind(NAME.format(port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise
        return partial(os.close, lock.detach())


def folder_locks(folder: Path) -> TryLock:
    """Returns locks on files `PORT.lock` in the folder. The files stay for ever, because removing one would race with
    other lockers."""

    def try_file(port: int) -> Release | None:
        """Locks the port's file. Returns None if another worker has the lock."""
        lock = try_lock(folder / f"{port}.lock")
        return None if lock is None else partial(os.close, lock)

    return try_file


def _shared_folder() -> Path:
    """Returns the folder that all workers of this user share, whatever TMPDIR says."""
    folder = Path(f"/tmp/gateway-ports-{os.getuid()}")  # noqa: S108 - checked below
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid():
        raise OSError(f"the port lock folder {folder} belongs to somebody else")
    return folder
