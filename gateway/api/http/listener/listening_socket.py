"""Opens the sockets at which a gateway accepts connections."""

import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Final

BACKLOG: Final = 2048
ANY_IPV6: Final = "::"

Address = tuple[socket.AddressFamily, str]


def open_sockets(hosts: Iterable[str], port: int, *, reuse_port: bool = False) -> tuple[socket.socket, ...]:
    """Returns a listening TCP socket for each address of the hosts, all at one port. Port 0 means any free port.

    A name such as `localhost` may have addresses of both families. One that this machine lacks is left out if another
    address of the same name can be used. With `reuse_port`, other sockets of this user that have asked for it as well
    may listen at the same address. Raises `OSError` if an address is taken or not local.
    """
    with ExitStack() as opened:
        found: dict[Address, socket.socket] = {}
        wanted = [_addresses(host) for host in hosts]
        has_ipv4 = any(family == socket.AF_INET for addresses in wanted for family, _ in addresses)
        for addresses in wanted:
            faults = []
            for address in addresses:
                if address in found:
                    continue
                try:
                    listening = _open(address, port, reuse_port=reuse_port, is_dual=not has_ipv4)
                except OSError as error:
                    faults.append(error)
                    continue
                found[address] = opened.enter_context(listening)
                port = port or listening.getsockname()[1]
            if not any(address in found for address in addresses):
                raise faults[0]
        opened.pop_all()
        return tuple(found.values())


def open_socket(host: str, port: int) -> socket.socket:
    """Returns one listening TCP socket at the first address of a host. Raises `OSError`."""
    return _open(_addresses(host)[0], port, reuse_port=False, is_dual=False)


def _addresses(host: str) -> Sequence[Address]:
    """Returns the addresses of a host in the order of the system, each once."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return tuple(dict.fromkeys((family, str(address[0])) for family, *_, address in found))


def _open(address: Address, port: int, *, reuse_port: bool, is_dual: bool) -> socket.socket:
    """Opens one socket. With `is_dual`, the one at all addresses of IPv6 takes clients of IPv4 as well, as that of
    other servers does, if the system can."""
    family, host = address
    is_dual = is_dual and host == ANY_IPV6 and socket.has_dualstack_ipv6()
    listening = socket.create_server(
        (host, port), family=family, backlog=BACKLOG, reuse_port=reuse_port, dualstack_ipv6=is_dual
    )
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Each connection inherits it.
    listening.setblocking(False)
    return listening


def url_of(listening: socket.socket, scheme: str) -> str:
    """Returns the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
