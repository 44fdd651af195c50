"""Counts what a peer sends over HTTP/2 before any of it is worked on, and cuts it into small steps. Pure.

A frame costs its sender nothing and costs us a round through the protocol's state machine. Each kind of which nobody
needs many is allowed at once up to a number, and so many per second after that (RFC 9113, 10.5): PING and SETTINGS
floods (CVE-2019-9512 and 9515), empty DATA (CVE-2019-9518), resets by either side (CVE-2023-44487, CVE-2025-8671),
CONTINUATION without end (CVE-2024-27316). Whoever exceeds one is sent away with ENHANCE_YOUR_CALM.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

PREFACE_BYTES: Final = 24
"""`PRI * HTTP/2.0 ... SM`, which a client sends before its first frame."""
HEAD_BYTES: Final = 9
"""Of each frame: length (3), type, flags, stream (4)."""
END_STREAM: Final = 0x1
PADDED: Final = 0x8
PADDING_BYTES_MAX: Final = 256
CONTROL_BYTES: Final = 64
"""A control frame counts once more for each so many bytes that it brings: SETTINGS may name the same one thousands of
times."""
SMALL_DATA_BYTES: Final = 64
"""DATA of less that does not end its stream counts as empty: a body in such parts costs more than it brings."""
STEP_WEIGHT_MAX: Final = 8
"""Of the frames that are worked on in one go, so that everybody else has a turn in between."""
STEP_WEIGHT_HARD_MAX: Final = 32
"""The same, where a cut would part a request from its body or its reset."""
HEADERS_WEIGHT: Final = 3
WINDOW_UPDATES_PER_DATA: Final = 4
"""Frames by which a reader may acknowledge each DATA frame that it was sent: two are usual."""


class Flood(Exception):
    """The peer sends more of something than anybody needs; the message says of what."""


class Kind(IntEnum):
    """Types of frames (RFC 9113, 6). Those that are not named here are control frames as well."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    WINDOW_UPDATE = 8
    CONTINUATION = 9


@dataclass(frozen=True)
class Allowance:
    """How many frames or streams of one kind a peer may send: `at_once` in a burst, then `per_second`."""

    at_once: float
    per_second: float


@dataclass(frozen=True)
class FrameLimits:
    """What one HTTP/2 connection may send: an allowance for each kind of frame, and the largest header block."""

    control: Allowance
    """PING, SETTINGS, PRIORITY, CONTINUATION and whatever has no meaning here, each with or without ACK."""
    resets: Allowance
    """RST_STREAM; some clients reset a stream again for each frame of it that was on its way to them."""
    reset_streams: Allowance
    """Streams that the peer has reset, or by its faults had us reset, which the user of the meter has to tell it."""
    rapid_resets: Allowance
    """Requests that were reset in the same moment, before anybody could have worked on them."""
    small_data: Allowance
    """DATA frames that bring (almost) nothing, and do not end their stream."""
    window_updates: Allowance
    """Beyond those that acknowledge what was sent (`WINDOW_UPDATES_PER_DATA`)."""
    requests: Allowance | None
    """HEADERS; None: as many as it likes."""
    header_block_bytes_max: int
    """Of one request, as it is on the wire: HEADERS and its CONTINUATIONs."""


