"""Tells of a download's progress often enough to be seen and seldom enough to be written down each time."""

from collections.abc import Callable
from typing import Final

import trio

TELL_SECONDS: Final = 0.5


class DownloadProgress:
    """Call it at every chunk; it calls `tell` at most once in `TELL_SECONDS`, and at the first byte count of a file."""

    def __init__(self, tell: Callable[[int, int | None], None]) -> None:
        self._report = tell
        self._reported_at = float("-inf")

    def __call__(self, done: int, total: int | None) -> None:
        now = trio.current_time()
        if now - self._reported_at >= TELL_SECONDS:
            self._reported_at = now
            self._report(done, total)
