"""Reads NVIDIA's GPUs where there is a driver for them.

`nvidia`, with the library that it needs, takes 3 MB. It is imported when it is first used on a machine with the driver.
"""

import ctypes
from collections.abc import Collection
from typing import Final

import structlog

from gateway.domain.resources import Gpu
from gateway.worker.hostinfo.readings import Amounts

log = structlog.get_logger(__name__)

LIBRARY: Final = "libnvidia-ml.so.1"
"""The file name of the driver's management library (NVML)."""


def read_gpus(machine_memory: Amounts, library: str = LIBRARY) -> tuple[Gpu, ...]:
    """Returns the GPUs, none without a driver: see `nvidia.read_gpus`. Call it in a thread."""
    if not _has(library):
        return ()
    from gateway.worker.hostinfo import nvidia  # here, for its memory

    return nvidia.read_gpus(machine_memory)


def read_process_memory(pids: Collection[int], library: str = LIBRARY) -> int | None:
    """Returns what these processes hold of all GPUs, or None if no driver says it: see `nvidia.read_process_memory`.
    Call it in a thread."""
    if not _has(library):
        return None
    from gateway.worker.hostinfo import nvidia  # here, for its memory

    return nvidia.read_process_memory(pids)


def _has(library: str) -> bool:
    """Returns whether the library can be loaded. It is asked anew each time, because a driver may be installed at any
    time."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        log.debug("worker.no_nvidia_driver", reason=str(error))
        return False
    return True
