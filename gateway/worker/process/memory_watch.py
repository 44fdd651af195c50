"""Measures the memory of a replica's processes, and makes the sentence that says it is too much."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import psutil
import trio

from gateway.domain.resources import format_bytes

LOOK_SECONDS: Final = 2.0
"""The time between two looks at one replica."""


@dataclass(frozen=True)
class _Resident:
    own_bytes: int
    shared_bytes: int
    """The bytes in pages of files (also of mapped ones, such as weights) and of shared memory."""


def group_memory_bytes(pid: int) -> int | None:
    """Returns the main memory of the process group that `pid` leads, or None if no process of the group runs any more.

    It is the sum of each process's private memory, plus the largest amount of shared pages of any one process. The
    processes of one backend map the same weights, so adding the shared pages would count them several times and end a
    healthy replica. The result errs on the low side, except that memory which forked processes still share counts for
    each of them. Proportional sizes would be exact. But they take long for large models, and divide by the neighbours
    that have the same file open: a replica's number would rise when its neighbour ends.

    It blocks for some milliseconds: one cheap call for each process of the machine. `pid` must not have been reaped,
    because its number may then belong to another group.
    """
    members = list(_resident_of_group(pid))
    own_bytes = sum(each.own_bytes for each in members)
    # A living process holds at least a page, so a group with 0 bytes consists of zombies.
    return own_bytes + max((each.shared_bytes for each in members), default=0) or None


def group_members(group: int) -> tuple[int, ...]:
    """Returns the processes of the group."""
    return tuple(pid for pid in psutil.pids() if _group_of(pid) == group)


def _resident_of_group(group: int) -> Iterator[_Resident]:
    for pid in group_members(group):
        try:
            memory = psutil.Process(pid).memory_info()
        except psutil.Error:  # The process has just ended.
            continue
        shared_bytes = getattr(memory, "shared", 0)  # Linux only
        yield _Resident(memory.rss - shared_bytes, shared_bytes)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def describe_excess(used_bytes: int, limit_bytes: int) -> str:
    """Returns the evidence that is reported when a replica is ended for its memory."""
    used, limit = format_bytes(used_bytes, round_up=True), format_bytes(limit_bytes)
    return f"the backend uses {used} of memory, more than watchdog.memory_limit, {limit}"


async def wait_memory_above(pid: int, limit_bytes: int) -> int:
    """Waits until the process group of `pid` uses more than `limit_bytes`, and returns what it uses."""
    while True:
        used = await trio.to_thread.run_sync(group_memory_bytes, pid)
        if used is not None and used > limit_bytes:
            return used
        await trio.sleep(LOOK_SECONDS)
