"""Flow control windows of HTTP/2 (RFC 9113, 5.2 and 6.9). Pure."""

from typing import Final

from h2.errors import ErrorCodes

from gateway.backends.grpc.frames import BrokenConnection

INITIAL_WINDOW_BYTES: Final = 65_535
"""Every window at the start of a connection."""
WINDOW_BYTES_MAX: Final = 2**31 - 1


class SendWindow:
    """The number of bytes that the other side takes from us now. It is negative after a setting has made it smaller
    than what is on its way."""

    __slots__ = ("available",)

    def __init__(self, available: int = INITIAL_WINDOW_BYTES) -> None:
        self.available = available

    def take(self, amount: int) -> None:
        """Records that `amount` bytes are sent."""
        self.available -= amount

    def grow(self, amount: int) -> None:
        """Changes the window by WINDOW_UPDATE or by a setting. Raises `BrokenConnection` if it becomes too large."""
        self.available += amount
        if self.available > WINDOW_BYTES_MAX:
            raise BrokenConnection(ErrorCodes.FLOW_CONTROL_ERROR, "a window has grown beyond 2^31-1 bytes")


class ReceiveWindow:
    """The number of bytes that we take. Bytes that have been dealt with are given back in large steps."""

    __slots__ = ("_available", "_owed", "_step")

    def __init__(self, size: int) -> None:
        self._available = size
        self._owed = 0
        self._step = size // 2

    def take(self, amount: int) -> None:
        """Records that `amount` bytes have arrived. Raises `BrokenConnection` if they were not allowed."""
        self._available -= amount
        if self._available < 0:
            raise BrokenConnection(ErrorCodes.FLOW_CONTROL_ERROR, "more bytes have arrived than the window allows")

    def give_back(self, amount: int) -> int:
        """Records that `amount` bytes are dealt with. Returns the number to announce now, or 0 if it can wait."""
        self._owed += amount
        if self._owed < self._step:
            return 0
        announced, self._owed = self._owed, 0
        self._available += announced
        return announced
