"""A pooler in front of PostgreSQL that lends a server connection for one transaction at a time, as PgBouncer can.

Whatever a client leaves in a session (a prepared statement, LISTEN, a setting) is another client's the next moment: the
connection that waited longest is lent next. It speaks as much of the protocol as that takes, refuses what PgBouncer
refuses at the start of a session, and forwards no requests to cancel.
"""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import trio

SSL_REQUEST: Final = 80877103
CANCEL_REQUEST: Final = 80877102
VERSION_3: Final = 196608
ALLOWED: Final = frozenset({"user", "database", "client_encoding", "application_name"})
KEY: Final = b"K" + struct.pack("!iii", 12, 4711, 4711)
"""What clients get for the number of their process: none of the server's."""
IN_NO_TRANSACTION: Final = b"I"
ANSWERED: Final = (b"Q", b"S")
"""Messages of a client that are answered with ReadyForQuery: a simple query, and the end of an extended one."""


class Messages:
    """One end of a connection, a message at a time. A message that was read in part is kept when the reader leaves."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def next(self, head: int = 1) -> bytes:
        """With its type, if it has one (`head` bytes). Empty: the end."""
        while len(self._buffer) < head + 4 or len(self._buffer) < self._length(head):
            data = await self.stream.receive_some()
            if not data:
                return b""
            self._buffer += data
        length = self._length(head)
        message = bytes(self._buffer[:length])
        del self._buffer[:length]
        return message

    def _length(self, head: int) -> int:
        (length,) = struct.unpack_from("!i", self._buffer, head)
        return int(head + length)


class TransactionPooler:
    def __init__(self, server_url: str, size: int) -> None:
        self._url = urlsplit(server_url)
        self._server_url = server_url
        self._greeting = b""
        self._lent, self._idle = trio.open_memory_channel[Messages](size)
        self._streams: list[trio.SocketStream] = []
        self.port = 0

    @property
    def url(self) -> str:
        return self._server_url.replace(f":{self._url.port}", f":{self.port}")

    async def connect(self) -> None:
        """Adds a connection to the server."""
        server = Messages(await trio.open_tcp_stream("127.0.0.1", self._url.port or 5432))
        self._streams.append(server.stream)
        names = {"user": self._url.username or "", "database": self._url.path.removeprefix("/")}
        words = b"".join(f"{key}\0{value}\0".encode() for key, value in names.items()) + b"\0"
        await server.stream.send_all(struct.pack("!ii", 8 + len(words), VERSION_3) + words)
        greeting = b""
        while not greeting.endswith(b"Z\0\0\0\5I"):
            message = await server.next()
            greeting += KEY if message[:1] == b"K" else message
        self._greeting = greeting
        await self._lent.send(server)

    async def close(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                client = Messages(stream)
                if await self._greet(client):
                    while (message := await client.next()) and message[:1] != b"X":
                        await self._lend(client, message)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _greet(self, client: Messages) -> bool:
        """False: nothing more comes."""
        message = await client.next(head=0)
        if len(message) >= 8 and struct.unpack_from("!i", message, 4)[0] == SSL_REQUEST:
            await client.stream.send_all(b"N")
            message = await client.next(head=0)
        if not message or struct.unpack_from("!i", message, 4)[0] == CANCEL_REQUEST:
            return False
        words = message[8:].decode().split("\0")
        refused = {key for key in words[::2] if key} - ALLOWED
        if refused:
            text = f"SFATAL\0C08P01\0Munsupported startup parameter: {', '.join(sorted(refused))}\0\0".encode()
            await client.stream.send_all(b"E" + struct.pack("!i", 4 + len(text)) + text)
            return False
        await client.stream.send_all(self._greeting)
        return True

    async def _lend(self, client: Messages, message: bytes) -> None:
        """One transaction, whose first message has come."""
        server = await self._idle.receive()
        loan = Loan(client, server)
        try:
            await loan.run(message)
        finally:
            if loan.is_over:
                self._lent.send_nowait(server)
            else:
                await trio.aclose_forcefully(server.stream)
                with trio.CancelScope(shield=True):
                    await self.connect()


class Loan:
    """A client has a server until a transaction ends."""

    def __init__(self, client: Messages, server: Messages) -> None:
        self._client = client
        self._server = server
        self._unanswered = 0
        self._client_has_left = False
        self._state = b"?"
        self._scope = trio.CancelScope()

    @property
    def is_over(self) -> bool:
        return self._unanswered == 0 and self._state == IN_NO_TRANSACTION

    async def run(self, message: bytes) -> None:
        await self._pass_on(message)
        while not self.is_over and not self._client_has_left:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_up)
                    nursery.start_soon(self._carry_down)

    async def _carry_up(self) -> None:
        while (message := await self._client.next()) and message[:1] != b"X":
            await self._pass_on(message)
        self._client_has_left = True
        self._scope.cancel()

    async def _pass_on(self, message: bytes) -> None:
        self._unanswered += message[:1] in ANSWERED
        with trio.CancelScope(shield=True):
            await self._server.stream.send_all(message)

    async def _carry_down(self) -> None:
        while message := await self._server.next():
            if message[:1] == b"Z":
                self._unanswered -= 1
                self._state = message[5:6]
            with trio.CancelScope(shield=True):
                await self._client.stream.send_all(message)
            if self.is_over:
                break
        self._scope.cancel()


@asynccontextmanager
async def open_transaction_pooler(server_url: str, size: int = 2) -> AsyncIterator[TransactionPooler]:
    """In front of the database of `server_url`, with so many connections to it."""
    pooler = TransactionPooler(server_url, size)
    try:
        for _ in range(size):
            await pooler.connect()
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            pooler.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, pooler.serve, listeners)
            yield pooler
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await pooler.close()
