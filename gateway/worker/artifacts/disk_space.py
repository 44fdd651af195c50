"""Decides which cached files are removed for a new one, and whether it fits at all (P1). Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.domain.resources import disk_headroom_bytes, format_bytes


@dataclass(frozen=True)
class CachedFile:
    """One file of the cache, with its size in bytes and the time of its last use."""

    path: Path
    size_bytes: int
    used_at: float
    is_free: bool
    """Whether no replica needs the file now."""


@dataclass(frozen=True)
class Disk:
    """The size and the free space of the cache's file system, in bytes."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class DiskPlan:
    """The cached files to remove for a new one, or the reason why it does not fit."""

    remove: tuple[CachedFile, ...]
    """The files to remove, the least recently used first."""
    shortage: str | None
    """The reason why it does not fit even then, or None if it fits."""


def plan_disk_space(
    need_bytes: int, cached: Sequence[CachedFile], disk: Disk, *, promised_bytes: int, cache_bytes_max: int | None
) -> DiskPlan:
    """Plans room for `need_bytes` more, besides the `promised_bytes` that other downloads have still to write."""
    coming = need_bytes + promised_bytes
    headroom = disk_headroom_bytes(disk.total_bytes)
    over_disk = coming + headroom - disk.free_bytes
    in_cache = sum(each.size_bytes for each in cached)
    over_cache = 0 if cache_bytes_max is None else coming + in_cache - cache_bytes_max
    removed: list[CachedFile] = []
    for each in sorted((each for each in cached if each.is_free), key=lambda each: each.used_at):
        if max(over_disk, over_cache) <= 0:
            break
        removed.append(each)
        over_disk -= each.size_bytes
        over_cache -= each.size_bytes
    remove = tuple(removed)
    if over_cache > 0:
        size, missing = format_bytes(cache_bytes_max or 0), format_bytes(over_cache, round_up=True)
        return DiskPlan((), f"worker.cache_size, {size}, is too small by {missing}")
    if over_disk > 0:
        free, kept = format_bytes(disk.free_bytes), format_bytes(headroom, round_up=True)
        return DiskPlan((), f"{free} are free, of which {kept} have to stay so")
    return DiskPlan(remove, None)


def describe_shortage(need_bytes: int, shortage: str, *, promised_bytes: int) -> str:
    """Says in one line, for an error, how much does not fit and why."""
    others = (
        f" beside the {format_bytes(promised_bytes, round_up=True)} that other downloads still need"
        if promised_bytes
        else ""
    )
    return f"{format_bytes(need_bytes, round_up=True)} more do not fit here{others}: {shortage}"
