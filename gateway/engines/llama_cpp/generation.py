"""One generation: the bridge between a thread that is inside llama.cpp and the event loop that sends its text."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Any, Final

from gateway.engines.llama_cpp.chunks import Chunk
from gateway.engines.llama_cpp.slots import Slots

Sink = Callable[[Mapping[str, Any]], bool]
"""Takes one raw chunk on llama.cpp's calling thread. Returns True to end the generation."""

BUFFERED_CHUNKS_MAX: Final = 1024
"""The number of chunks that wait for a slow client before the generation's thread waits. llama.cpp has no backpressure:
what it decodes while the thread waits is kept inside it, limited by the context."""


class RunningGeneration:
    """A running generation. It takes a slot when it is made (or raises `CallError`: full), and frees it when llama.cpp
    has returned.

    `run` blocks inside llama.cpp, passes each raw chunk to its sink, and stops soon after the sink has returned True.
    The owner of a generation must `cancel` it in any case; after its end that does nothing.
    """

    def __init__(self, slots: Slots, run: Callable[[Sink], None], read: Callable[[Mapping[str, Any]], Chunk]) -> None:
        self._loop = asyncio.get_running_loop()
        self._read = read
        self._arrived = asyncio.Event()
        self._changed = Condition()
        """The condition that guards the next four attributes, which both threads use."""
        self._chunks: deque[Chunk] = deque()
        self._announced = False
        self._cancelled = False
        self._failure: BaseException | None = None
        self._call = slots.start(self._run, run)
        self._call.add_done_callback(lambda _: self._arrived.set())

    async def next_chunks(self) -> list[Chunk]:
        """Waits for the chunks since the last call, at least one. An empty list means that the generation has ended and
        its slot is free.

        Raises the error of the generation, after the chunks that came before it.
        """
        while not (chunks := self._take()):
            if self._call.done():
                self._call.result()
                return []
            await self._arrived.wait()
            self._arrived.clear()
        return chunks

    def cancel(self) -> None:
        """Makes llama.cpp stop at its next chunk or prompt batch. Does not wait for it."""
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
        """Takes a raw chunk. llama.cpp swallows exceptions of its callback, so this keeps them, to be raised after
        llama.cpp has returned."""
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
            # One wake-up serves all chunks that come until the loop runs.
            self._loop.call_soon_threadsafe(self._arrived.set)
        return False
