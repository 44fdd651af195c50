"""A gRPC connection whose backend has announced its end: open calls continue, and new ones go elsewhere.

GOAWAY without an error (RFC 9113, 6.8) names the last stream that the server processes. grpclib takes it for the end of
the connection and cuts every call. h2 does the same and reads no frame after it. Here it has its real meaning:

| the call                            | what becomes of it                                                          |
|-------------------------------------|-----------------------------------------------------------------------------|
| is not above the last stream        | goes on to its end, on this connection                                      |
| is above it, or was just to be sent | fails with `NotProcessed`: the backend has not looked at it and never will  |
| begins later                        | is made on a connection of its own, if the backend still takes one          |

Servers that end gracefully send it twice: first with the highest possible number, then, once they know that the client
has got it (after a PING), with the real one. A GOAWAY with an error ends the connection, as ever.
"""

from asyncio import Transport
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias
from weakref import WeakSet

from grpclib.config import Configuration
from grpclib.protocol import Connection, Stream
from grpclib.utils import Wrapper
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event
from hyperframe.frame import Frame, GoAwayFrame

from gateway.backends.call_errors import LEAVES, NotProcessed

FrameHandler: TypeAlias = Callable[[GoAwayFrame], tuple[list[Frame], list[Event]]]
BROKEN: Final = "the connection broke before the call began"


class LeavingConnection(Connection):
    """grpclib's connection, which can be left: then it continues its streams and takes no further ones."""

    def __init__(self, connection: H2Connection, transport: Transport, *, config: Configuration) -> None:
        super().__init__(connection, transport, config=config)
        self.is_leaving = False
        self._unsent: WeakSet[Stream] = WeakSet()
        """The streams of calls whose request waits to be sent. Streams that are sent or over may be among them."""
        _outlive_goaway(connection)

    def create_stream(self, *, stream_id: int | None = None, wrapper: Wrapper | None = None) -> Stream:
        """Creates a stream. Raises `NotProcessed` on a connection that is being left or has just broken: grpclib drops
        parts of a broken one, and would fail without them."""
        if self.is_leaving:
            raise NotProcessed(LEAVES)
        if self.is_closing():
            raise NotProcessed(BROKEN)
        stream = super().create_stream(stream_id=stream_id, wrapper=wrapper)
        self._unsent.add(stream)
        return stream

    def leave(self) -> None:
        """Leaves the connection: requests that are not sent yet are not sent here any more."""
        self.is_leaving = True
        for stream in self._unsent:
            if stream.id is None:
                fail_unprocessed(stream)
        self._unsent.clear()


def fail_unprocessed(stream: Stream) -> None:
    """Ends the call of a stream with `NotProcessed`. Does nothing for a stream without a call."""
    if stream.wrapper is not None:
        stream.wrapper.cancel(NotProcessed(LEAVES))


def is_graceful(event: ConnectionTerminated) -> bool:
    """Returns whether a GOAWAY carries NO_ERROR, so that open calls may continue (RFC 9113, 6.8)."""
    return event.error_code == ErrorCodes.NO_ERROR


def _outlive_goaway(connection: H2Connection) -> None:
    """Lets h2 read on after a GOAWAY without an error, for which it has no public function."""
    table = connection._frame_dispatch_table  # noqa: SLF001
    table[GoAwayFrame] = partial(_receive_goaway, table[GoAwayFrame])


def _receive_goaway(as_the_end: FrameHandler, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
    if frame.error_code != ErrorCodes.NO_ERROR:
        return as_the_end(frame)
    event = ConnectionTerminated()
    event.error_code, event.last_stream_id = ErrorCodes.NO_ERROR, frame.last_stream_id
    return [], [event]
