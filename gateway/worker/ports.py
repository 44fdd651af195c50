"""Hands out TCP ports for backend processes so that no two workers on one machine ever hand out the same one.

A port is taken by a lock file that lives as long as the reservation (the kernel frees it when a worker dies) and must
pass a plain bind besides, which finds programs that know nothing of our locks. Plain means without SO_REUSEADDR and
SO_REUSEPORT: gRPC servers bind with the latter, so two of them would share a port in silence (pitfall 33).
"""

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.config.units import PortRange
from gateway.domain.ids import Address


class NoFreePort(Exception):
    """Every port of the range is locked or bound."""


def machine_lock_folder() -> Path:
    """The folder that all workers of this user on this machine share.

    Raises `OSError` when it exists but is not ours: its locks could then be another user's.
    """
    folder = Path(tempfile.gettempdir()) / f"gateway-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid():
        raise OSError(f"the port lock folder {folder} belongs to somebody else")
    return folder


class PortAllocator:
    """Reserves ports of one range, in turn, so that a port just given back is the last to be used again (H5, H6)."""

    def __init__(self, ports: PortRange, bind_host: str, lock_folder: Path | None = None) -> None:
        self._ports = ports
        self._bind_host = bind_host
        self._lock_folder = lock_folder or machine_lock_folder()
        self._turn = 0

    @contextmanager
    def reserve(self) -> Iterator[int]:
        """A port that is ours until the context is left, which must be after the process on it was reaped (W10).

        Raises `NoFreePort`.
        """
        port, lock = self._take()
        try:
            yield port
        finally:
            os.close(lock)

    def _take(self) -> tuple[int, int]:
        for _ in range(len(self._ports)):
            port = self._ports.first + self._turn
            self._turn = (self._turn + 1) % len(self._ports)
            lock = self._try_lock(port)
            if lock is not None:
                return port, lock
        raise NoFreePort(f"no free port in {self._ports} on {self._bind_host}; worker.port_range sets the range")

    def _try_lock(self, port: int) -> int | None:
        """The lock file's descriptor. The file itself stays for ever: removing it would race with other lockers."""
        lock = os.open(self._lock_folder / f"{port}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if not can_bind(self._bind_host, port):
            os.close(lock)
            return None
        return lock


def can_bind(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def address_of(host: str, port: int) -> Address:
    """`host:port`, with an IPv6 host in brackets."""
    return Address(f"[{host}]:{port}" if _family(host) == socket.AF_INET6 else f"{host}:{port}")


def host_to_reach(bind_host: str) -> str:
    """Where a process that listens on `bind_host` answers callers of this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind_host, bind_host)  # noqa: S104 - recognised, not bound


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
