"""The limit of open files of this process: raised at its start, and kept in mind by the listener."""

import resource
from contextlib import suppress
from typing import Final

RESERVED_FILES: Final = 256
"""The open files that are no connections of clients: the registry, backends, artifacts, logs, workers."""
RESERVED_SHARE: Final = 4
"""The divisor that gives the part for these if the limit is low."""


def raise_limit() -> None:
    """Raises the soft limit of open files to the hard one. Each connection is a file, and the usual soft limit is for
    programs that use `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # Some systems have a lower limit than the hard one says.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_within_limit(wanted: int) -> int:
    """Returns how many connections of clients may be open at a time: `wanted`, or less if the limit of open files does
    not allow so many."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, connections_of(soft))


def connections_of(files_max: int) -> int:
    """Returns how many of so many open files may be connections of clients. Pure."""
    return max(1, files_max - min(RESERVED_FILES, files_max // RESERVED_SHARE))
