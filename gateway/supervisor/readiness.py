"""How a process tells whoever has started it that it serves: systemd's protocol, sd_notify(3).

The variable NOTIFY_SOCKET names a Unix datagram socket, and `READY=1` is sent to it. systemd listens there for a
service of `Type=notify`, and the supervisor for each of its processes.
"""

import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
import trio

log = structlog.get_logger(__name__)

NOTIFY_VARIABLE: Final = "NOTIFY_SOCKET"
READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
MESSAGE_BYTES_MAX: Final = 4096


class Notifier:
    """Tells whoever has started this process how it is. It does nothing if nobody wants to know."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Takes the address out of the environment, so that no child process speaks for this one."""
        self._address = environ.pop(NOTIFY_VARIABLE, "")

    def notify(self, state: str) -> None:
        """Sends `READY` or `STOPPING`. A failure is logged only."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), address)
        except OSError as error:
            log.warning("notify.failed", socket=self._address, state=state, error=str(error))


class ReadinessSocket:
    """The socket at which the supervisor hears from one process."""

    def __init__(self, path: Path, listening: trio.socket.SocketType) -> None:
        self.path = path
        """The address for NOTIFY_SOCKET."""
        self._listening = listening

    async def wait_ready(self) -> None:
        """Waits until the process has said that it serves."""
        while True:
            message = await self._listening.recv(MESSAGE_BYTES_MAX)
            if READY in message.decode(errors="replace").splitlines():
                return


@contextmanager
def open_readiness(path: Path) -> Iterator[ReadinessSocket]:
    """Opens the socket at a path that does not exist yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.setblocking(False)
        try:
            yield ReadinessSocket(path, trio.socket.from_stdlib_socket(listening))
        finally:
            path.unlink(missing_ok=True)
