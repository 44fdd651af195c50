"""The server's own end: what was written is sent before a connection is closed."""

import asyncio
import socket

from gateway.engines.llama_cpp.server import EngineServer
from tests.fakes.plain_asyncio import run_asyncio

UNREAD_BYTES = 40_000_000
"""More than twice what the kernel keeps for a client that does not read."""


def test_closing_waits_until_a_slow_client_has_everything() -> None:
    """Also when that one goes on sending: what is left unread would reset the connection and take the rest along."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        server = EngineServer([])
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            await server.start(sock=listener)
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            received = len(await loop.sock_recv(client, 1024))
            (connection,) = server._open
            assert connection._transport is not None
            connection._transport.write(b"x" * UNREAD_BYTES)
            closing = asyncio.ensure_future(server.close_flushed())
            await asyncio.sleep(0)
            while data := await loop.sock_recv(client, 1_000_000):
                received += len(data)
                await loop.sock_sendall(client, b"late")
                assert not closing.done() or received > UNREAD_BYTES // 2
            client.close()
            await closing
            return received

    assert run_asyncio(main()) >= UNREAD_BYTES


def test_a_client_that_does_not_hang_up_is_hung_up_on() -> None:
    async def main() -> None:
        server = EngineServer([])
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            await server.start(sock=listener)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
            await asyncio.get_running_loop().sock_recv(client, 1024)
            await server.close_flushed()
            assert not server._open

    run_asyncio(main())
