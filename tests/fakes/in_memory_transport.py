"""Connections between the gRPC client on Trio and a server of grpclib's, without a socket, under any clock."""

import asyncio
from collections.abc import Callable

import trio
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from gateway.backends.grpc.transport import Connect
from gateway.bridge import Bridge
from gateway.domain.ids import Address
from tests.fakes.in_memory_backend import InMemoryBackend

Carry = Callable[[Callable[[], None]], object]
"""Does something a moment later, in order: the loop's `call_soon`, or a network that holds things up."""


class ServerEnd(asyncio.Transport):
    """What the server writes to; the client's end of it is `client`."""

    def __init__(self, client: "ClientEnd", carry: Carry) -> None:
        super().__init__()
        self.client = client
        self._carry = carry
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._closed:
            self._carry(lambda: self.client.arrive(bytes(data)))

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._carry(self.client.lose)
            asyncio.get_event_loop().call_soon(self.client.server.connection_lost, None)

    def lose(self) -> None:
        """The client is gone."""
        if not self._closed:
            self._closed = True
            self.client.server.connection_lost(None)


class ClientEnd:
    """A `Transport` of the gRPC client."""

    scheme = "http"

    def __init__(self, server: H2Protocol, carry: Carry) -> None:
        self.server = server
        self.peer = ServerEnd(self, carry)
        self._carry = carry
        self._arrived = bytearray()
        self._has_ended = False
        self._changed = trio.Event()
        server.connection_made(self.peer)

    def send_nowait(self, data: bytes) -> int:
        if self._has_ended:
            raise ConnectionResetError("connection lost")
        self._carry(lambda: self._deliver(data))
        return len(data)

    def _deliver(self, data: bytes) -> None:
        if not self.peer.is_closing():
            self.server.data_received(data)

    async def send_all(self, data: bytes) -> None:
        raise AssertionError("everything is sent at once")

    async def receive(self) -> bytes:
        while not self._arrived and not self._has_ended:
            self._changed = trio.Event()
            await self._changed.wait()
        data = bytes(self._arrived)
        self._arrived.clear()
        return data

    def arrive(self, data: bytes) -> None:
        self._arrived += data
        self._changed.set()

    def lose(self) -> None:
        """The server is gone."""
        self._has_ended = True
        self._changed.set()

    def close(self) -> None:
        if not self._has_ended:
            self.lose()
            self._carry(self.peer.lose)


def connect_in_memory(bridge: Bridge, backend: InMemoryBackend) -> Connect:
    """A `Connect` that reaches the backend at every address."""

    async def connect_aio() -> ClientEnd:
        loop = asyncio.get_running_loop()
        return ClientEnd(Server([backend])._protocol_factory(), lambda act: loop.call_soon(act))

    async def connect(_address: Address) -> ClientEnd:
        return await bridge.run(connect_aio)

    return connect
