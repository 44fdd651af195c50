"""Opens the sockets at which HTTP listeners accept connections."""

import socket
from typing import Final

BACKLOG: Final = 2048


def open_socket(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Returns a listening TCP socket. Port 0 means any free port.

    With `reuse_port`, other sockets of this user that have asked for it as well may listen at the same address. Raises
    `OSError` if the address is taken or not local.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=reuse_port)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Each connection inherits it.
    listening.setblocking(False)
    return listening


def url_of(listening: socket.socket, scheme: str) -> str:
    """Returns the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
