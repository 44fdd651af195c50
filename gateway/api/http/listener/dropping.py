"""Throws the rests of refused bodies away, at a pace that all connections of a listener share.

Without a limit, those who send such bodies would take the processor from the requests that are answered.
"""

from typing import Final

import trio

from gateway.domain.pacing import TokenBucket

DROPPED_BYTES_PER_SECOND: Final = 96 * 2**20
BURST_BYTES: Final = 2**20


def open_drop_pace() -> TokenBucket:
    """Returns the pace at which the connections of one listener throw away the rests of refused bodies."""
    return TokenBucket(DROPPED_BYTES_PER_SECOND, burst=BURST_BYTES)


class Dropping:
    """Counts the bytes that one connection throws away."""

    __slots__ = ("_pace", "pause_seconds")

    def __init__(self, pace: TokenBucket) -> None:
        """`pace` belongs to all connections of a listener."""
        self._pace = pace
        self.pause_seconds = 0.0
        """How long the connection has to wait before it reads more."""

    def record(self, size_bytes: int) -> None:
        """Notes that so much was thrown away."""
        self.pause_seconds = self._pace.take(size_bytes, trio.current_time())

    async def wait_turn(self) -> None:
        """Waits until the connection may read more. This is before the read, so that nobody who waits holds data."""
        if self.pause_seconds:
            await trio.sleep(self.pause_seconds)
            self.pause_seconds = 0.0
