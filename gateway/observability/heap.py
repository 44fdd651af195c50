"""How a process keeps its memory: large blocks are given back at once, and garbage collection stays short."""

import ctypes
import gc
from typing import Final

MMAP_THRESHOLD_OPTION: Final = -3
"""The number of the option `M_MMAP_THRESHOLD` in `<malloc.h>`."""
LARGE_BLOCK_BYTES: Final = 512 * 1024
COLLECTION_THRESHOLDS: Final = (10_000, 20, 50)
"""How many new objects cause a collection of the youngest generation, and how many collections of one generation cause
one of the next. The youngest is then checked in less than a millisecond."""


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


def freeze_startup_objects() -> None:
    """Exempts all present objects from garbage collection, and has new ones checked less often.

    To be called once, when a program is ready to serve. Without it, each full collection walks over everything that
    was imported and configured, about 100,000 objects. That takes tens of milliseconds, in which no task of the process
    runs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTION_THRESHOLDS)
