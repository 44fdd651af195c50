"""What a peer may send over HTTP/2, and how it is cut into steps."""

import struct
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.frame_meter import HEAD_BYTES, STEP_WEIGHT_HARD_MAX, Allowance, Flood, FrameLimits, FrameMeter, Kind

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING, SETTINGS, PRIORITY, GOAWAY, UNKNOWN = 6, 4, 2, 7, 0xBB
TEN: Final = Allowance(10, 2)
LIMITS: Final = FrameLimits(TEN, TEN, TEN, TEN, TEN, TEN, TEN, header_block_bytes_max=1000)


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 1) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


PING_FRAME: Final = frame(PING, bytes(8))
COUNTED: Final = {
    "ping": PING_FRAME,
    "ping_ack": frame(PING, bytes(8), flags=1),
    "settings": frame(SETTINGS),
    "settings_ack": frame(SETTINGS, flags=1),
    "priority": frame(PRIORITY, bytes(5)),
    "goaway": frame(GOAWAY, bytes(8)),
    "unknown": frame(UNKNOWN, b"x"),
    "continuation": frame(Kind.CONTINUATION),
    "reset": frame(Kind.RST_STREAM, bytes(4)),
    "empty_data": frame(Kind.DATA),
    "tiny_data": frame(Kind.DATA, b"x"),
    "padding_only": frame(Kind.DATA, b"\xc8" + bytes(200), flags=8),
    "window": frame(Kind.WINDOW_UPDATE, bytes(4)),
    "request": frame(Kind.HEADERS, b"x"),
}


def started() -> FrameMeter:
    meter = FrameMeter(LIMITS)
    assert meter.read(PREFACE, 0) == [PREFACE]
    return meter


@pytest.mark.parametrize("sent", COUNTED.values(), ids=COUNTED)
def test_ten_at_once_are_allowed_and_two_per_second_after_that(sent: bytes) -> None:
    meter = started()
    meter.read(sent * 10, 0)
    with pytest.raises(Flood):
        meter.read(sent, 0.4)
    meter = started()
    meter.read(sent * 10, 0)
    meter.read(sent * 2, 1)
    with pytest.raises(Flood):
        meter.read(sent, 1)


@pytest.mark.parametrize("sent", COUNTED.values(), ids=COUNTED)
def test_a_long_silence_saves_up_no_more_than_is_allowed_at_once(sent: bytes) -> None:
    meter = started()
    meter.read(sent, 0)
    with pytest.raises(Flood):
        meter.read(sent * 11, 1e6)


@pytest.mark.parametrize(
    "sent", [frame(Kind.DATA, bytes(64)), frame(Kind.DATA, flags=1), frame(Kind.DATA, b"x", flags=1)]
)
def test_data_that_brings_something_or_ends_its_stream_is_free(sent: bytes) -> None:
    started().read(sent * 1000, 0)


def test_a_large_control_frame_counts_as_several() -> None:
    with pytest.raises(Flood):
        started().read(frame(SETTINGS, bytes(6) * 120), 0)


def test_what_was_sent_may_be_acknowledged() -> None:
    meter = started()
    for _ in range(100):
        meter.read(COUNTED["window"] * 2, 0)
        meter.record_sent_data()
    with pytest.raises(Flood):
        meter.read(COUNTED["window"] * 11, 0)


def test_streams_that_were_reset_are_counted_as_they_are_reported() -> None:
    meter = started()
    for _ in range(10):
        meter.record_reset_stream(0)
    with pytest.raises(Flood):
        meter.record_reset_stream(0.4)


def test_requests_that_are_reset_in_the_same_moment_are_few() -> None:
    def pairs(number: int) -> bytes:
        ask, reset = (Kind.HEADERS, b"x"), (Kind.RST_STREAM, bytes(4))
        return b"".join(frame(*each, stream=1 + 2 * at) for at in range(number) for each in (ask, reset))

    wide = Allowance(1000, 0)
    limits = FrameLimits(wide, wide, wide, TEN, wide, wide, None, header_block_bytes_max=1000)
    FrameMeter(limits).read(PREFACE + pairs(10), 0)
    with pytest.raises(Flood, match="in the same moment"):
        FrameMeter(limits).read(PREFACE + pairs(11), 0)
    meter = FrameMeter(limits)
    meter.read(PREFACE, 0)
    for _ in range(30):
        meter.read(frame(Kind.HEADERS, b"x"), 0)
        meter.read(frame(Kind.RST_STREAM, bytes(4)), 0)


def test_a_header_block_is_bounded_over_all_its_frames() -> None:
    meter = started()
    meter.read(frame(Kind.HEADERS, bytes(500)) + frame(Kind.CONTINUATION, bytes(500)), 0)
    meter.read(frame(Kind.HEADERS, bytes(999)) + frame(Kind.CONTINUATION, bytes(1)), 0)
    with pytest.raises(Flood, match="header block"):
        meter.read(frame(Kind.CONTINUATION, b"x"), 0)


def test_a_frame_that_was_announced_only_is_counted_before_it_comes() -> None:
    with pytest.raises(Flood, match="header block"):
        started().read(frame(Kind.HEADERS, bytes(2000))[:HEAD_BYTES], 0)


def test_a_flood_is_seen_before_any_of_it_is_worked_on() -> None:
    with pytest.raises(Flood):
        started().read(PING_FRAME * 5 + COUNTED["request"] + PING_FRAME * 6, 0)


def test_a_request_is_not_parted_from_its_body_and_its_reset() -> None:
    whole = COUNTED["request"] + frame(Kind.DATA, bytes(100)) + COUNTED["reset"]
    assert started().read(whole * 4, 0) == [whole * 2, whole * 2]


WIDE: Final = Allowance(1e9, 0)
FREE: Final = FrameLimits(WIDE, WIDE, WIDE, WIDE, WIDE, WIDE, None, header_block_bytes_max=10**9)
KINDS: Final = st.integers(0, 12)
FRAMES: Final = st.lists(st.builds(frame, KINDS, st.binary(max_size=300)), max_size=60)


@settings(deadline=None)
@given(FRAMES, st.data())
def test_steps_are_the_same_bytes_and_begin_with_a_frame(frames: list[bytes], data: st.DataObject) -> None:
    sent = PREFACE + b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    begins = {len(PREFACE) + sum(map(len, frames[:index])) for index in range(len(frames) + 1)}
    meter, steps = FrameMeter(FREE), list[bytes]()
    for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        place = begin
        for step in meter.read(sent[begin:end], 0):
            assert place == begin or place in begins
            inside = [at for at in begins if place < at < place + len(step)]
            assert len(inside) <= STEP_WEIGHT_HARD_MAX + 1
            place += len(step)
            steps.append(step)
        assert place == end
    assert b"".join(steps) == sent


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(COUNTED)), max_size=40))
def test_wherever_it_is_cut_the_same_is_counted(names: list[str]) -> None:
    sent = PREFACE + b"".join(COUNTED[name] for name in names)

    def is_flood(parts: list[bytes]) -> bool:
        meter = FrameMeter(LIMITS)
        try:
            for part in parts:
                meter.read(part, 0)
        except Flood:
            return True
        return False

    whole = is_flood([sent])
    assert is_flood([sent[at : at + 1] for at in range(len(sent))]) == whole
    for at in range(len(sent) + 1):
        assert is_flood([sent[:at], sent[at:]]) == whole
