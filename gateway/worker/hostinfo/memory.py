"""Reads how much memory this process may use: the machine's, or what a control group allows, whichever is less."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import psutil
import structlog

from gateway.worker.hostinfo.control_groups import own_groups
from gateway.worker.hostinfo.readings import (
    MEMORY_STEP_BYTES,
    UNKNOWN,
    Amounts,
    read_number,
    read_text,
    round_down,
    to_number,
)

log = structlog.get_logger(__name__)

NO_LIMIT_BYTES: Final = 2**60
"""The least value of a limit that means no limit. Version 1 of cgroups expresses that by the largest number of whole
pages."""

_LIMIT_FILES: Final = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""The files with limits. Above `memory.high` a group is not killed but slowed down until nothing moves, so there is no
room for a model either."""
_USAGE_FILES: Final = ("memory.current", "memory.usage_in_bytes")
_CACHE_FIELDS: Final = ("total_inactive_file", "inactive_file")
"""The fields of the file cache. The first is that of version 1, in which the second one excludes the groups below."""


class MachineMemory(Protocol):
    """The part of `psutil.virtual_memory()` that is needed, in bytes."""

    @property
    def total(self) -> int:
        """The machine's main memory, in bytes."""

    @property
    def available(self) -> int:
        """The memory that processes can take without swapping, in bytes."""


def read_memory(root: Path = Path("/"), machine_memory: Callable[[], MachineMemory] = psutil.virtual_memory) -> Amounts:
    """Returns the total and the free memory. `root` is the folder of the machine's files, "/" except in tests."""
    rooms = [_read_machine(machine_memory), *_read_groups(root)]
    totals = [room.total_bytes for room in rooms if room.total_bytes is not None]
    frees = [room.free_bytes for room in rooms if room.free_bytes is not None]
    return Amounts(
        total_bytes=min(totals, default=None),
        free_bytes=round_down(min(frees), MEMORY_STEP_BYTES) if frees else None,
    )


def _read_machine(machine_memory: Callable[[], MachineMemory]) -> Amounts:
    try:
        memory = machine_memory()
    except Exception as error:  # noqa: BLE001 - whatever psutil makes of a strange /proc/meminfo
        log.debug("worker.memory_unknown", error=repr(error))
        return UNKNOWN
    return Amounts(memory.total, memory.available)


def _read_groups(root: Path) -> Iterator[Amounts]:
    """Yields what each group with a limit allows."""
    for folder in own_groups("memory", root):
        limit = min(_numbers(folder, _LIMIT_FILES), default=NO_LIMIT_BYTES)
        if limit < NO_LIMIT_BYTES:
            yield Amounts(limit, limit - _used(folder))


def _used(folder: Path) -> int:
    """Returns the used memory without the file cache that the kernel frees first: a group that has read a model is not
    full (the working set, as kubelet counts it). Returns 0 if it is unknown."""
    usage = max(_numbers(folder, _USAGE_FILES), default=0)
    return max(0, usage - _cached(read_text(folder / "memory.stat")))


def _cached(statistics: str) -> int:
    fields = dict(line.split(maxsplit=1) for line in statistics.splitlines() if len(line.split(maxsplit=1)) == 2)
    amounts = (to_number(fields.get(name, "")) for name in _CACHE_FIELDS)
    return next((amount for amount in amounts if amount is not None), 0)


def _numbers(folder: Path, names: tuple[str, ...]) -> list[int]:
    return [number for name in names if (number := read_number(folder / name)) is not None]
