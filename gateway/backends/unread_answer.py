"""The unread part of an answer. It is limited by its size, so that a short answer always fits as a whole.

The writing end belongs to an asyncio task and the reading end to a Trio task, both in one thread. A backend can finish
while its client reads nothing. Only a long answer has to wait for its reader (gRPC's flow control).
"""

import asyncio
from collections import deque
from typing import Final

import trio

from gateway.domain.inference import Completion, Delta

UNREAD_BYTES_MAX: Final = 128 * 1024
"""The size beyond which the backend has to wait."""
DELTA_BYTES: Final = 32
"""The size of a part besides its text: counts and framing, about as on the wire."""


class ReaderLeft(Exception):
    """Nobody will read the rest."""


class UnreadAnswer:
    """One answer. `put_aio` is for the writer, `receive` and `receive_nowait` for the reader."""

    def __init__(self, bytes_max: int = UNREAD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._items: deque[Delta | Completion] = deque()
        self._bytes = 0
        self._changed = trio.Event()
        self._room = asyncio.Event()
        self.has_begun = False
        """Whether there was at least one part."""
        self._has_ended = False
        self._has_reader = True

    async def put_aio(self, item: Delta) -> None:
        """Adds a part. Waits while too much is unread. Raises `ReaderLeft`."""
        while self._bytes >= self._bytes_max and self._has_reader:
            self._room.clear()
            await self._room.wait()
        if not self._has_reader:
            raise ReaderLeft
        self.has_begun = True
        self._put(item)

    def end(self, last: Completion | None) -> None:
        """Ends the answer with `last`, which always has room. None means that the answer breaks off here."""
        if last is not None:
            self._put(last)
        self._has_ended = True
        self._changed.set()

    def leave(self) -> None:
        """Records that the reader is gone."""
        self._has_reader = False
        self._room.set()

    async def receive(self) -> Delta | Completion:
        """Waits for the next item. Raises `trio.EndOfChannel` after the last one."""
        if self._items or self._has_ended:
            await trio.lowlevel.checkpoint()
        while not self._items and not self._has_ended:
            self._changed = trio.Event()
            await self._changed.wait()
        return self.receive_nowait()

    def receive_nowait(self) -> Delta | Completion:
        """Returns the next item. Raises `trio.WouldBlock` if it has not come yet, and otherwise the errors of
        `receive`."""
        if not self._items:
            raise trio.EndOfChannel if self._has_ended else trio.WouldBlock
        item = self._items.popleft()
        self._bytes -= _size_of(item)
        if self._bytes < self._bytes_max:
            self._room.set()
        return item

    def _put(self, item: Delta | Completion) -> None:
        self._items.append(item)
        self._bytes += _size_of(item)
        self._changed.set()


def _size_of(item: Delta | Completion) -> int:
    """Returns the approximate size on the wire, in bytes."""
    calls = sum(len(call.name) + len(call.arguments) for call in item.tool_calls)
    return DELTA_BYTES + len(item.text) + len(item.reasoning) + calls
