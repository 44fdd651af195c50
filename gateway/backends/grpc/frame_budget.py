"""The bound of frames that cost work and carry no call: PING, SETTINGS, resets of nothing (RFC 9113, 10.5). Pure."""

from typing import Final

from h2.errors import ErrorCodes

from gateway.backends.grpc.frames import BrokenConnection

FRAMES_MAX: Final = 1_000
"""How many such frames may come at once."""
FRAMES_PER_SECOND: Final = 100
FRAMES_PER_CALL_FRAME: Final = 10
"""How many more may come with each frame of a call. Servers of Go and of gRPC's C core ask with a PING how fast the
connection is, as often as data arrives."""


class FrameBudget:
    """Counts the frames of one connection that carry no call."""

    def __init__(self) -> None:
        self._left: float = FRAMES_MAX
        self._filled_at: float | None = None

    def earn(self, call_frames: int = 1) -> None:
        """Records frames of calls, which have come or were sent."""
        self._left = min(FRAMES_MAX, self._left + call_frames * FRAMES_PER_CALL_FRAME)

    def spend(self, now: float) -> None:
        """Records a frame that carries no call. Raises `BrokenConnection` if there were too many."""
        if self._filled_at is not None:
            self._left = min(FRAMES_MAX, self._left + (now - self._filled_at) * FRAMES_PER_SECOND)
        self._filled_at = now
        self._left -= 1
        if self._left < 0:
            raise BrokenConnection(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that carry no call")
