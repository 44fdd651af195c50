"""Counts what a peer sends over HTTP/2 before any of it is processed, and cuts it into small steps. Pure.

A frame costs its sender nothing, and costs the receiver a round through the protocol's state machine. Frames that
nobody needs in large numbers are allowed up to a number at once, and at a rate after that (RFC 9113, 10.5): PING and
SETTINGS floods (CVE-2019-9512 and 9515), empty DATA (CVE-2019-9518), resets by either side (CVE-2023-44487,
CVE-2025-8671), CONTINUATION without end (CVE-2024-27316). A peer that exceeds one is disconnected with
ENHANCE_YOUR_CALM.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

PREFACE_BYTES: Final = 24
"""The length of `PRI * HTTP/2.0 ... SM`, which a client sends before its first frame."""
HEAD_BYTES: Final = 9
"""The length of each frame's head: length (3), type, flags, stream (4)."""
END_STREAM: Final = 0x1
PADDED: Final = 0x8
PADDING_BYTES_MAX: Final = 256
CONTROL_BYTES: Final = 64
"""A control frame counts once more for each such number of bytes: SETTINGS may name the same setting thousands of
times."""
SMALL_DATA_BYTES: Final = 64
"""A DATA frame with fewer bytes that does not end its stream counts as empty, because such parts cost more than they
bring."""
STEP_WEIGHT_MAX: Final = 8
"""The weight of the frames that are processed in one step, so that other connections have a turn in between."""
STEP_WEIGHT_HARD_MAX: Final = 32
"""The same if a cut would separate a request from its body or its reset."""
HEADERS_WEIGHT: Final = 3
WINDOW_UPDATES_PER_DATA: Final = 4
"""The number of frames with which a reader may acknowledge each DATA frame. Two are usual."""


class Flood(Exception):
    """The peer sends more frames of a kind than anybody needs. The message names the kind."""


class Kind(IntEnum):
    """The types of frames (RFC 9113, 6). All other types are control frames as well."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    WINDOW_UPDATE = 8
    CONTINUATION = 9


@dataclass(frozen=True)
class Allowance:
    """The number of frames or streams of one kind that a peer may send: `at_once` in a burst, then `per_second`."""

    at_once: float
    per_second: float


@dataclass(frozen=True)
class FrameLimits:
    """The limits of one HTTP/2 connection: an allowance for each kind of frame, and the largest header block."""

    control: Allowance
    """The limit of PING, SETTINGS, PRIORITY, CONTINUATION and unknown frames, each with or without ACK."""
    resets: Allowance
    """The limit of RST_STREAM frames. Some clients reset a stream again for each of its frames that is still on the
    way."""
    reset_streams: Allowance
    """The limit of streams that the peer has reset, or that were reset because of its faults. The meter has to be
    told of the latter."""
    rapid_resets: Allowance
    """The limit of requests that were reset in the same moment, before they could be processed."""
    small_data: Allowance
    """The limit of DATA frames that carry (almost) no data and do not end their stream."""
    window_updates: Allowance
    """The limit of window updates beyond those that acknowledge sent data (`WINDOW_UPDATES_PER_DATA`)."""
    requests: Allowance | None
    """The limit of HEADERS frames. None means no limit."""
    header_block_bytes_max: int
    """The largest header block of one request, as it is on the wire: HEADERS and its CONTINUATIONs."""


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
        """The number of bytes until the next frame begins."""
        self._head = b""
        """The received part of a frame's head."""
        self._block_bytes = 0
        """The size of the header block that has begun last."""
        self._just_asked: set[bytes] = set()
        """The streams of the requests in the data that is being read."""

    def read(self, data: bytes, now: float) -> list[bytes]:
        """Returns the same bytes in steps. Raises `Flood` before any of them may be processed."""
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
        """Records that a DATA frame was sent, which the peer may acknowledge."""
        self._window_updates.give(WINDOW_UPDATES_PER_DATA)

    def record_reset_stream(self, now: float) -> None:
        """Records that a stream has ended by a reset of either side. Raises `Flood`."""
        self._reset_streams.take(1, now)

    def _skip(self, available: int) -> int:
        skipped = min(self._to_skip, available)
        self._to_skip -= skipped
        return skipped

    def _count(self, kind: int, flags: int, size: int, stream: bytes, now: float) -> None:
        """Counts one frame. Raises `Flood`."""
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
        """Takes from the bucket. Raises `Flood` if it does not have enough."""
        seconds = 0.0 if self._filled_at is None else now - self._filled_at
        self._filled_at = now
        self.give(seconds * self._allowance.per_second)
        self._left -= number
        if self._left < 0:
            allowed = self._allowance
            raise Flood(f"more than {allowed.at_once:g} {self._name} at once, or {allowed.per_second:g} per second")

    def give(self, number: float) -> None:
        """Fills the bucket by `number`, up to its size."""
        self._left = min(self._allowance.at_once, self._left + number)


def _is_full(weight: int, kind: int) -> bool:
    """Returns whether a frame of that kind belongs to the next step. Frames that follow a request stay in its step as
    long as possible."""
    belongs = kind in (Kind.DATA, Kind.RST_STREAM, Kind.CONTINUATION)
    return weight >= (STEP_WEIGHT_HARD_MAX if belongs else STEP_WEIGHT_MAX)
