"""What a backend has said and nobody has read yet: bounded by its size, so that a short answer always fits whole.

The writing end belongs to an asyncio task, the reading end to a Trio task, both in one thread. A backend can say its
last word while its client reads nothing; only a long answer has to wait for its reader (gRPC's flow control).
"""

import asyncio
from collections import deque
from typing import Final

import trio

from gateway.domain.inference import Completion, Delta

UNREAD_BYTES_MAX: Final = 128 * 1024
"""Beyond that the backend has to wait."""
DELTA_BYTES: Final = 32
"""What a piece counts besides its text: counts and framing, about as on the wire."""


class ReaderLeft(Exception):
    """Nobody is going to read the rest."""


class UnreadAnswer:
    """One answer. `put_aio` is for the writer, `receive` and `receive_nowait` for the reader."""

    def __init__(self, bytes_max: int = UNREAD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._items: deque[Delta | Completion] = deque()
        self._bytes = 0
        self._changed = trio.Event()
        self._room = asyncio.Event()
        self.has_begun = False
        """There was at least one piece."""
        self._has_ended = False
        self._has_reader = True

    async def put_aio(self, item: Delta) -> None:
        """Waits while too much is unread. Raises `ReaderLeft`."""
        while self._bytes >= self._bytes_max and self._has_reader:
            self._room.clear()
            await self._room.wait()
        if not self._has_reader:
            raise ReaderLeft
        self.has_begun = True
        self._put(item)

    def end(self, last: Completion | None) -> None:
        """Nothing comes any more after `last`, which always has room. None: the answer breaks off here."""
        if last is not None:
            self._put(last)
        self._has_ended = True
        self._changed.set()

    def leave(self) -> None:
        """The reader is gone."""
        self._has_reader = False
        self._room.set()

    async def receive(self) -> Delta | Completion:
        """Raises `trio.EndOfChannel` behind the last item."""
        if self._items or self._has_ended:
            await trio.lowlevel.checkpoint()
        while not self._items and not self._has_ended:
            self._changed = trio.Event()
            await self._changed.wait()
        return self.receive_nowait()

    def receive_nowait(self) -> Delta | Completion:
        """Raises `trio.WouldBlock` if the next item has not come yet, else as `receive`."""
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
    """About what it takes on the wire, in bytes."""
    calls = sum(len(call.name) + len(call.arguments) for call in item.tool_calls)
    return DELTA_BYTES + len(item.text) + len(item.reasoning) + calls
