"""The answer of a unary call: at most one message, for which one task waits."""

from grpclib import GRPCError, Status

from gateway.concurrency import ParkingSpot


class UnaryAnswer:
    """An `AnswerSink` for one message."""

    is_full = False

    def __init__(self) -> None:
        self._message: bytes | None = None
        self._error: Exception | None = None
        self._has_ended = False
        self._changed = ParkingSpot()

    def take(self, message: bytes) -> bool:
        """Takes the message. Raises `GRPCError` if there is a second one."""
        if self._message is not None:
            raise GRPCError(Status.INTERNAL, "it answered a unary call with several messages")
        self._message = message
        return True

    def end(self, error: Exception | None) -> None:
        """Takes the end of the call."""
        self._error = error
        self._has_ended = True
        self._changed.wake()

    async def wait(self) -> bytes | None:
        """Waits for the end of the call. Returns its message, or None if there was none. Raises the error with which
        it ended."""
        while not self._has_ended:
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        return self._message
