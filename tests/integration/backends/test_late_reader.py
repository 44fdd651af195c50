"""An answer that has arrived whole is read whole, also when its backend hung up long before it was read."""

import asyncio
from collections.abc import Callable

import pytest
from grpclib.client import Channel
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Server

from gateway.backends.dial import dial
from gateway.backends.patient_channel import PatientChannel
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.domain.ids import Address
from tests.fakes.in_memory_backend import InMemoryBackend, ServerStream

WORDS = 50


class Talker(InMemoryBackend):
    """Says its words at once, and the rest never if it is to break."""

    def __init__(self, *, breaks: bool) -> None:
        super().__init__()
        self.said = asyncio.Event()

        async def answer(stream: ServerStream, _request: object) -> None:
            for number in range(WORDS):
                await stream.send_message(pb.Reply(message=str(number).encode()))
            self.said.set()
            if breaks:
                await asyncio.Event().wait()

        self.answer = answer


async def until(holds: Callable[[], bool]) -> None:
    """Of grpclib's insides, which tell nobody."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def read_late(make_channel: type[Channel] | None, *, breaks: bool) -> list[bytes]:
    """What a client gets that begins to read once the backend has gone."""
    talker = Talker(breaks=breaks)
    server = Server([talker])
    await server.start("127.0.0.1", 0)
    port = server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    channel = dial(Address(f"127.0.0.1:{port}")) if make_channel is None else make_channel("127.0.0.1", port)
    got: list[bytes] = []
    try:
        async with BackendStub(channel).PredictStream.open() as stream:
            await stream.send_message(pb.PredictOptions(), end=True)
            await talker.said.wait()
            if not breaks:
                await until(lambda: stream._stream.buffer._eof)  # the last frame has to be here
            protocol = channel._protocol
            server.close()
            protocol.connection._transport.abort()  # type: ignore[union-attr]
            await until(lambda: protocol.handler.connection_lost)  # type: ignore[union-attr]
            got.extend([reply.message async for reply in stream])
    finally:
        channel.close()
        await server.wait_closed()
    return got


def test_r13_a_complete_answer_outlives_its_connection() -> None:
    assert asyncio.run(read_late(None, breaks=False)) == [str(number).encode() for number in range(WORDS)]


def test_grpclib_alone_loses_it() -> None:
    """When this fails, PatientChannel can go."""
    with pytest.raises(StreamTerminatedError):
        asyncio.run(read_late(Channel, breaks=False))


def test_m7_an_answer_that_broke_off_is_an_error_still() -> None:
    with pytest.raises(StreamTerminatedError):
        asyncio.run(read_late(PatientChannel, breaks=True))
