"""The unread part of an answer. It is limited by its size, so that a short answer always fits as a whole.

A connection's reader writes it and never waits. A backend can finish while its client reads nothing. Only a long answer
has to wait for its reader: while `is_full`, the backend gets no further flow control window.
"""

from collections import deque
from typing import Final

import trio

from gateway.concurrency import ParkingSpot
from gateway.domain.inference import Completion, Delta

UNREAD_BYTES_MAX: Final = 128 * 1024
"""The size beyond which the backend has to wait."""
DELTA_BYTES: Final = 32
"""The size of a part besides its text: counts and framing, about as on the wire."""


class UnreadAnswer:
    """One answer. `put` and `end` are for the writer, `receive` and `receive_nowait` for the reader."""

    def __init__(self, bytes_max: int = UNREAD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._items: deque[Delta | Completion] = deque()
        self._bytes = 0
        self._changed = ParkingSpot()
        self.has_begun = False
        """Whether there was at least one part."""
        self._has_ended = False

    @property
    def is_full(self) -> bool:
        """Whether so much is unread that the backend has to wait."""
        return self._bytes >= self._bytes_max

    def put(self, item: Delta) -> None:
        """Adds a part."""
        self.has_begun = True
        self._put(item)

    def end(self, last: Completion | None) -> None:
        """Ends the answer with `last`. None means that the answer breaks off here."""
        self._has_ended = True
        if last is not None:
            self._put(last)
        self._changed.wake()

    async def receive(self) -> Delta | Completion:
        """Waits for the next item. Raises `trio.EndOfChannel` after the last one."""
        if self._items or self._has_ended:
            await trio.lowlevel.checkpoint()
        while not self._items and not self._has_ended:
            await self._changed.wait()
        return self.receive_nowait()

    def receive_nowait(self) -> Delta | Completion:
        """Returns the next item. Raises `trio.WouldBlock` if it has not come yet, and otherwise the errors of
        `receive`."""
        if not self._items:
            raise trio.EndOfChannel if self._has_ended else trio.WouldBlock
        item = self._items.popleft()
        self._bytes -= _size_of(item)
        return item

    def _put(self, item: Delta | Completion) -> None:
        self._items.append(item)
        self._bytes += _size_of(item)
        self._changed.wake()


def _size_of(item: Delta | Completion) -> int:
    """Returns the approximate size on the wire, in bytes."""
    size = DELTA_BYTES + len(item.text) + len(item.reasoning)
    for call in item.tool_calls:
        size += len(call.name) + len(call.arguments)
    return size
