"""The readers of backends' output within one session. Each is served at its own pace and holds up no other."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import trio

from gateway.domain.ids import ReplicaId
from gateway.domain.session import EndTail, LogChunk, TailLogs, ToWorker

CHUNKS_MAX: Final = 16
"""The number of chunks that a reader may lag behind. Beyond that, whole chunks are skipped and counted."""
END_SECONDS: Final = 1.0
"""The time for telling the worker that nobody reads any more. The worker ends the stream with the session in any
case."""


class LogStreams:
    """The log streams of one session."""

    def __init__(self, to_worker: trio.MemorySendChannel[ToWorker]) -> None:
        self._to_worker = to_worker
        self._readers: dict[int, trio.MemorySendChannel[LogChunk]] = {}
        self._skipped: dict[int, int] = {}
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def open(
        self, replica_id: ReplicaId, lines: int, *, follow: bool
    ) -> AsyncIterator[trio.MemoryReceiveChannel[LogChunk]]:
        """Yields chunks until one says that it is the last. The channel simply ends if the session ends."""
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[LogChunk](CHUNKS_MAX)
        self._readers[number] = send
        try:
            async with receive:
                await self._send(TailLogs(number, replica_id, lines, follow))
                yield receive
        finally:
            if self._readers.pop(number, None) is not None:
                self._skipped.pop(number, None)
                with trio.move_on_after(END_SECONDS, shield=True):
                    await self._send(EndTail(number))

    async def _send(self, message: TailLogs | EndTail) -> None:
        try:
            await self._to_worker.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close()

    def put_nowait(self, chunk: LogChunk) -> None:
        """Passes a chunk to its reader. A reader that lags misses the chunk, and a chunk whose reader has left is
        dropped."""
        reader = self._readers.get(chunk.tail)
        if reader is None:
            return
        skipped = self._skipped.pop(chunk.tail, 0)
        try:
            reader.send_nowait(replace(chunk, skipped=chunk.skipped + skipped))
        except trio.WouldBlock:
            self._skipped[chunk.tail] = skipped + chunk.skipped + len(chunk.lines)
        except trio.BrokenResourceError:
            return
        if chunk.ended:
            self._readers.pop(chunk.tail).close()

    def close(self) -> None:
        """Ends all log streams, because the session has ended."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
