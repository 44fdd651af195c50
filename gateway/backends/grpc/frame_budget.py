"""The bound of frames that cost work and carry no call: PING, SETTINGS, resets of nothing (RFC 9113, 10.5). Pure."""

from typing import Final

from h2.errors import ErrorCodes

from gateway.backends.grpc.frames import BrokenConnection
from gateway.domain.pacing import TokenBucket

FRAMES_MAX: Final = 1_000
"""How many such frames may come at once."""
FRAMES_PER_SECOND: Final = 100
FRAMES_PER_CALL_FRAME: Final = 10
"""How many more may come with each frame of a call. Servers of Go and of gRPC's C core ask with a PING how fast the
connection is, as often as data arrives."""


class FrameBudget:
    """Counts the frames of one connection that carry no call."""

    def __init__(self) -> None:
        self._bucket = TokenBucket(FRAMES_PER_SECOND, burst=FRAMES_MAX)
        self._earned = 0
        """The frames of calls that the bucket does not know of yet."""

    def earn(self, call_frames: int = 1) -> None:
        """Records frames of calls, which have come or were sent."""
        self._earned += call_frames

    def spend(self, now: float) -> None:
        """Records a frame that carries no call. Raises `BrokenConnection` if there were too many."""
        self._bucket.give_back(self._earned * FRAMES_PER_CALL_FRAME)
        self._earned = 0
        if self._bucket.try_take(1, now):
            raise BrokenConnection(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that carry no call")
