"""Has the kernel end a connection whose other machine is gone.

A machine that vanishes sends nothing, and a connection without traffic notices nothing. So the kernel asks the other
kernel, below gRPC. That one answers however busy the backend is, so no backend counts too many pings, and one that
loads a model or works for an hour is left alone.
"""

import socket
import sys
from typing import Final, Protocol

IDLE_SECONDS: Final = 15
"""How long a connection is silent before the first probe of the kernel."""
INTERVAL_SECONDS: Final = 5
"""The time between two probes."""
QUESTIONS: Final = 3
"""The number of unanswered probes after which the connection ends."""
GIVE_UP_SECONDS: Final = 30
"""How long sent data may stay unacknowledged. The kernel also waits this long for the probes above, if it is longer."""


class SocketOptions(Protocol):
    """The part of a socket that has its options: Python's own, asyncio's and Trio's are alike in it."""

    @property
    def family(self) -> int:
        """The address family."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """Sets one option."""


def end_with_peer(connection: SocketOptions | None) -> None:
    """Sets TCP keepalive. Does nothing for other connections, and on systems without such options."""
    if connection is None or sys.platform != "linux" or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, QUESTIONS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GIVE_UP_SECONDS * 1000)
