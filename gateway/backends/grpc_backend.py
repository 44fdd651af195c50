"""Calls backend processes over gRPC. Each call is one whole asyncio function behind the bridge (pitfalls 14, 21)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import structlog
import trio
from grpclib import GRPCError
from grpclib.client import Stream
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import StreamClosedError

from gateway.backends import metadata as names
from gateway.backends import translate
from gateway.backends.call_errors import meaning
from gateway.backends.channel_pool import ChannelPool
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.backends.protocol import AnswerStream, OnEnd, RouteError, Target
from gateway.backends.send_limiter import SendLimiter
from gateway.backends.unread_answer import ReaderLeft, UnreadAnswer
from gateway.bridge import Bridge, CancelledByAsyncio
from gateway.domain.errors import BackendFailed, GatewayError
from gateway.domain.ids import RequestId
from gateway.domain.inference import Completion, Delta, Embedding, EmbeddingInput, FinishReason, Generation

log = structlog.get_logger(__name__)

M = TypeVar("M")
R = TypeVar("R")

LARGE_CHARACTERS: Final = 1024 * 1024
"""The size of a prompt from which on the copies that sending makes of it count."""


class GrpcBackends:
    """`Backends` over real connections."""

    def __init__(self, bridge: Bridge, channels: ChannelPool) -> None:
        self._bridge = bridge
        self._channels = channels
        self._turns = SendLimiter()

    @asynccontextmanager
    async def open_stream(
        self, target: Target, generation: Generation, request_id: RequestId, on_end: OnEnd
    ) -> AsyncIterator[AnswerStream]:
        """Calls PredictStream and yields its answer as it comes. Leaving the context ends the call."""
        stream = _GrpcAnswerStream(on_end)
        request = _generation_request(generation, request_id)
        reader = translate.ReplyReader(generation.sampling.max_tokens, target.context_size)
        with closing(stream):
            async with self._bridge.open_task(self._relay_aio, target, request, reader, stream):
                yield stream

    async def generate(self, target: Target, generation: Generation, request_id: RequestId) -> Completion:
        """Calls Predict, and returns the whole answer. Raises `RouteError` or `GatewayError`."""
        request = _generation_request(generation, request_id)
        reader = translate.ReplyReader(generation.sampling.max_tokens, target.context_size)
        call = _Call("Predict")
        reply = await self._unary(target, request, call, pb.Reply)
        delta = reader.delta(reply)
        return reader.completion(call.trailers.get(names.FINISH_REASON), text=delta.text, reasoning=delta.reasoning)

    async def embed(self, target: Target, item: EmbeddingInput, request_id: RequestId) -> Embedding:
        """Calls Embedding, and returns the vector. Raises `RouteError` or `GatewayError`."""
        request = _Request(partial(translate.embedding_options, item, request_id), len(item.text) >= LARGE_CHARACTERS)
        return translate.embedding(await self._unary(target, request, _Call("Embedding"), pb.EmbeddingResult))

    async def _unary(self, target: Target, request: "_Request", call: "_Call", reply_type: type[R]) -> R:
        async def answer(stream: Stream[pb.PredictOptions, R]) -> R:
            reply = await stream.recv_message()
            await stream.recv_trailing_metadata()
            if not isinstance(reply, reply_type):
                raise BackendFailed(f"The backend answered {call.method} without a message.")
            return reply

        try:
            return await self._bridge.run(self._call_aio, target, request, call, answer)
        except CancelledByAsyncio as error:
            raise call.meaning_of(StreamTerminatedError(str(error))) from error

    async def _relay_aio(
        self,
        target: Target,
        request: "_Request",
        reader: translate.ReplyReader,
        answer: "_GrpcAnswerStream",
    ) -> None:
        call = _Call("PredictStream")

        async def relay(stream: Stream[pb.PredictOptions, pb.Reply]) -> str | None:
            async for reply in stream:
                await answer.deltas.put_aio(reader.delta(reply))
                if reader.is_endless:
                    log.warning("backend.endless_answer", replica_id=target.replica_id, model=target.model)
                    await _cancel_aio(stream)
                    return FinishReason.LENGTH
            await stream.recv_trailing_metadata()
            return call.trailers.get(names.FINISH_REASON)

        try:
            finish_reason = await self._call_aio(target, request, call, relay)
            answer.complete(reader.completion(finish_reason))
        except ReaderLeft:
            pass  # The reader does not need the end of the call.
        except (RouteError, GatewayError) as error:
            answer.fail(error)
        finally:
            answer.deltas.end(None)

    async def _call_aio(
        self,
        target: Target,
        request: "_Request",
        call: "_Call",
        answer: Callable[[Stream[pb.PredictOptions, M]], Awaitable[R]],
    ) -> R:
        """Runs one call from opening to trailers. Raises `RouteError` and `GatewayError` only."""
        try:
            method = getattr(BackendStub(self._channels.get(target.replica_id, target.address)), call.method)
            async with method.open(metadata=names.bearer(target.token)) as stream:
                call.stream = stream
                await self._send_aio(stream, request)
                call.sent = True
                return await answer(stream)
        except (GRPCError, StreamTerminatedError, OSError) as error:
            raise call.meaning_of(error) from error

    async def _send_aio(self, stream: Stream[pb.PredictOptions, Any], request: "_Request") -> None:
        if not request.is_large:
            await stream.send_message(request.make(), end=True)
            return
        async with self._turns.open_aio():
            await stream.send_message(request.make(), end=True)


async def _cancel_aio(stream: Stream[Any, Any]) -> None:
    """Cancels the call at the backend. If the call has ended meanwhile, there is nothing to cancel."""
    try:
        await stream.cancel()
    except StreamClosedError:
        pass


@dataclass(frozen=True)
class _Request:
    make: Callable[[], pb.PredictOptions] = field(repr=False)
    """Makes the message. It is called when the request is sent, and the result is not kept, because it is a copy of all
    that the client has sent."""
    is_large: bool


def _generation_request(generation: Generation, request_id: RequestId) -> _Request:
    make = partial(translate.predict_options, generation, request_id)
    return _Request(make, translate.prompt_characters(generation) >= LARGE_CHARACTERS)


@dataclass
class _Call:
    """How far a call got. The meaning of its failure depends on that."""

    method: str
    stream: Stream[Any, Any] | None = field(default=None, repr=False)
    sent: bool = False

    @property
    def trailers(self) -> dict[str, str]:
        found = self.stream.trailing_metadata if self.stream is not None else None
        return {name: value for name, value in (found or {}).items() if isinstance(value, str)}

    def meaning_of(self, error: Exception) -> RouteError | GatewayError:
        return meaning(error, self.trailers, sent=self.sent)


class _GrpcAnswerStream:
    """A relayed generation: its reading end, and the way in which the relay reports the end of the call."""

    def __init__(self, on_end: OnEnd) -> None:
        self.deltas = UnreadAnswer()
        self._on_end = on_end
        self._error: RouteError | GatewayError | None = None

    def close(self) -> None:
        """Tells the relay that nobody reads the rest."""
        self.deltas.leave()

    def complete(self, completion: Completion) -> None:
        """Ends the answer. All of it and its trailers have arrived, so the backend is done, whatever is still
        unread."""
        self.deltas.end(completion)
        self._on_end(None)

    def fail(self, error: RouteError | GatewayError) -> None:
        """Ends the answer with an error. Before the first part, the reader decides whether the request goes to another
        replica."""
        self._error = error
        if self.deltas.has_begun:
            self._on_end(error)

    async def receive(self) -> Delta | Completion:
        try:
            return await self.deltas.receive()
        except trio.EndOfChannel:
            self._raise_end()

    def receive_nowait(self) -> Delta | Completion:
        try:
            return self.deltas.receive_nowait()
        except trio.EndOfChannel:
            self._raise_end()

    def _raise_end(self) -> NoReturn:
        """Raises the reason why the parts ended without a completion: a failed call, or a cancel of the asyncio
        side."""
        if self._error is None:
            raise meaning(StreamTerminatedError("the call was cancelled on the asyncio side"), {}, sent=True)
        raise self._error
