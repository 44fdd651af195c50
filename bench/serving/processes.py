"""Cores, CPU time and memory of processes."""

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psutil

CORE_VARIABLE: Final = "BENCH_CORE"
"""Names the core to which upstream and load generator move themselves, whoever has started them."""
BACKEND_ARGUMENT: Final = "--addr"
"""Tells a gateway's backends from its other child processes."""
SCHEDULER_CLOCK: Final = 2


@functools.cache
def allowed_cores() -> list[int]:
    """Returns the cores that the bench had at its start, before it moved itself to one of them."""
    return sorted(os.sched_getaffinity(0))


def cores() -> tuple[int, int]:
    """Returns the core of the server that is measured, and that of load and upstream; one and the same if there is only
    one."""
    allowed = allowed_cores()
    return allowed[0], allowed[min(1, len(allowed) - 1)]


def pin_this_process() -> None:
    """Moves this process to the core that the environment names, if any."""
    if core := os.environ.get(CORE_VARIABLE):
        os.sched_setaffinity(0, {int(core)})


@contextmanager
def started_on(*cores: int) -> Iterator[None]:
    """Processes that are started within this context run on those cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_clock(pid: int) -> int:
    """Returns the clock of a process's CPU time, as clock_getcpuclockid(3) does."""
    return (~pid << 3) | SCHEDULER_CLOCK


class ServerProcess:
    """A server with all its child processes but the backends that it has started."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def cpu_seconds(self) -> float:
        """Returns the scheduler's time of all threads, ended ones included."""
        return sum(time.clock_gettime(cpu_clock(each.pid)) for each in self._all())

    def resident_bytes(self) -> int:
        """Returns the resident memory. Pages that several of the processes share count in each."""
        return sum(each.memory_info().rss for each in self._all())

    def _all(self) -> list[psutil.Process]:
        children = self._process.children(recursive=True)
        return [self._process, *(each for each in children if BACKEND_ARGUMENT not in each.cmdline())]