class FrameMeter:
    """Reads the heads of a client's frames, wherever the network has cut them."""

    def __init__(self, limits: FrameLimits) -> None:
        self._block_bytes_max = limits.header_block_bytes_max
        self._control = _Bucket("control frames", limits.control)
        self._resets = _Bucket("RST_STREAM frames", limits.resets)
        self._reset_streams = _Bucket("streams that were reset", limits.reset_streams)
        self._rapid_resets = _Bucket("requests reset in the same moment", limits.rapid_resets)
        self._small_data = _Bucket("empty DATA frames", limits.small_data)
        self._window_updates = _Bucket("WINDOW_UPDATE frames", limits.window_updates)
        self._requests = _Bucket("requests", limits.requests) if limits.requests is not None else None
        self._to_skip = PREFACE_BYTES
        """Bytes until the next frame begins."""
        self._head = b""
        """The part of a frame's head that has come."""
        self._block_bytes = 0
        """Of the header block that has begun last."""
        self._just_asked: set[bytes] = set()
        """Streams of the requests in what is being read."""

    def read(self, data: bytes, now: float) -> list[bytes]:
        """The same bytes in steps. Raises `Flood` before any of them is to be worked on."""
        steps: list[bytes] = []
        self._just_asked.clear()
        begin, place, weight = 0, 0, 0
        while True:
            place += self._skip(len(data) - place)
            if place == len(data):
                break
            frame_begins, wanted = place, HEAD_BYTES - len(self._head)
            self._head += data[place : place + wanted]
            place = min(place + wanted, len(data))
            if len(self._head) < HEAD_BYTES:
                break
            kind, size = self._head[3], int.from_bytes(self._head[:3])
            self._count(kind, self._head[4], size, self._head[5:], now)
            if frame_begins > begin and _is_full(weight, kind):
                steps.append(data[begin:frame_begins])
                begin, weight = frame_begins, 0
            weight += HEADERS_WEIGHT if kind == Kind.HEADERS else 1
            self._to_skip, self._head = size, b""
        return [*steps, data[begin:]] if begin < len(data) else steps

    def record_sent_data(self) -> None:
        """A DATA frame was sent, which the peer may acknowledge."""
        self._window_updates.give(WINDOW_UPDATES_PER_DATA)

    def record_reset_stream(self, now: float) -> None:
        """A stream has ended by a reset, whoever sent it. Raises `Flood`."""
        self._reset_streams.take(1, now)

    def _skip(self, available: int) -> int:
        skipped = min(self._to_skip, available)
        self._to_skip -= skipped
        return skipped

    def _count(self, kind: int, flags: int, size: int, stream: bytes, now: float) -> None:
        """Raises `Flood`."""
        match kind:
            case Kind.DATA:
                content = size - PADDING_BYTES_MAX if flags & PADDED else size
                if content < SMALL_DATA_BYTES and not flags & END_STREAM:
                    self._small_data.take(1, now)
            case Kind.HEADERS:
                self._block_bytes = 0
                self._count_block(size)
                self._just_asked.add(stream)
                if self._requests is not None:
                    self._requests.take(1, now)
            case Kind.RST_STREAM:
                self._resets.take(1, now)
                if stream in self._just_asked:
                    self._rapid_resets.take(1, now)
            case Kind.WINDOW_UPDATE:
                self._window_updates.take(1, now)
            case _:
                self._control.take(1 + size // CONTROL_BYTES if kind != Kind.CONTINUATION else 1, now)
                if kind == Kind.CONTINUATION:
                    self._count_block(size)

    def _count_block(self, size: int) -> None:
        self._block_bytes += size
        if self._block_bytes > self._block_bytes_max:
            raise Flood(f"a header block of more than {self._block_bytes_max} bytes")


class _Bucket:
    """A token bucket."""

    def __init__(self, name: str, allowance: Allowance) -> None:
        self._name = name
        self._allowance = allowance
        self._left = allowance.at_once
        self._filled_at: float | None = None

    def take(self, number: int, now: float) -> None:
        """Raises `Flood`."""
        seconds = 0.0 if self._filled_at is None else now - self._filled_at
        self._filled_at = now
        self.give(seconds * self._allowance.per_second)
        self._left -= number
        if self._left < 0:
            allowed = self._allowance
            raise Flood(f"more than {allowed.at_once:g} {self._name} at once, or {allowed.per_second:g} per second")

    def give(self, number: float) -> None:
        self._left = min(self._allowance.at_once, self._left + number)


def _is_full(weight: int, kind: int) -> bool:
    """Whether a frame of that kind is for the next step. What follows a request belongs to it as long as possible."""
    belongs = kind in (Kind.DATA, Kind.RST_STREAM, Kind.CONTINUATION)
    return weight >= (STEP_WEIGHT_HARD_MAX if belongs else STEP_WEIGHT_MAX)
