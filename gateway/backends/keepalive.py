"""Has the kernel end a connection whose other machine is not there any more.

A machine that vanishes says nothing, and a connection on which nothing is sent notices nothing. The kernel asks for us,
below gRPC: the backend's own kernel answers, however busy the backend is, so that no backend takes it for too many
pings and one that loads a model or works for an hour is left alone.
"""

import asyncio
import socket
import sys
from typing import Final

IDLE_SECONDS: Final = 15
"""How long a connection is silent before the first question."""
INTERVAL_SECONDS: Final = 5
"""Between two questions."""
QUESTIONS: Final = 3
"""Without an answer; then the connection ends."""
GIVE_UP_SECONDS: Final = 30
"""For what was sent to be received by the other machine; also the end of the questions above, where it is later."""


def end_with_peer(transport: asyncio.BaseTransport) -> None:
    """Sets TCP keepalive. Does nothing to what is no TCP connection, or where the system has no such options."""
    connection = transport.get_extra_info("socket")
    if connection is None or sys.platform != "linux" or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, QUESTIONS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GIVE_UP_SECONDS * 1000)
