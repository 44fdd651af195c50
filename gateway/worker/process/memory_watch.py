"""How much memory a replica's processes use, and the sentence that says it is too much."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import psutil
import trio

from gateway.domain.resources import format_bytes

LOOK_SECONDS: Final = 2.0
"""Between two looks at one replica."""


@dataclass(frozen=True)
class _Resident:
    own_bytes: int
    shared_bytes: int
    """Pages of files (also of those that are mapped, as weights are) and of shared memory."""


def group_memory_bytes(pid: int) -> int | None:
    """Memory of the machine that the process group led by `pid` holds; None: nothing of the group runs any more.

    The sum of what each process has for itself, plus the largest amount of shared pages of any one process: those of
    one backend map the same weights, so that adding these up would report a multiple, and end a healthy replica. The
    error is to the low side, except that memory which forked processes still have in common counts for each of them.
    Proportional sizes would be exact, but take long for large models, and would divide by the neighbours that have
    the same file open: a replica's number would rise when its neighbour ends.

    Blocks for some milliseconds: one cheap call for each process of the machine. `pid` must not have been reaped, else
    the number may mean another group.
    """
    members = list(_resident_of_group(pid))
    own_bytes = sum(each.own_bytes for each in members)
    # A living process holds at least a page: all that is left of 0 bytes are zombies.
    return own_bytes + max((each.shared_bytes for each in members), default=0) or None


def group_members(group: int) -> tuple[int, ...]:
    """The processes of that group."""
    return tuple(pid for pid in psutil.pids() if _group_of(pid) == group)


def _resident_of_group(group: int) -> Iterator[_Resident]:
    for pid in group_members(group):
        try:
            memory = psutil.Process(pid).memory_info()
        except psutil.Error:  # it has just ended
            continue
        shared_bytes = getattr(memory, "shared", 0)  # Linux only
        yield _Resident(memory.rss - shared_bytes, shared_bytes)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def describe_excess(used_bytes: int, limit_bytes: int) -> str:
    """The evidence that is reported when a replica is ended for its memory."""
    used, limit = format_bytes(used_bytes, round_up=True), format_bytes(limit_bytes)
    return f"the backend uses {used} of memory, more than watchdog.memory_limit, {limit}"


async def wait_memory_above(pid: int, limit_bytes: int) -> int:
    """Returns what the process group of `pid` uses as soon as that is more than `limit_bytes`."""
    while True:
        used = await trio.to_thread.run_sync(group_memory_bytes, pid)
        if used is not None and used > limit_bytes:
            return used
        await trio.sleep(LOOK_SECONDS)
