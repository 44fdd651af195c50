"""Has the C library give memory of large blocks back to the system as soon as it is free."""

import ctypes
from typing import Final

MMAP_THRESHOLD_OPTION: Final = -3
"""`M_MMAP_THRESHOLD` of `<malloc.h>`."""
LARGE_BLOCK_BYTES: Final = 512 * 1024


def return_large_blocks() -> None:
    """Has glibc return large blocks of memory to the system as soon as they are free.

    To be called once, at the start of a program. Does nothing where there is no glibc.

    glibc takes large blocks from the system one by one and gives each back when it is free, but it raises the size from
    which it does so with every such block, up to 32 MiB. After that a few large request bodies leave holes in the heap
    that the process keeps. Setting the size, even to a usual one, ends that.
    """
    try:
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD_OPTION, LARGE_BLOCK_BYTES)
    except (AttributeError, OSError):
        pass
