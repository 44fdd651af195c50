"""The bridge between llama.cpp's thread and the loop, with a stand-in for llama.cpp that only calls its sink."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.backends.metadata import REFUSED, REFUSED_FULL
from gateway.engines.llama_cpp.chunks import Chunk
from gateway.engines.llama_cpp.errors import CallError
from gateway.engines.llama_cpp.generation import BUFFERED_CHUNKS_MAX, RunningGeneration, Sink
from gateway.engines.llama_cpp.slots import Slots
from tests.fakes.plain_asyncio import run_asyncio


def read(raw: Mapping[str, Any]) -> Chunk:
    return Chunk(text=raw["text"])


def counting(total: int) -> Callable[[Sink], None]:
    """A llama.cpp that says 0, 1, 2 ... and stops when it is told to."""

    def run(sink: Sink) -> None:
        for number in range(total):
            if sink({"text": str(number)}):
                return

    return run


async def drain(generation: RunningGeneration, texts: list[str] | None = None) -> list[str]:
    texts = [] if texts is None else texts
    while chunks := await generation.next_chunks():
        texts += [chunk.text for chunk in chunks]
    return texts


def test_every_chunk_arrives_in_order_though_the_buffer_overflows() -> None:
    async def main() -> list[str]:
        return await drain(RunningGeneration(Slots(1), counting(3 * BUFFERED_CHUNKS_MAX), read))

    assert run_asyncio(main()) == [str(number) for number in range(3 * BUFFERED_CHUNKS_MAX)]


def test_a_client_that_does_not_read_stops_the_thread_and_not_its_cancelling() -> None:
    accepted = 0
    buffer_full = threading.Event()

    def run(sink: Sink) -> None:
        nonlocal accepted
        while not sink({"text": "x"}):
            accepted += 1
            if accepted == BUFFERED_CHUNKS_MAX:
                buffer_full.set()

    async def main() -> None:
        slots = Slots(1)
        generation = RunningGeneration(slots, run, read)
        await asyncio.to_thread(buffer_full.wait)
        generation.cancel()
        await slots.wait_idle()

    run_asyncio(main())
    assert accepted == BUFFERED_CHUNKS_MAX


def test_who_sees_the_end_finds_the_slot_free() -> None:
    async def main() -> None:
        slots = Slots(1)
        for _ in range(200):
            await drain(RunningGeneration(slots, counting(3), read))

    run_asyncio(main())


def test_all_slots_taken_is_a_refusal_at_once() -> None:
    async def main() -> None:
        slots = Slots(1)
        leave = threading.Event()

        def wait(_: Sink) -> None:
            leave.wait()

        first = RunningGeneration(slots, wait, read)
        with pytest.raises(CallError) as caught:
            RunningGeneration(slots, counting(1), read)
        assert caught.value.trailers == {REFUSED: REFUSED_FULL}
        leave.set()
        assert await drain(first) == []
        assert await drain(RunningGeneration(slots, counting(1), read)) == ["0"]

    run_asyncio(main())


def test_what_a_callback_raises_is_not_lost_and_comes_after_the_text_before_it() -> None:
    def fragile(raw: Mapping[str, Any]) -> Chunk:
        if raw["text"] == "2":
            raise KeyError("2")
        return read(raw)

    async def main() -> None:
        slots = Slots(1)
        generation = RunningGeneration(slots, counting(5), fragile)
        texts: list[str] = []
        with pytest.raises(KeyError, match="2"):
            await drain(generation, texts)
        assert texts == ["0", "1"]
        assert slots.has_free

    run_asyncio(main())


def test_what_llama_raises_is_raised() -> None:
    def run(sink: Sink) -> None:
        sink({"text": "a"})
        raise RuntimeError("boom")

    async def main() -> None:
        generation = RunningGeneration(Slots(1), run, read)
        with pytest.raises(RuntimeError, match="boom"):
            await drain(generation)

    run_asyncio(main())


def test_a_slot_is_taken_until_the_thread_returns_whatever_becomes_of_the_waiter() -> None:
    async def main() -> None:
        slots = Slots(1)
        leave = threading.Event()
        waiter = asyncio.ensure_future(slots.start(leave.wait))
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert not slots.has_free
        leave.set()
        await slots.wait_idle()
        assert slots.has_free

    run_asyncio(main())
