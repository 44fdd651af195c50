"""Measures how much of the machine's memory and of its GPUs' memory a ready replica holds."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from gateway.worker.hostinfo.nvidia_driver import read_process_memory
from gateway.worker.process.memory_watch import group_members, group_memory_bytes

MEASURE_SECONDS_MAX: Final = 5.0
"""The time limit of a measurement: a driver that hangs must not keep a loaded model from serving."""


@dataclass(frozen=True)
class ResourceUsage:
    """The main memory and the GPU memory that a replica's processes hold, in bytes."""

    ram_bytes: int | None = None
    vram_bytes: int | None = None
    """The GPU memory in bytes, or None if it is not known, as with a driver that does not say which process holds how
    much."""


UNKNOWN_USAGE: Final = ResourceUsage()

MeasureUsage: TypeAlias = Callable[[int], Awaitable[ResourceUsage]]
"""Measures the process group that this process leads."""


async def measure_usage(pid: int) -> ResourceUsage:
    """Measures the main and the GPU memory that the process group led by `pid` holds.

    `pid` must not have been reaped. Returns `UNKNOWN_USAGE` after `MEASURE_SECONDS_MAX`.
    """
    with trio.move_on_after(MEASURE_SECONDS_MAX):
        return await trio.to_thread.run_sync(_measure, pid, abandon_on_cancel=True)
    return UNKNOWN_USAGE


def _measure(pid: int) -> ResourceUsage:
    return ResourceUsage(group_memory_bytes(pid), read_process_memory(group_members(pid)))
