"""The server's own end: what was written is sent before a connection is closed."""

import asyncio
import socket

from gateway.engines.llama_cpp.server import EngineServer
from tests.fakes.plain_asyncio import run_asyncio

UNREAD_BYTES = 40_000_000
"""More than twice what the kernel keeps for a client that does not read."""


def test_closing_waits_until_a_slow_client_has_everything() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        server = EngineServer([])
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            await server.start(sock=listener)
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            greeting = await loop.sock_recv(client, 1024)
            (transport,) = server._open
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"x" * UNREAD_BYTES)
            closing = asyncio.ensure_future(server.close_flushed())
            received = len(greeting)
            while data := await loop.sock_recv(client, 1_000_000):
                received += len(data)
                assert not closing.done() or received > UNREAD_BYTES // 2
            await closing
            return received

    assert run_asyncio(main()) >= UNREAD_BYTES
