"""The sockets at which the processes accept connections. They are opened once and outlive each process.

All processes accept from one public socket. A connection that nobody has accepted yet belongs to no process, so none
is lost when a process ends; with a socket for each (SO_REUSEPORT) the kernel would reset those in its queue. The
private sockets keep their addresses, so that peers find a restarted process where it was.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from gateway.api.http.listener.listening_socket import url_of
from gateway.composition.http_sockets import open_peer_socket, open_public_sockets
from gateway.config.model import Config
from gateway.process_place import ProcessPlace
from gateway.supervisor.layout import peer_port

LOCAL: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to tell them from hosts
"""How this machine reaches a listener on all of its addresses."""


@dataclass(frozen=True)
class ProcessSockets:
    """The public sockets of all processes, and the private one of each."""

    public: tuple[socket.socket, ...]
    peers: tuple[socket.socket, ...]
    """The private sockets by number. There are none for a single process without a port for peers."""
    url: str
    """The address for clients."""
    urls: tuple[str, ...]
    """The addresses at which this machine reaches each process, by number."""

    def place_of(self, number: int) -> ProcessPlace:
        """Returns the place of a process."""
        peers = self.peers[number].fileno() if self.peers else None
        return ProcessPlace(number, tuple(each.fileno() for each in self.public), peers, self.urls)

    def close(self) -> None:
        """Closes the sockets of this process. The children keep theirs until their own end."""
        for each in (*self.public, *self.peers):
            each.close()


@contextmanager
def open_sockets(config: Config, count: int) -> Iterator[ProcessSockets]:
    """Opens the sockets of `count` processes. Raises `StartupError`."""
    server, scheme = config.server, "http" if config.server.tls_cert is None else "https"
    with ExitStack() as held:
        public = tuple(held.enter_context(each) for each in open_public_sockets(server))
        ports = [peer_port(config, number) for number in range(count)]
        has_peers = count > 1 or server.peer_port is not None
        peers = [held.enter_context(open_peer_socket(server, port)) for port in ports if has_peers]
        urls = tuple(_local_url(each, scheme) for each in peers)
        yield ProcessSockets(public, tuple(peers), url_of(public[0], scheme), urls)


def _local_url(listening: socket.socket, scheme: str) -> str:
    """Returns the address at which this machine reaches a private socket."""
    host, port = listening.getsockname()[:2]
    local = LOCAL.get(host, host)
    return f"{scheme}://[{local}]:{port}" if ":" in local else f"{scheme}://{local}:{port}"
