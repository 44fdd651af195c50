"""Calls backend processes over gRPC: requests are translated, answers are read as they arrive."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn, TypeVar

import structlog
import trio
from google.protobuf.message import DecodeError, Message
from grpclib import GRPCError
from grpclib.exceptions import StreamTerminatedError

from gateway.backends import metadata as names
from gateway.backends import text_calls, translate
from gateway.backends.call_errors import meaning
from gateway.backends.grpc.call import OutgoingCall
from gateway.backends.grpc.pool import ConnectionPool
from gateway.backends.grpc.unary_answer import UnaryAnswer
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.protocol import AnswerStream, OnEnd, RouteError, Target
from gateway.backends.send_limiter import SendLimiter
from gateway.backends.unread_answer import UnreadAnswer
from gateway.domain.errors import BackendFailed, GatewayError
from gateway.domain.ids import RequestId
from gateway.domain.inference import (
    Completion,
    Delta,
    DetokenizeInput,
    Embedding,
    EmbeddingInput,
    FinishReason,
    Generation,
    Ranking,
    RerankInput,
    TokenizeInput,
    Tokens,
)

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Message)

PATH: Final = "/backend.Backend/"
LARGE_CHARACTERS: Final = 1024 * 1024
"""The size of a prompt from which on the copies that sending makes of it count."""
FAILURES: Final = (GRPCError, StreamTerminatedError, OSError, DecodeError)
"""The ways in which a call can fail by what the other side does."""


class GrpcBackends:
    """`Backends` over real connections."""

    def __init__(self, connections: ConnectionPool) -> None:
        self._connections = connections
        self._turns = SendLimiter()

    @asynccontextmanager
    async def open_stream(
        self, target: Target, generation: Generation, request_id: RequestId, on_end: OnEnd
    ) -> AsyncIterator[AnswerStream]:
        """Calls PredictStream and yields its answer as it comes. Leaving the context ends the call."""
        stream = _GrpcAnswerStream(target, translate.ReplyReader(generation, target.context_size), on_end)
        try:
            try:
                await self._start(
                    target, "PredictStream", _generation_request(target, generation, request_id), stream.call
                )
            except FAILURES as error:
                stream.call.end(error)
            yield stream
        finally:
            stream.call.cancel()

    async def generate(self, target: Target, generation: Generation, request_id: RequestId) -> Completion:
        """Calls Predict, and returns the whole answer. Raises `RouteError` or `GatewayError`."""
        reader = translate.ReplyReader(generation, target.context_size)
        reply, trailers = await self._unary(
            target, "Predict", _generation_request(target, generation, request_id), pb.Reply
        )
        delta = reader.delta(reply)
        return reader.completion(
            trailers.get(names.FINISH_REASON),
            text=delta.text,
            reasoning=delta.reasoning,
            logprobs=delta.logprobs,
            cached=trailers.get(names.CACHED_TOKENS, ""),
        )

    async def embed(self, target: Target, item: EmbeddingInput, request_id: RequestId) -> Embedding:
        """Calls Embedding, and returns the vector. Raises `RouteError` or `GatewayError`."""
        request = _Request(partial(translate.embedding_options, item, request_id), len(item.text) >= LARGE_CHARACTERS)
        result, _ = await self._unary(target, "Embedding", request, pb.EmbeddingResult)
        return translate.embedding(result)

    async def rerank(self, target: Target, item: RerankInput, request_id: RequestId) -> Ranking:
        """Calls Rerank, and returns the best documents. Raises `RouteError` or `GatewayError`."""
        size = len(item.query) + sum(map(len, item.documents))
        request = _Request(partial(text_calls.rerank_request, item, request_id), size >= LARGE_CHARACTERS)
        result, _ = await self._unary(target, "Rerank", request, pb.RerankResult)
        return text_calls.ranking(result, item)

    async def tokenize(self, target: Target, item: TokenizeInput, request_id: RequestId) -> Tokens:
        """Calls TokenizeString, and returns the tokens. Raises `RouteError` or `GatewayError`."""
        request = _Request(partial(text_calls.tokenize_options, item, request_id), len(item.text) >= LARGE_CHARACTERS)
        result, _ = await self._unary(target, "TokenizeString", request, pb.TokenizationResponse)
        return Tokens(tuple(result.tokens), tuple(result.texts))

    async def detokenize(self, target: Target, item: DetokenizeInput, request_id: RequestId) -> str:
        """Calls Detokenize, and returns the text. Raises `RouteError` or `GatewayError`."""
        make = partial(text_calls.detokenize_request, item, request_id)
        request = _Request(make, len(item.tokens) >= LARGE_CHARACTERS)
        result, _ = await self._unary(target, "Detokenize", request, pb.DetokenizeResponse)
        return result.content

    async def _unary(
        self, target: Target, method: str, request: "_Request", reply_type: type[R]
    ) -> tuple[R, Mapping[str, str]]:
        """Returns the reply and the trailers of one call."""
        answer = UnaryAnswer()
        call = OutgoingCall(answer)
        try:
            await self._start(target, method, request, call)
            message = await answer.wait()
            if message is None:
                raise BackendFailed(f"The backend answered {method} without a message.")
            return reply_type.FromString(message), call.trailers
        except FAILURES as error:
            raise meaning(error, call.trailers, sent=call.is_sent) from error
        finally:
            call.cancel()

    async def _start(self, target: Target, method: str, request: "_Request", call: OutgoingCall) -> None:
        """Sends the request of a call. Raises `FAILURES`."""
        if not request.is_large:
            await self._send(target, method, request, call)
            return
        async with self._turns.open_turn():
            await self._send(target, method, request, call)
            await call.wait_sent()

    async def _send(self, target: Target, method: str, request: "_Request", call: OutgoingCall) -> None:
        connection = self._connections.get(target.replica_id, target.address)
        if not connection.is_ready:
            await connection.wait_ready()
        connection.start(call, PATH + method, target.token, request.make().SerializeToString())


@dataclass(frozen=True)
class _Request:
    make: Callable[[], Message] = field(repr=False)
    """Makes the message. It is called when the request is sent, and the result is not kept, because it is a copy of all
    that the client has sent."""
    is_large: bool


def _generation_request(target: Target, generation: Generation, request_id: RequestId) -> _Request:
    make = partial(translate.predict_options, generation, request_id, target.context_size)
    return _Request(make, translate.prompt_characters(generation) >= LARGE_CHARACTERS)


class _GrpcAnswerStream:
    """A streamed generation: what its connection puts in, and what its reader takes out."""

    def __init__(self, target: Target, reader: translate.ReplyReader, on_end: OnEnd) -> None:
        self.call = OutgoingCall(self)
        self._target = target
        self._reader = reader
        self._on_end = on_end
        self._unread = UnreadAnswer()
        self._error: RouteError | GatewayError | None = None

    @property
    def is_full(self) -> bool:
        """Whether the backend has to wait until something was read."""
        return self._unread.is_full

    def take(self, message: bytes) -> bool:
        """Takes the next reply. Returns False if the answer has become longer than it may be."""
        self._unread.put(self._reader.delta(pb.Reply.FromString(message)))
        if self._reader.is_after_call:
            self._complete(FinishReason.TOOL_CALLS)
            return False
        if not self._reader.is_endless:
            return True
        log.warning("backend.endless_answer", replica_id=self._target.replica_id, model=self._target.model)
        self._complete(FinishReason.LENGTH)
        return False

    def end(self, error: Exception | None) -> None:
        """Takes the end of the call."""
        if error is None:
            self._complete(self.call.trailers.get(names.FINISH_REASON))
            return
        if not isinstance(error, FAILURES):
            log.error("backend.call_failed", exc_info=error)
        self._fail(meaning(error, self.call.trailers, sent=self.call.is_sent))

    def _complete(self, finish_reason: str | None) -> None:
        """Ends the answer. All of it and its trailers have arrived, so the backend is done, whatever is still
        unread."""
        self._unread.end(self._reader.completion(finish_reason, cached=self.call.trailers.get(names.CACHED_TOKENS, "")))
        self._on_end(None)

    def _fail(self, error: RouteError | GatewayError) -> None:
        """Ends the answer with an error. Before the first part, the reader decides whether the request goes to another
        replica."""
        self._error = error
        self._unread.end(None)
        if self._unread.has_begun:
            self._on_end(error)

    async def receive(self) -> Delta | Completion:
        """Waits for the next item."""
        try:
            item = await self._unread.receive()
        except trio.EndOfChannel:
            self._raise_end()
        self.call.read_on()
        return item

    def receive_nowait(self) -> Delta | Completion:
        """Returns the next item if it has arrived."""
        try:
            item = self._unread.receive_nowait()
        except trio.EndOfChannel:
            self._raise_end()
        self.call.read_on()
        return item

    def _raise_end(self) -> NoReturn:
        """Raises why the parts ended without a completion, or the end of an answer that was read as a whole."""
        raise self._error or trio.EndOfChannel
