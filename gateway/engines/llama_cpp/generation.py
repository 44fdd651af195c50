"""One generation, between a thread that is inside llama.cpp and the event loop that sends its text away."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Any, Final

from gateway.engines.llama_cpp.chunks import Chunk
from gateway.engines.llama_cpp.slots import Slots

Sink = Callable[[Mapping[str, Any]], bool]
"""Takes one raw chunk, on llama.cpp's calling thread; True ends the generation."""

BUFFERED_CHUNKS_MAX: Final = 1024
"""Chunks that wait for a slow client before its thread does. llama.cpp itself knows no backpressure: what it decodes
while the thread waits piles up inside it, bounded by the context."""


class RunningGeneration:
    """Takes a slot when it is made (or raises `CallError`: full) and gives it back when llama.cpp has returned.

    `run` blocks inside llama.cpp, hands each raw chunk to its sink, and stops soon after the sink said True.
    Whoever made a generation must `cancel` it, whatever happened: after the end that does nothing.
    """

    def __init__(self, slots: Slots, run: Callable[[Sink], None], read: Callable[[Mapping[str, Any]], Chunk]) -> None:
        self._loop = asyncio.get_running_loop()
        self._read = read
        self._arrived = asyncio.Event()
        self._changed = Condition()
        """Guards the four below, which both threads use."""
        self._chunks: deque[Chunk] = deque()
        self._announced = False
        self._cancelled = False
        self._failure: BaseException | None = None
        self._call = slots.start(self._run, run)
        self._call.add_done_callback(lambda _: self._arrived.set())

    async def next_chunks(self) -> list[Chunk]:
        """The chunks that came since the last time, at least one; none: it has ended and its slot is free.

        Raises what the generation failed with, after the chunks that came before.
        """
        while not (chunks := self._take()):
            if self._call.done():
                self._call.result()
                return []
            await self._arrived.wait()
            self._arrived.clear()
        return chunks

    def cancel(self) -> None:
        """Make llama.cpp stop at its next chunk or prompt batch. Does not wait for it."""
        with self._changed:
            self._cancelled = True
            self._changed.notify()

    def _take(self) -> list[Chunk]:
        with self._changed:
            chunks = list(self._chunks)
            self._chunks.clear()
            self._announced = False
            self._changed.notify()
        return chunks

    def _run(self, run: Callable[[Sink], None]) -> None:
        run(self._on_raw)
        if self._failure is not None:
            raise self._failure

    def _on_raw(self, raw: Mapping[str, Any]) -> bool:
        """llama.cpp swallows what its callback raises, so it is kept and raised after llama.cpp has returned."""
        try:
            return self._put(self._read(raw))
        except BaseException as failure:  # noqa: BLE001 - `_run` raises it again
            self._failure = failure
            return True

    def _put(self, chunk: Chunk) -> bool:
        with self._changed:
            while len(self._chunks) >= BUFFERED_CHUNKS_MAX and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                return True
            self._chunks.append(chunk)
            announce, self._announced = not self._announced, True
        if announce:
            # One wake-up for all the chunks that come until the loop gets round to it.
            self._loop.call_soon_threadsafe(self._arrived.set)
        return False
