"""Relays several streams as the choices of one: each part is written as it comes, with the index of its choice."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from gateway.api.http.event_stream import event
from gateway.api.http.exchange import Exchange, Headers
from gateway.api.openai.choices.at_once import call_each
from gateway.api.openai.chunks import ChunkEncoder, CountingChunks
from gateway.api.openai.tools import check_call
from gateway.domain.inference import Completion, Delta, Generation
from gateway.domain.routability import Candidate
from gateway.routing.router import RoutedStream


class ChoiceStreams:
    """The streams of one request. The first part of any of them begins the response."""

    def __init__(
        self,
        exchange: Exchange,
        open_stream: Callable[[Generation], AbstractAsyncContextManager[RoutedStream]],
        headers_of: Callable[[Candidate], Headers],
    ) -> None:
        """`headers_of` is called once, with the first replica that answers."""
        self._exchange = exchange
        self._open_stream = open_stream
        self._headers_of = headers_of
        self._writing = trio.Lock()
        self._has_begun = False

    async def relay(
        self, generations: Sequence[Generation], encoders: Sequence[ChunkEncoder | CountingChunks]
    ) -> list[Completion]:
        """Relays all streams to their ends, and returns how each ended. Raises `GatewayError`."""
        return await call_each(self._relay_one, list(zip(generations, encoders, strict=True)))

    async def _relay_one(self, choice: tuple[Generation, ChunkEncoder | CountingChunks]) -> Completion:
        generation, encoder = choice
        async with self._open_stream(generation) as stream:
            await self._begin(stream.candidate)
            frames = [event(chunk) for chunk in encoder.opening()]
            while True:
                batch = await stream.receive_batch()
                frames += [event(encoder.part(item)) for item in batch if has_content(item)]
                last = batch[-1]
                if isinstance(last, Completion):
                    break
                await self._write(frames)
                frames = []
            check_call(generation, last)
            await self._write([*frames, event(encoder.finish(last))])
            return last

    async def _begin(self, candidate: Candidate) -> None:
        async with self._writing:
            if not self._has_begun:
                self._has_begun = True
                await self._exchange.start_event_stream(self._headers_of(candidate))

    async def _write(self, frames: Sequence[bytes]) -> None:
        if frames:
            async with self._writing:
                await self._exchange.send_part(b"".join(frames))
                self._exchange.record_silence(trio.current_time())


def has_content(item: Delta | Completion) -> bool:
    """Returns whether the item has content. A completion has at most the rest of a text; its tool calls came in the
    parts before."""
    return bool(item.text or item.reasoning or item.logprobs or (isinstance(item, Delta) and item.tool_calls))
