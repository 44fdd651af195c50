"""Every connection to a backend ends by itself when its other machine is not there any more."""

import socket

import trio
from grpclib.server import Server

from gateway.backends.dial import dial
from gateway.backends.keepalive import GIVE_UP_SECONDS, IDLE_SECONDS, INTERVAL_SECONDS, QUESTIONS
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.bridge import open_bridge
from gateway.domain.ids import Address
from tests.fakes.in_memory_backend import InMemoryBackend, ServerStream

OPTIONS = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): IDLE_SECONDS,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): INTERVAL_SECONDS,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): QUESTIONS,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): GIVE_UP_SECONDS * 1000,
}


async def options_of_a_call_aio() -> dict[tuple[int, int], int]:
    """Those that the connection of a real call has, on the loop that the gateway uses."""
    backend = InMemoryBackend()

    async def answer(stream: ServerStream, _request: object) -> None:
        await stream.send_message(pb.Reply(message=b"OK"))

    backend.answer = answer
    server = Server([backend])
    await server.start("127.0.0.1", 0)
    port = server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    channel = dial(Address(f"127.0.0.1:{port}"))
    try:
        await BackendStub(channel).Health(pb.HealthMessage())
        connection = channel._protocol.connection._transport.get_extra_info("socket")  # type: ignore[union-attr]
        return {option: connection.getsockopt(*option) for option in OPTIONS}
    finally:
        channel.close()
        server.close()
        await server.wait_closed()


async def test_the_kernel_asks_whether_the_other_machine_is_there() -> None:
    with trio.fail_after(30):
        async with open_bridge() as bridge:
            assert await bridge.run(options_of_a_call_aio) == OPTIONS
