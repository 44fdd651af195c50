"""A backend.Backend service on an in-memory connection: real grpclib on both sides, no socket, any clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from grpclib.client import Channel
from grpclib.const import Cardinality, Handler
from grpclib.server import Stream
from grpclib.testing import ChannelFor

from gateway.backends.pb import backend_pb2 as pb
from gateway.bridge import Bridge

ServerStream = Stream[Any, Any]
Answer = Callable[[ServerStream, Any], Awaitable[None]]


async def _nothing(stream: ServerStream, request: Any) -> None:
    """Answers with nothing at all."""


class InMemoryBackend:
    """`answer` is called with the stream and the request of each call, whatever the method."""

    METHODS = (
        ("Health", Cardinality.UNARY_UNARY, pb.HealthMessage, pb.Reply),
        ("Free", Cardinality.UNARY_UNARY, pb.HealthMessage, pb.Result),
        ("LoadModel", Cardinality.UNARY_UNARY, pb.ModelOptions, pb.Result),
        ("Predict", Cardinality.UNARY_UNARY, pb.PredictOptions, pb.Reply),
        ("PredictStream", Cardinality.UNARY_STREAM, pb.PredictOptions, pb.Reply),
        ("Embedding", Cardinality.UNARY_UNARY, pb.PredictOptions, pb.EmbeddingResult),
    )

    def __init__(self) -> None:
        self.answer: Answer = _nothing
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.running = 0
        self.idle = trio.Event()
        """Set when the last running call has ended."""
        self.cancelled = 0

    async def _serve(self, stream: ServerStream) -> None:
        request = await stream.recv_message()
        self.requests.append(request)
        self.metadata.append(dict(stream.metadata or {}))
        self.running += 1
        self.idle = trio.Event()
        try:
            await self.answer(stream, request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    def __mapping__(self) -> dict[str, Handler]:
        return {f"/backend.Backend/{name}": Handler(self._serve, *shape) for name, *shape in self.METHODS}


@asynccontextmanager
async def open_in_memory(bridge: Bridge, backend: InMemoryBackend) -> AsyncIterator[Channel]:
    connection = ChannelFor([backend])
    channel = await bridge.run(connection.__aenter__)
    try:
        yield channel
    finally:
        if channel._protocol is not None:  # else its user has closed it, and with it the connection
            await bridge.run(connection.__aexit__, None, None, None)
