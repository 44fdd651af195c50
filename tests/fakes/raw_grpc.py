"""The other end of a session as a bare gRPC stream of bytes, for peers that do not keep to worker.proto."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from grpclib import GRPCError, Status
from grpclib.client import Channel
from grpclib.client import Stream as ClientStream
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Server
from grpclib.server import Stream as ServerStream

from gateway.bridge import Bridge

ATTACH = "/gateway.worker.v1.WorkerSession/Attach"

RawWorkerStream = ClientStream[bytes, bytes]
RawGatewayStream = ServerStream[bytes, bytes]
ANY_AMOUNT = Configuration(http2_connection_window_size=2**30, http2_stream_window_size=2**30)
"""Flow control that lets the gateway send until the connection itself is full."""


class RawCodec(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        data: bytes = message
        return data

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


async def play_worker(
    bridge: Bridge,
    port: int,
    play: Callable[[RawWorkerStream], Awaitable[None]],
    metadata: Mapping[str, str],
    method: str = ATTACH,
) -> tuple[Status, str]:
    """Opens a call, plays, reads to the end; how the gateway ended it. `play` runs on the asyncio side."""

    async def call_aio() -> tuple[Status, str]:
        channel = Channel("127.0.0.1", port, codec=RawCodec(), config=ANY_AMOUNT)
        try:
            async with channel.request(
                method, Cardinality.STREAM_STREAM, bytes, bytes, metadata=dict(metadata)
            ) as stream:
                await stream.send_request()
                await play(stream)
                await _read_to_end_aio(stream)
        except GRPCError as error:
            return error.status, error.message or ""
        except StreamTerminatedError:
            return Status.OK, ""
        finally:
            channel.close()

    return await bridge.run(call_aio)


async def _read_to_end_aio(stream: RawWorkerStream) -> NoReturn:
    while await stream.recv_message() is not None:
        pass
    raise StreamTerminatedError  # grpclib then looks for a status


@asynccontextmanager
async def open_gateway_play(
    bridge: Bridge, play: Callable[[RawGatewayStream], Awaitable[None]], method: str = ATTACH
) -> AsyncIterator[str]:
    """A gateway that does with each call what `play` does, on the asyncio side. Its address."""

    class Service:
        def __mapping__(self) -> dict[str, Handler]:
            return {method: Handler(play, Cardinality.STREAM_STREAM, bytes, bytes)}

    async def start_aio() -> Server:
        raw = Server([Service()], codec=RawCodec())
        await raw.start("127.0.0.1", 0)
        return raw

    async def stop_aio() -> None:
        raw.close()
        await raw.wait_closed()

    raw = await bridge.run(start_aio)
    try:
        yield f"127.0.0.1:{raw._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    finally:
        await bridge.run(stop_aio)
