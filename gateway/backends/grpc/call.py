"""One call: what a connection and the reader of its answer have to know of each other."""

from collections.abc import Mapping
from typing import Protocol

import structlog

from gateway.backends.grpc.answer import AnswerReader
from gateway.backends.metadata import MESSAGE_BYTES_MAX
from gateway.concurrency import ParkingSpot

log = structlog.get_logger(__name__)


class AnswerSink(Protocol):
    """Takes an answer as it arrives. It is called by the connection's reader, and so never waits."""

    @property
    def is_full(self) -> bool:
        """Whether the backend has to wait until something was read."""

    def take(self, message: bytes) -> bool:
        """Takes a message. Returns False if no further one is wanted: then the call is cancelled and has ended."""

    def end(self, error: Exception | None) -> None:
        """Takes the end of the call, after all messages. `error` says why it failed, or is None."""


class Carrier(Protocol):
    """The connection of a call, as the call sees it."""

    def cancel(self, call: "OutgoingCall") -> None:
        """Ends a call that has not ended by itself, and tells the backend at once."""

    def acknowledge(self, call: "OutgoingCall") -> None:
        """Lets the backend send more of an answer, after some of it was read."""


class OutgoingCall:
    """A call from its request to the end of its answer. Its connection drives it."""

    def __init__(self, sink: AnswerSink) -> None:
        self.is_sent = False
        """Whether the whole request was given to the network, so that the backend may work on it."""
        self.has_ended = False
        self.stream_id = 0
        """The number of its stream; 0 before the call is started."""
        self._carrier: Carrier | None = None
        self._sink = sink
        self._reader = AnswerReader(MESSAGE_BYTES_MAX)
        self._owed = 0
        self._changed = ParkingSpot()

    @property
    def trailers(self) -> Mapping[str, str]:
        """The trailers. There are none before the end."""
        return self._reader.trailers

    def begin(self, carrier: Carrier, stream_id: int) -> None:
        """Records that the call is on a connection now."""
        self._carrier, self.stream_id = carrier, stream_id

    def cancel(self) -> None:
        """Ends the call if it has not ended: nobody waits for it any more."""
        if not self.has_ended:
            self.has_ended = True
            if self._carrier is not None:
                self._carrier.cancel(self)

    def read_on(self) -> None:
        """Records that some of the answer was read, so that the backend may send more."""
        if self._owed and not self.has_ended and self._carrier is not None:
            self._carrier.acknowledge(self)

    async def wait_sent(self) -> None:
        """Waits until the request is sent or the call has ended."""
        while not self.is_sent and not self.has_ended:
            await self._changed.wait()

    def mark_sent(self) -> None:
        """Records that the request is sent."""
        self.is_sent = True
        self._changed.wake()

    def receive_headers(self, fields: Mapping[str, str]) -> None:
        """Takes the headers or the trailers."""
        try:
            self._reader.read_headers(fields)
        except Exception as error:  # noqa: BLE001 - it ends this call and no other
            self.end(error)

    def receive_data(self, data: bytes) -> None:
        """Takes a part of the answer."""
        self._owed += len(data)
        try:
            for message in self._reader.read_data(data):
                if not self._sink.take(message):
                    self.has_ended = True
                    return
        except Exception as error:  # noqa: BLE001 - it ends this call and no other
            self.end(error)

    def take_owed(self) -> int:
        """Returns the number of bytes to acknowledge now: none while too much is unread."""
        if self._sink.is_full:
            return 0
        owed, self._owed = self._owed, 0
        return owed

    def finish(self) -> None:
        """Takes the end of the answer as the backend has meant it."""
        try:
            self._reader.finish()
        except Exception as error:  # noqa: BLE001 - it ends this call and no other
            self.end(error)
        else:
            self.end(None)

    def end(self, error: Exception | None) -> None:
        """Ends the call. Does nothing if it has ended."""
        if self.has_ended:
            return
        self.has_ended = True
        self._changed.wake()
        try:
            self._sink.end(error)
        except Exception:
            log.exception("backend.end_of_call_failed")
