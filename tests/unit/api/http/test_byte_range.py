"""Which bytes a `Range` header means."""

import pytest

from gateway.api.http.byte_range import ByteRange, Unsatisfiable, wanted_range


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=10-", 10, 99),
        ("bytes=10-1000", 10, 99),
        ("bytes=-5", 95, 99),
        ("bytes=-1000", 0, 99),
        ("BYTES= 99-99 ", 99, 99),
    ],
)
def test_a_part(header: str, first: int, last: int) -> None:
    part = wanted_range(header, 100)
    assert part == ByteRange(first, last)
    assert part.length == last - first + 1


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=x-", "bytes=--1"],
)
def test_what_is_not_taken_is_the_whole_file(header: str | None) -> None:
    assert wanted_range(header, 100) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [("bytes=100-", 100), ("bytes=100-200", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-1", 0)],
)
def test_bytes_that_are_not_there(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        wanted_range(header, size)
