"""The accept loop of one listening socket, which outlasts a lack of file descriptors."""

import errno
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import structlog
import trio

log = structlog.get_logger(__name__)

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
PAUSE_SECONDS: Final = 0.1
"""How long to wait for a free descriptor. The connection stays in the backlog meanwhile."""


async def accept_connections(
    listener: trio.SocketListener, serve: Callable[[trio.SocketStream], Awaitable[None]], connections: trio.Nursery
) -> NoReturn:
    """Accepts connections and starts `serve` for each. If the process has no descriptor left it waits, and logs that
    once until it can accept again."""
    is_exhausted = False
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            if not is_exhausted:
                log.warning("http.no_descriptor_left", cause=error.strerror, remedy="raise the limit of open files")
            is_exhausted = True
            await trio.sleep(PAUSE_SECONDS)
        else:
            if is_exhausted:
                log.info("http.descriptors_left_again")
            is_exhausted = False
            connections.start_soon(_serve, serve, stream)


async def _serve(serve: Callable[[trio.SocketStream], Awaitable[None]], stream: trio.SocketStream) -> None:
    try:
        await serve(stream)
    finally:
        await trio.aclose_forcefully(stream)
