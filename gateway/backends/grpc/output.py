"""The unsent output of a connection: frames in their order, and then request bodies as the windows allow. Pure."""

from typing import Final

from h2.errors import ErrorCodes

from gateway.backends.grpc.flow import ReceiveWindow, SendWindow
from gateway.backends.grpc.frames import DATA, END_STREAM, FRAME_BYTES_MAX, BrokenConnection, frame_head

REPLIES_MAX: Final = 10_000
"""How many answers to PING and the like may wait for a backend that does not read them."""


class StreamState:
    """One open stream: its windows, and the part of its request body that is not sent yet."""

    __slots__ = ("has_headers", "received", "sendable", "unsent")

    def __init__(self, body: bytes, send_bytes: int, receive_bytes: int) -> None:
        self.unsent = memoryview(body)
        self.sendable = SendWindow(send_bytes)
        self.received = ReceiveWindow(receive_bytes)
        self.has_headers = False
        """Whether the backend has begun to answer."""


class Output:
    """The output of one connection. `take` returns it in portions, so that a large body is never copied as a whole."""

    def __init__(self) -> None:
        self.frame_bytes_max = FRAME_BYTES_MAX
        self.window = SendWindow()
        self._frames: list[bytes | memoryview] = []
        self._replies = 0
        self._bodies: dict[int, StreamState] = {}
        self._sent: list[int] = []

    def add(self, data: bytes) -> None:
        """Adds frames that are sent as soon as possible."""
        self._frames.append(data)

    def add_reply(self, data: bytes) -> None:
        """Adds a frame that the other side has caused. Raises `BrokenConnection` if it causes too many and reads
        none."""
        self._replies += 1
        if self._replies > REPLIES_MAX:
            raise BrokenConnection(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that have to be answered")
        self._frames.append(data)

    def add_body(self, stream_id: int, stream: StreamState) -> None:
        """Adds the body of a request whose headers were added before."""
        self._bodies[stream_id] = stream

    def drop_body(self, stream_id: int) -> bool:
        """Drops what is unsent of a body. Returns whether there was anything."""
        return self._bodies.pop(stream_id, None) is not None

    def take(self, bytes_max: int) -> tuple[bytes, int]:
        """Returns what can be sent now: all frames, and of bodies about `bytes_max` bytes. The second value is the
        number of the bodies' frames."""
        parts, self._frames, self._replies = self._frames, [], 0
        frames_before = len(parts)
        while self._bodies and bytes_max > 0:
            taken = sum([self._take_part(stream_id, parts) for stream_id in tuple(self._bodies)])
            if not taken:
                break
            bytes_max -= taken
        return b"".join(parts), (len(parts) - frames_before) // 2

    def take_sent(self) -> list[int]:
        """Returns the streams whose bodies have been taken to their end since the last call."""
        sent, self._sent = self._sent, []
        return sent

    def _take_part(self, stream_id: int, parts: list[bytes | memoryview]) -> int:
        """Takes one frame of a body. Returns the number of its bytes."""
        stream = self._bodies[stream_id]
        left = len(stream.unsent)
        size = min(left, self.frame_bytes_max, self.window.available, stream.sendable.available)
        if size <= 0 < left:
            return 0
        parts += (frame_head(DATA, END_STREAM if size == left else 0, stream_id, size), stream.unsent[:size])
        self.window.take(size)
        stream.sendable.take(size)
        stream.unsent = stream.unsent[size:]
        if size == left:
            del self._bodies[stream_id]
            self._sent.append(stream_id)
        return size
