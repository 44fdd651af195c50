"""The bytes of one connection, plain or over TLS: reads that tell of the end, bounded writes, a close at any moment.

A plain socket is used directly. Trio's own streams let other tasks run at each send, which would cost more than the
send itself, and a free socket buffer takes most answers at once.
"""

import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Final

import structlog
import trio

log = structlog.get_logger(__name__)

PENDING_BYTES_MAX: Final = 1024 * 1024
"""The limit of what is thrown away when a connection ends."""
READ_BYTES: Final = 64 * 1024
CLOSE_SECONDS: Final = 5.0
"""How long the goodbye of TLS may take."""
Address = tuple[str, int]


class ByteStream(ABC):
    """Both directions of a connection. One task at a time reads, and one writes."""

    def __init__(self, write_timeout_seconds: float) -> None:
        """`write_timeout_seconds`: how long a client may leave sent data unread."""
        self._write_timeout_seconds = write_timeout_seconds

    @abstractmethod
    async def receive(self, bytes_max: int) -> bytes:
        """Waits for bytes and returns them, or nothing if the client has closed or the connection has ended."""

    @abstractmethod
    def _send_nowait(self, data: bytes) -> int:
        """Returns how many bytes went out at once. Raises `OSError`."""

    @abstractmethod
    async def _send_all(self, data: memoryview) -> None:
        """Waits until everything is out. Raises `OSError`, `trio.BrokenResourceError`, `trio.ClosedResourceError`."""

    @abstractmethod
    def end_output(self) -> None:
        """Tells the client that nothing more comes. What it still sends can be read (RFC 9112, 9.6)."""

    @abstractmethod
    async def close(self) -> None:
        """Closes the connection. What was sent still arrives, even at a client that is still sending."""

    @abstractmethod
    def close_now(self) -> None:
        """Closes the connection at once, also under tasks that wait for it."""

    @abstractmethod
    def addresses(self) -> tuple[Address, Address]:
        """Returns the addresses of the client and of this end. Raises `OSError` for a client that has left already."""

    async def send(self, data: bytes) -> bool:
        """Writes data, and returns whether everything was written. A cancel waits for the end of the write, because a
        response that is written in part cannot be taken back."""
        try:
            sent = self._send_nowait(data)
            return sent == len(data) or await self._send_bounded(memoryview(data)[sent:])
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return False

    async def _send_bounded(self, data: memoryview) -> bool:
        with trio.move_on_after(self._write_timeout_seconds, shield=True) as scope:
            await self._send_all(data)
        if scope.cancelled_caught:
            log.warning("http.slow_client", seconds=self._write_timeout_seconds)
            self.close_now()
        return not scope.cancelled_caught


class PlainStream(ByteStream):
    """A socket."""

    def __init__(self, stream: trio.SocketStream, write_timeout_seconds: float) -> None:
        """Takes the socket out of `stream`."""
        super().__init__(write_timeout_seconds)
        taken = stream.socket
        self._socket = socket.socket(taken.family, taken.type, taken.proto, fileno=taken.detach())
        self._socket.setblocking(False)

    async def receive(self, bytes_max: int) -> bytes:
        """Implements `ByteStream`."""
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                return self._socket.recv(bytes_max)
            except BlockingIOError:
                continue
            except (OSError, ValueError, trio.ClosedResourceError):  # ValueError: it is closed already.
                return b""

    def _send_nowait(self, data: bytes) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    async def _send_all(self, data: memoryview) -> None:
        while data:
            await trio.lowlevel.wait_writable(self._socket)
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                continue

    def end_output(self) -> None:
        """Implements `ByteStream`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """Implements `ByteStream`.

        Closing a socket with unread data in it would reset the connection, and its client would never see the answer.
        So the output ends first, and what is there is read.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
            left = PENDING_BYTES_MAX
            while left > 0 and (data := self._socket.recv(READ_BYTES)):
                left -= len(data)
        except OSError:
            pass
        self.close_now()

    def close_now(self) -> None:
        """Implements `ByteStream`."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def addresses(self) -> tuple[Address, Address]:
        """Implements `ByteStream`."""
        return _address(self._socket.getpeername()), _address(self._socket.getsockname())

    def to_trio(self) -> trio.SocketStream:
        """Returns the socket as one of Trio's streams. This stream has it no longer."""
        taken = socket.socket(self._socket.family, self._socket.type, self._socket.proto, fileno=self._socket.detach())
        return trio.SocketStream(trio.socket.from_stdlib_socket(taken))


class TlsStream(ByteStream):
    """A connection over TLS, whose handshake is done."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], write_timeout_seconds: float) -> None:
        super().__init__(write_timeout_seconds)
        self._stream = stream

    async def receive(self, bytes_max: int) -> bytes:
        """Implements `ByteStream`."""
        try:
            return bytes(await self._stream.receive_some(bytes_max))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def _send_nowait(self, data: bytes) -> int:
        del data
        return 0  # The encryption has no way to take a part.

    async def _send_all(self, data: memoryview) -> None:
        await self._stream.send_all(data)

    def end_output(self) -> None:
        """Implements `ByteStream`: it does nothing, because the end of TLS is the end of both directions here."""

    async def close(self) -> None:
        """Implements `ByteStream`."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            try:
                await self._stream.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    def close_now(self) -> None:
        """Implements `ByteStream`."""
        self._stream.transport_stream.socket.close()

    def addresses(self) -> tuple[Address, Address]:
        """Implements `ByteStream`."""
        sock = self._stream.transport_stream.socket
        return _address(sock.getpeername()), _address(sock.getsockname())


def _address(found: tuple[object, ...]) -> Address:
    """Returns host and port; an address of IPv6 has more than these."""
    return str(found[0]), int(str(found[1]))
