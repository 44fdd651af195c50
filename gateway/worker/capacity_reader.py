"""Reads the capacity of the machine, at a slow and steady pace, because each reported change becomes a write to the
registry."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from gateway.domain.resources import UNKNOWN, Capacity
from gateway.worker.hostinfo import read_capacity

READ_SECONDS: Final = 10.0
"""The time between two readings. A GPU whose driver has to wake up for it takes seconds to answer."""
NOTICEABLE_SHARE: Final = 1 / 64
"""The share of its total by which a free amount has to change before the change is reported."""


class CapacityReader:
    """Calling it returns the machine's capacity, at most `READ_SECONDS` old."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._read_at = float("-inf")
        self._known = UNKNOWN
        self._one_read = trio.CapacityLimiter(1)

    async def __call__(self) -> Capacity:
        """Returns the capacity. It waits for a reading that hangs (a network disk, a driver), but such a reading never
        delays a shutdown."""
        now = trio.current_time()
        if now - self._read_at < READ_SECONDS:
            await trio.lowlevel.checkpoint()
            return self._known
        read = partial(read_capacity, self._models_dir)
        fresh = await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._one_read)
        self._read_at = now
        self._known = steadied(self._known, fresh)
        return self._known


def steadied(before: Capacity, now: Capacity) -> Capacity:
    """Returns `now`, but with the free amounts of `before` where the difference is too small to report. Pure."""
    steady = replace(
        now,
        ram_free_bytes=_steady(before.ram_free_bytes, now.ram_free_bytes, now.ram_bytes),
        disk_free_bytes=_steady(before.disk_free_bytes, now.disk_free_bytes, now.disk_bytes),
    )
    if [gpu.uuid for gpu in before.gpus] != [gpu.uuid for gpu in now.gpus]:
        return steady
    gpus = (
        replace(new, vram_free_bytes=_steady(old.vram_free_bytes, new.vram_free_bytes, new.vram_bytes))
        for old, new in zip(before.gpus, now.gpus, strict=True)
    )
    return replace(steady, gpus=tuple(gpus))


def _steady(before: int | None, now: int | None, total: int | None) -> int | None:
    if before is None or now is None or total is None or abs(now - before) >= total * NOTICEABLE_SHARE:
        return now
    return before
