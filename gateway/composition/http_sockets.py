"""Opens the sockets of a gateway's HTTP listeners, or takes those that its supervisor has opened."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from gateway.api.http.listener.listening_socket import open_socket, open_sockets
from gateway.config.model import ServerSection
from gateway.data_dir import StartupError
from gateway.process_place import ProcessPlace


@dataclass(frozen=True)
class HttpSockets:
    """The listening sockets of one gateway."""

    public: tuple[socket.socket, ...]
    """The sockets for clients, one for each address."""
    peers: socket.socket | None
    """The socket at which peers reach exactly this gateway. None if they use the public one."""


@contextmanager
def open_http_sockets(server: ServerSection, place: ProcessPlace | None) -> Iterator[HttpSockets]:
    """Opens the sockets before anything else, because a taken port is the most frequent reason not to start.

    Raises `StartupError`.
    """
    with ExitStack() as held:
        if place is not None:
            public = tuple(held.enter_context(_inherited(each)) for each in place.listening)
            private = [held.enter_context(_inherited(each)) for each in place.private_descriptors()]
        else:
            public = tuple(held.enter_context(each) for each in open_public_sockets(server))
            ports = () if server.peer_port is None else (server.peer_port,)
            private = [held.enter_context(open_peer_socket(server, port)) for port in ports]
        yield HttpSockets(public, private[0] if private else None)


def open_public_sockets(server: ServerSection) -> tuple[socket.socket, ...]:
    """Opens the sockets for clients. Raises `StartupError`."""
    try:
        return open_sockets(server.hosts, server.port, reuse_port=server.reuse_port)
    except OSError as error:
        raise StartupError(
            f"can't listen on {_shown(server)}:{server.port}: {error.strerror or error}; set server.port or pass --port"
        ) from error


def open_peer_socket(server: ServerSection, port: int) -> socket.socket:
    """Opens the socket for peers at a port. Raises `StartupError`."""
    host = server.hosts[0]
    try:
        return open_socket(host, port)
    except OSError as error:
        raise StartupError(
            f"can't listen for other gateways on {host}:{port}: {error.strerror or error}; set server.peer_port"
        ) from error


def _shown(server: ServerSection) -> str:
    return ", ".join(server.hosts)


def _inherited(descriptor: int) -> socket.socket:
    """Returns the socket behind an inherited descriptor, which no backend inherits in its turn."""
    found = socket.socket(fileno=descriptor)
    found.set_inheritable(False)
    found.setblocking(False)
    return found
