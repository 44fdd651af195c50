"""The engine's process: its requirements, its address, the signals that end it, and its exit codes."""

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from gateway.backends.metadata import TOKEN_VARIABLE
from gateway.observability.heap import freeze_startup_objects

if TYPE_CHECKING:
    from gateway.engines.llama_cpp.server import EngineServer

log = logging.getLogger(__name__)

EXIT_DRAINED: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_ORPHANED: Final = 3
EXIT_SIGNALLED: Final = 128
"""The exit code after a signal is this plus the signal's number, as in a shell."""
NATIVE_SETTINGS: Final = {
    # On a failed assertion llama.cpp would run a debugger on itself, for minutes, instead of ending.
    "GGML_NO_BACKTRACE": "1",
    # How long OpenMP's threads spin before they sleep. By default it is so long that engines that share cores with
    # anybody take them from each other: 12 tokens a second instead of 99 were seen.
    "GOMP_SPINCOUNT": "1000",
}
"""The environment variables that native libraries read when they are loaded. A variable that is set already keeps
its value."""
LINGER_SECONDS: Final = 0.2
"""How long the process stays after the last answer. Requests that are still on their way are refused. If they stayed
unread they would reset the connection at its end, and the client would lose what it has not read yet."""
PORT_MAX: Final = 65_535
STDIN: Final = 0


class StartError(Exception):
    """The engine cannot start. The message is the one line that the user sees."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Address:
    """The host and port at which the engine listens. The text form puts an IPv6 address in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def main(addr: str) -> int:
    """Serves at `addr`, HOST:PORT, until a signal ends it. Returns only if it could not start: the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("grpclib").setLevel(logging.WARNING)  # it reports every cancelled call
    for variable, value in NATIVE_SETTINGS.items():
        os.environ.setdefault(variable, value)
    try:
        address = parse_address(addr)
        check_installed()
        import uvloop

        uvloop.run(_serve(address, os.environ.get(TOKEN_VARIABLE, "")))
    except StartError as error:
        sys.stderr.write(f"gateway backend llama-cpp: {error}\n")
        return error.exit_code


def parse_address(addr: str) -> Address:
    """Parses HOST:PORT, with an IPv6 address in brackets. Port 0 lets the system choose. Raises `StartError`."""
    host, _, port = addr.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not host or (":" in host and not bracketed) or not (port.isascii() and port.isdecimal()):
        raise StartError(f"--addr must be HOST:PORT, not {addr!r}", EXIT_USAGE)
    if int(port) > PORT_MAX:
        raise StartError(f"--addr: there is no port {port}", EXIT_USAGE)
    return Address(host, int(port))


def check_installed() -> None:
    """Raises `StartError` that says what to install when llama.cpp can't be imported."""
    try:
        import uvloop  # noqa: F401 - only to see whether it is there
        import xllamacpp  # noqa: F401 - the same
    except ModuleNotFoundError as error:
        raise StartError(f"{error.name} is not installed: pip install 'gateway[llama]'", EXIT_FAILED) from error
    except ImportError as error:
        hint = "; install your system's libgomp1 (the OpenMP runtime)" if "libgomp" in str(error) else ""
        raise StartError(f"llama.cpp can't be loaded: {error}{hint}", EXIT_FAILED) from error


async def _serve(address: Address, token: str) -> NoReturn:
    from gateway.engines.llama_cpp.dispatch import Dispatcher
    from gateway.engines.llama_cpp.server import EngineServer
    from gateway.engines.llama_cpp.service import EngineService

    service = EngineService()
    dispatcher = Dispatcher(service.methods, token)
    server = EngineServer([dispatcher])
    terminated = _watch_signals()
    bound = await _listen(server, address)
    _watch_parent()
    freeze_startup_objects()
    log.info("listening on %s", bound)
    await terminated.wait()
    service.drain()
    await dispatcher.wait_finished()
    await asyncio.sleep(LINGER_SECONDS)
    await server.close_flushed()
    _exit(EXIT_DRAINED)


async def _listen(server: "EngineServer", address: Address) -> Address:
    """Binds the address, starts the server on it, and returns the address with the real port. Raises `StartError`."""
    listener = bind(address)
    await server.start(sock=listener)
    return Address(address.host, listener.getsockname()[1])


def bind(address: Address) -> socket.socket:
    """Binds a socket that no other program shares: SO_REUSEPORT would let two engines have one port (pitfall 33).
    Raises `StartError`."""
    try:
        family, kind, protocol, _, resolved = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"--addr: no such host {address.host!r}: {error}", EXIT_USAGE) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(resolved)
    except OSError as error:
        listener.close()
        raise StartError(f"can't listen on {address}: {error.strerror}", EXIT_FAILED) from error
    return listener


def _watch_signals() -> asyncio.Event:
    """Returns an event that the first SIGTERM sets. SIGINT, or another SIGTERM, ends the process at once."""
    loop = asyncio.get_running_loop()
    terminated = asyncio.Event()

    def on_term() -> None:
        """Begins the drain, or ends the process at a second signal."""
        if terminated.is_set():
            _exit(EXIT_SIGNALLED + signal.SIGTERM)
        terminated.set()

    loop.add_signal_handler(signal.SIGTERM, on_term)
    loop.add_signal_handler(signal.SIGINT, _exit, EXIT_SIGNALLED + signal.SIGINT)
    return terminated


def _watch_parent() -> None:
    """Ends the process with its parent, which holds the other end of stdin. A process that was started by hand has no
    such end."""
    try:
        mode = os.fstat(STDIN).st_mode
    except OSError:
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        threading.Thread(target=_exit_at_end_of_input, name="parent-watch", daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(STDIN, 4096):
        pass
    _exit(EXIT_ORPHANED)


def _exit(code: int) -> NoReturn:
    """Ends the process without Python's own exit, which aborts when a thread is inside llama.cpp."""
    logging.shutdown()
    os._exit(code)
