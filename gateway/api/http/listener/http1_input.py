"""The input of one HTTP/1 connection: read by one task, parsed for another, and bounded in between.

The reading task stays at the socket as long as there is room, so that it notices when the client leaves. On an idle
connection it costs nothing but one deadline: that of the next request's head.
"""

import math
from typing import Final

import trio

from gateway.api.http.client_watch import ClientWatch
from gateway.api.http.listener.byte_stream import ByteStream
from gateway.api.http.listener.dropping import Dropping
from gateway.api.http.listener.http1_head import Head
from gateway.api.http.listener.http1_parser import BodyPart, Event, Http1Parser
from gateway.concurrency import ParkingSpot

UNREAD_BYTES_MAX: Final = 64 * 1024
"""The limit of what has arrived and is not processed. Beyond it nothing is read from the socket."""

DROP_SECONDS: Final = 5.0
"""How long a client may go on sending after a request that was not understood."""
DROP_IDLE_SECONDS: Final = 0.25
"""The same if nothing more comes."""


class Http1Input:
    """The incoming side of a connection. `run` reads; everything else is for the task that serves the requests."""

    __slots__ = (
        "_dropping",
        "_head_timeout_seconds",
        "_idle_since",
        "_is_dropping",
        "_is_refused",
        "_parser",
        "_room",
        "_stream",
        "_watch",
        "body_is_open",
        "changed",
        "dropped_parts",
        "is_gone",
    )

    def __init__(
        self, stream: ByteStream, parser: Http1Parser, dropping: Dropping, *, head_timeout_seconds: float
    ) -> None:
        self._stream = stream
        self._parser = parser
        self._head_timeout_seconds = head_timeout_seconds
        self._dropping = dropping
        self.changed = ParkingSpot()
        """The serving task waits here until something has come, the client has left, or somebody wakes it."""
        self._room = ParkingSpot()
        """The reading task waits here until something was processed."""
        self._idle_since = trio.current_time()
        """The time since which there is no request, or infinity while there is one."""
        self._is_dropping = False
        """Whether the rest of the request's body is thrown away."""
        self._is_refused = False
        """Whether everything that comes is thrown away."""
        self._watch: ClientWatch | None = None
        self.body_is_open = False
        """Whether the end of the current request's body is still to come."""
        self.dropped_parts = 0
        """How many times a part of a refused body was thrown away."""
        self.is_gone = False
        """Whether the client has left, or has sent no request for too long."""

    # The task that reads

    async def run(self) -> None:
        """Reads until the client has left or is late with a request. Then nothing waits for it any more."""
        try:
            while await self._read_until_check():
                pass
        finally:
            self.record_gone()

    async def _read_until_check(self) -> bool:
        """Reads until the client has left, or until a request could be late. Returns whether it is not so.

        The deadline is not moved for each request. A connection that was busy is looked at again later.
        """
        with trio.CancelScope(deadline=self._check_at()) as scope:
            await self._read()
        return scope.cancelled_caught and trio.current_time() < self._check_at()

    def _check_at(self) -> float:
        since = self._idle_since if self._idle_since < math.inf else trio.current_time()
        return since + self._head_timeout_seconds

    async def _read(self) -> None:
        while True:
            room = UNREAD_BYTES_MAX - self._parser.unread_bytes
            if room <= 0:
                await self._room.wait()
                continue
            await self._dropping.wait_turn()
            data = await self._stream.receive(room)
            if not data:
                return
            if self._is_refused:
                self._dropping.record(len(data))
                self.dropped_parts += 1
                continue
            self._parser.feed(data)
            if self._is_dropping:
                self._dropping.record(len(data))
                await self._drop()
            self.changed.wake()

    async def _drop(self) -> None:
        """Throws away what has arrived of a refused body. Other tasks have their turn in between."""
        while self._is_dropping and (event := self._parser.next_event()) is not None:
            self.dropped_parts += 1
            if not isinstance(event, BodyPart):
                self.record_gone()  # The end of the body cannot be found.
            self._is_dropping = self.body_is_open = isinstance(event, BodyPart) and not event.is_last
            if self._is_dropping:
                await trio.lowlevel.cancel_shielded_checkpoint()

    def record_gone(self) -> None:
        """Notes that the client has left, and ends what is done for it."""
        self.is_gone = True
        if self._watch is not None:
            self._watch.record_gone()
        self.changed.wake()

    # The task that serves the requests

    def next_event(self) -> Event | None:
        """Returns the next event of the parser, or None until there is more."""
        event = self._parser.next_event()
        if isinstance(event, BodyPart):
            self.body_is_open = not event.is_last
        self._room.wake()
        return event

    def begin_request(self, head: Head, watch: ClientWatch) -> None:
        """Notes that a request has begun, and who is to know when its client leaves."""
        self._idle_since = math.inf
        self._watch = watch
        self.body_is_open = head.body_bytes != 0
        self.dropped_parts = 0
        if self.is_gone:
            watch.record_gone()

    async def drop_rest(self) -> None:
        """Throws away the rest of the request's body from now on."""
        if self.body_is_open:
            self._is_dropping = True
            await self._drop()
            self._room.wake()

    async def drop_all(self) -> None:
        """Throws away what comes on a connection that is about to be closed, until its client is silent.

        Closing a socket with unread data resets the connection, and a client that still sends would not see the answer.
        """
        self._is_refused = True
        self._parser.take_rest()
        self._room.wake()
        seen = -1
        with trio.move_on_after(DROP_SECONDS):
            while not self.is_gone and self.dropped_parts != seen:
                seen = self.dropped_parts
                with trio.move_on_after(DROP_IDLE_SECONDS):
                    await self.changed.wait()

    def end_request(self) -> None:
        """Notes that the request was answered. The time for the head of the next one begins."""
        self._idle_since = trio.current_time()
        self._watch = None

    def take_rest(self) -> bytes:
        """Returns the bytes that have come and are in no event."""
        return self._parser.take_rest()
