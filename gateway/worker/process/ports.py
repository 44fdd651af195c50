"""Reserves TCP ports for backend processes, so that no two workers on one machine use the same one.

A port is reserved by a lock that lives as long as the reservation (the kernel frees it when a worker dies). It must
also pass a plain bind, which finds programs that do not know these locks. Plain means without SO_REUSEADDR and
SO_REUSEPORT: gRPC servers bind with the latter, so two of them would share a port without an error (pitfall 33).
Another program may still take the port between that bind and the backend's own bind. `is_taken` and `says_taken` detect
that.
"""

import errno
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.config.units import PortRange
from gateway.domain.ids import Address
from gateway.worker.process.port_locks import Release, folder_locks, machine_locks

_TAKEN: Final = re.compile(
    r"address( is)? (already )?in use|EADDRINUSE|failed to bind to address|port \d+ is (already )?in use", re.IGNORECASE
)


class NoFreePort(Exception):
    """Every port of the range is locked or in use."""


class PortAllocator:
    """Reserves ports of one range in turn, so that a freed port is used again as late as possible (H5, H6)."""

    def __init__(self, ports: PortRange, bind_host: str, lock_folder: Path | None = None) -> None:
        self._ports = ports
        self._bind_host = bind_host
        self._try_lock = machine_locks() if lock_folder is None else folder_locks(lock_folder)
        self._turn = 0

    @contextmanager
    def reserve(self) -> Iterator[int]:
        """Reserves a port until the context is left, which must be after its process was reaped (W10).

        Raises `NoFreePort`.
        """
        port, release = self._take()
        try:
            yield port
        finally:
            release()

    def _take(self) -> tuple[int, Release]:
        for _ in range(len(self._ports)):
            port = self._ports.first + self._turn
            self._turn = (self._turn + 1) % len(self._ports)
            if (release := self._try_lock(port)) is not None:
                if can_bind(self._bind_host, port):
                    return port, release
                release()
        raise NoFreePort(f"no free port in {self._ports} on {self._bind_host}; worker.port_range sets the range")


def can_bind(host: str, port: int) -> bool:
    """Returns whether nobody uses the port, not even a connection that has just ended there."""
    with socket.socket(_family(host)) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def is_taken(host: str, port: int) -> bool:
    """Returns whether another program listens there, or has a connection from there, so that no server can. Unlike
    `can_bind` it ignores connections that have ended: a server that takes its port again sets SO_REUSEADDR for them."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def says_taken(lines: Iterable[str]) -> bool:
    """Returns whether a server reports that its address is in use, in the words of the system or of gRPC."""
    return any(_TAKEN.search(line) for line in lines)


def address_of(host: str, port: int) -> Address:
    """Returns `host:port`, with an IPv6 host in brackets."""
    return Address(f"[{host}]:{port}" if _family(host) == socket.AF_INET6 else f"{host}:{port}")


def host_to_reach(bind_host: str) -> str:
    """Returns the host at which callers on this machine reach a process that listens on `bind_host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind_host, bind_host)  # noqa: S104 - recognised, not bound


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
