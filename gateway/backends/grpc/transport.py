"""The bytes of one connection to a backend: over TCP or a Unix socket, with or without TLS."""

import socket
from collections.abc import Awaitable, Callable
from ssl import SSLContext
from typing import Final, Protocol

import trio

from gateway.backends.keepalive import end_with_peer
from gateway.domain.ids import Address

RECEIVE_BYTES: Final = 64 * 1024
UNIX_PREFIX: Final = "unix:"
"""The beginning of an address that is the path of a Unix socket, as gRPC writes it."""
PROTOCOL: Final = "h2"
"""The name of HTTP/2 in TLS (RFC 9113, 3.2)."""


class Transport(Protocol):
    """A connection. Every method but `close` raises `OSError` if the connection is broken."""

    @property
    def scheme(self) -> str:
        """The scheme of requests on it: `http` or `https`."""

    def send_nowait(self, data: bytes) -> int:
        """Sends what can be sent at once. Returns the number of bytes, which may be 0."""

    async def send_all(self, data: bytes) -> None:
        """Sends all of `data`."""

    async def receive(self) -> bytes:
        """Waits for data. Returns `b""` after the end."""

    def close(self) -> None:
        """Closes the connection. Does nothing the second time."""


Connect = Callable[[Address], Awaitable[Transport]]
"""Connects to a backend. Raises `OSError`. It is a seam of the composition root."""


async def connect(address: Address, *, ssl_context: SSLContext | None = None) -> Transport:
    """Connects to `host:port`, or to `unix:PATH`. Raises `OSError`."""
    stream = await _open_stream(address)
    if ssl_context is None:
        return SocketTransport(stream)
    return await _start_tls(stream, ssl_context, address)


async def _open_stream(address: Address) -> trio.SocketStream:
    if address.startswith(UNIX_PREFIX):
        return await trio.open_unix_socket(address.removeprefix(UNIX_PREFIX))
    host, _, port = address.rpartition(":")
    stream = await trio.open_tcp_stream(host.strip("[]"), int(port))  # It sets TCP_NODELAY.
    end_with_peer(stream.socket)
    return stream


async def _start_tls(stream: trio.SocketStream, context: SSLContext, address: Address) -> "TlsTransport":
    host = address.rpartition(":")[0].strip("[]")
    encrypted = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await encrypted.do_handshake()
        _check_protocol(encrypted)
    except trio.BrokenResourceError as error:
        stream.socket.close()
        raise ConnectionAbortedError(f"the TLS handshake failed: {error.__cause__ or error}") from error
    except BaseException:
        stream.socket.close()
        raise
    return TlsTransport(encrypted)


def _check_protocol(stream: "trio.SSLStream[trio.SocketStream]") -> None:
    if stream.selected_alpn_protocol() != PROTOCOL:
        raise ConnectionAbortedError("the other side does not offer HTTP/2 within TLS (ALPN)")


class SocketTransport:
    """A transport over a plain socket. It tries to send before it waits, which Trio's own sockets always do."""

    scheme: Final = "http"

    def __init__(self, stream: trio.SocketStream) -> None:
        """Takes the socket away from `stream`."""
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)

    def send_nowait(self, data: bytes) -> int:
        """Sends what fits into the socket's buffer."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    async def send_all(self, data: bytes) -> None:
        """Sends all of `data`."""
        unsent = memoryview(data)
        while unsent:
            await trio.lowlevel.wait_writable(self._socket)
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except BlockingIOError:
                continue

    async def receive(self) -> bytes:
        """Waits for data. Returns `b""` after the end."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue

    def close(self) -> None:
        """Closes the socket, and wakes who waits for it."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class TlsTransport:
    """A transport over TLS."""

    scheme: Final = "https"

    def __init__(self, stream: "trio.SSLStream[trio.SocketStream]") -> None:
        self._stream = stream

    def send_nowait(self, data: bytes) -> int:  # noqa: ARG002 - part of the protocol
        """Sends nothing: encrypted data can only be sent with waiting."""
        return 0

    async def send_all(self, data: bytes) -> None:
        """Sends all of `data`."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionResetError("the connection is broken") from error

    async def receive(self) -> bytes:
        """Waits for data. Returns `b""` after the end."""
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionResetError("the connection is broken") from error

    def close(self) -> None:
        """Closes the socket at once."""
        self._stream.transport_stream.socket.close()
