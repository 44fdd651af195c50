"""GGUF headers, of the reference library and hostile ones: read, or refused by name, in bounded time."""

import contextlib
import io
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.gguf.cache import LoadSettings
from gateway.gguf.errors import BrokenHeader, NeedMore
from gateway.gguf.estimate import estimate
from gateway.gguf.files import read_file, read_model
from gateway.gguf.header import ARRAY_ITEMS_MAX, TENSORS_MAX, Header, read_header
from gateway.gguf.reader import HEADER_BYTES_MAX
from gateway.gguf.tensors import BLOCK_OF, TENSOR_TYPES
from tests.fakes.gguf_models import Shape, write_model

EMPTY = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
ONE_KEY = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
KEY = struct.pack("<Q1s", 1, b"k")
COUNTS_AT = (8, 16)
"""Where a header says how many tensors and how many keys it has."""
HUGE = (2**31, 2**32, 2**62, 2**63, 2**64 - 1)
SMALL = Shape(layers=2, embedding=64, heads=2, head_length=32, kv_heads=(2, 1), feed_forward=64, vocabulary=300)


@cache
def sample() -> bytes:
    """A small model: the whole of its header, and no weights."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "small.gguf"
        write_model(path, SMALL)
        return path.read_bytes()[: read_file(path).data_offset]


def tensor(name: bytes, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack("<I", len(shape))
        + dimensions
        + struct.pack("<IQ", kind, offset)
    )


def listing(*tensors: bytes) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 0) + b"".join(tensors)


def test_everything_is_read_as_the_reference_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, SMALL)
    header, reference = read_file(path), gguf.GGUFReader(path)
    ours = {each.name: (list(each.shape), each.size_bytes, header.data_offset + each.offset) for each in header.tensors}
    assert ours == {each.name: (each.shape.tolist(), each.n_bytes, each.data_offset) for each in reference.tensors}
    listed = {*header.metadata, *header.lengths}
    fields = {name for name in reference.fields if not name.startswith("GGUF.")}
    assert listed == fields
    assert header.architecture == "llama"
    assert header.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert header.arrays["llama.attention.head_count_kv"] == (2, 1)
    assert header.lengths["tokenizer.ggml.tokens"] == 300
    assert header.weights.total == sum(each.n_bytes for each in reference.tensors)
    assert header.file_bytes_min <= path.stat().st_size


def test_every_type_has_the_size_of_the_reference_library() -> None:
    known = {kind.value: (kind.name.lower(), *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {number: known[number] for number in TENSOR_TYPES if number in known} == TENSOR_TYPES
    assert len(BLOCK_OF) == len(TENSOR_TYPES)


def test_a_file_in_parts_is_one_model(tmp_path: Path) -> None:
    for part in (1, 2):
        write_model(tmp_path / f"m-{part:05}-of-00002.gguf", SMALL)
    one = read_file(tmp_path / "m-00001-of-00002.gguf")
    assert len(read_model(tmp_path / "m-00001-of-00002.gguf").tensors) == 2 * len(one.tensors)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "m-00001-of-00002.gguf")


def test_a_file_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    path.write_bytes(sample())
    assert read_file(path).tensors
    with pytest.raises(BrokenHeader, match="cut short"):
        read_model(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"127.0.0.1 localhost", "not a GGUF file"),
        (struct.pack("<4sIQQ", b"GGUF", 99, 0, 0), "version 99"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0), "number of tensors at byte 8"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63), "number of keys at byte 16"),
        (ONE_KEY + struct.pack("<Q", 2**60), "a key at byte 24 claims"),
        (ONE_KEY + KEY + struct.pack("<IQ", 8, 2**60), "value of 'k' at byte 37 claims"),
        (ONE_KEY + KEY + struct.pack("<I", 77), "value of 'k' at byte 37 is of unknown type 77"),
        (ONE_KEY + KEY + struct.pack("<IIQ", 9, 4, 2**60), "value of 'k' at byte 41 claims"),
        (ONE_KEY + KEY + struct.pack("<IIQ", 9, 9, 1), "unknown type 9"),
        (ONE_KEY + KEY + struct.pack("<IIQQ", 9, 8, 1, 2**40), "value of 'k' at byte 49 claims"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + (KEY + struct.pack("<IB", 0, 1)) * 2, "'k' is there twice"),
        (listing(tensor(b"a", 4, kind=99)), "tensor 'a' is of unknown type 99"),
        (listing(tensor(b"a", 1, 1, 1, 1, 1)), "tensor 'a' has 5 dimensions"),
        (listing(tensor(b"a", 2**63, 2**63)), "tensor 'a' claims a shape"),
        (listing(tensor(b"a", 4, offset=2**63)), "tensor 'a' claims a shape"),
        (listing(tensor(b"a", 33, kind=8)), "no multiple of a block of q8_0"),
        (listing(tensor(b"a", 4), tensor(b"a", 4, offset=32)), "'a' is there twice"),
        (listing(tensor(b"a", 9), tensor(b"b", 4, offset=32)), "'a' and 'b' overlap"),
        (ONE_KEY + struct.pack("<Q17sIB", 17, b"general.alignment", 0, 0), "aligned to 0"),
    ],
)
def test_a_broken_header_says_what_and_where(data: bytes, message: str) -> None:
    with pytest.raises(BrokenHeader, match=message) as caught:
        header_of(data)
    assert not isinstance(caught.value, NeedMore)


def test_a_prefix_of_any_length_asks_for_more() -> None:
    whole = sample()
    end = read_header(io.BytesIO(whole))
    for length in range(len(whole) - 32):
        with pytest.raises(NeedMore) as caught:
            header_of(whole[:length])
        assert length < caught.value.wanted_bytes <= len(whole)
    assert end.tensors


def test_following_what_is_wanted_ends() -> None:
    whole, length, rounds = sample(), 4, 0
    while True:
        try:
            header_of(whole[:length])
            break
        except NeedMore as error:
            length, rounds = error.wanted_bytes, rounds + 1
    assert rounds < len(whole)


@pytest.mark.parametrize("second", [0, 8, 12])
def test_the_limit_of_arrays_is_for_all_of_a_header_together(second: int) -> None:
    """Numbers and strings alike; the first array leaves one item to the others."""
    first = KEY + struct.pack("<IIQ", 9, 0, ARRAY_ITEMS_MAX - 1) + bytes(ARRAY_ITEMS_MAX - 1)
    beginning = struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + first + struct.pack("<Q1sII", 1, b"l", 9, second)
    with pytest.raises(
        BrokenHeader, match=r"value of 'l' at byte \d+ claims a count of 2; at most 1 are read"
    ) as caught:
        header_of(beginning + struct.pack("<Q", 2) + bytes(16))
    assert not isinstance(caught.value, NeedMore)
    whole = header_of(beginning + struct.pack("<Q", 1) + bytes(8))
    assert whole.lengths == {"k": ARRAY_ITEMS_MAX - 1, "l": 1}


class Endless(io.RawIOBase):
    """A stream that never ends, and counts what is taken of it."""

    def __init__(self, beginning: bytes, goes_on: bytes) -> None:
        self._beginning, self._goes_on, self.taken = io.BytesIO(beginning), goes_on, 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._beginning.read(size) or (self._goes_on * (size // len(self._goes_on) + 1))[:size]
        self.taken += len(data)
        return data


@pytest.mark.parametrize(
    ("beginning", "goes_on"),
    [
        (struct.pack("<4sIQQ", b"GGUF", 3, TENSORS_MAX, 10_000), b"\0"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 10_000), struct.pack("<Q8sI8s", 8, b"aaaaaaaa", 8, b"\0" * 8)),
        (ONE_KEY + KEY + struct.pack("<IIQ", 9, 8, ARRAY_ITEMS_MAX), struct.pack("<Q60000s", 60_000, b"")),
        (ONE_KEY + KEY + struct.pack("<IIQ", 9, 12, ARRAY_ITEMS_MAX), b"\0"),
    ],
)
def test_an_endless_stream_is_left_at_the_limit(beginning: bytes, goes_on: bytes) -> None:
    stream = Endless(beginning, goes_on)
    with contextlib.suppress(BrokenHeader):
        read_header(stream)
    assert stream.taken <= HEADER_BYTES_MAX


@given(st.data())
def test_flipped_bytes_are_read_or_refused(data: st.DataObject) -> None:
    broken = bytearray(sample())
    for _ in range(data.draw(st.integers(0, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    assert judge(bytes(broken)) or broken != sample()


@given(st.binary(min_size=1200, max_size=1200))
def test_any_numbers_in_an_array_that_nothing_depends_on_are_read(scores: bytes) -> None:
    key = b"tokenizer.ggml.scores"
    at = sample().index(key) + len(key) + struct.calcsize("<IIQ")
    assert judge(sample()[:at] + scores + sample()[at + len(scores) :])


@given(st.sampled_from(COUNTS_AT) | st.integers(0, len(sample()) - 8), st.sampled_from(HUGE))
def test_huge_claims_anywhere_are_read_or_refused(at: int, claim: int) -> None:
    is_read = judge(sample()[:at] + struct.pack("<Q", claim) + sample()[at + 8 :])
    assert not (is_read and at in COUNTS_AT)


@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes_are_read_or_refused(data: bytes, tensors: int, entries: int) -> None:
    whole = struct.pack("<4sIQQ", b"GGUF", 3, tensors, entries) + data
    assert not judge(whole), "nothing says of which architecture it is"
    if tensors == entries == 0:
        assert header_of(whole).data_bytes == 0


def header_of(data: bytes) -> Header:
    return read_header(io.BytesIO(data))


def judge(data: bytes) -> bool:
    """Whether it is read. Nothing but `BrokenHeader` comes out, also of an estimate."""
    try:
        header = header_of(data)
        found = estimate(header, LoadSettings(1024, 2))
    except BrokenHeader:
        return False
    assert found.total_bytes >= found.weights_bytes >= 0
    return True
