"""What a response means, case by case."""

import pytest

from gateway.worker.artifacts.http_answer import (
    RETRY_AFTER_SECONDS_MAX,
    Asked,
    Body,
    Complete,
    HttpRefused,
    StartOver,
    TryAgain,
    read_answer,
    request_headers,
)

V1 = '"v1"'
PART = Asked(40, V1, 100)


def test_the_rest_is_asked_for_only_where_the_answer_proves_that_it_is_the_rest() -> None:
    asked_for = {
        Asked(): (None, None),
        PART: ("bytes=40-", V1),
        Asked(40, None, 100): (None, None),
        Asked(40, None, 100, has_digest=True): ("bytes=40-", None),
    }
    for asked, (range_, condition) in asked_for.items():
        headers = request_headers(asked)
        assert (headers.get("range"), headers.get("if-range")) == (range_, condition)
        assert headers["accept-encoding"] == "identity"


def test_a_whole_file() -> None:
    assert read_answer(200, {"content-length": "100", "etag": V1}, Asked()) == Body(0, 100, V1)
    assert read_answer(200, {"content-length": "9", "etag": '"v2"'}, PART) == Body(0, 9, '"v2"')
    assert read_answer(200, {"transfer-encoding": "chunked"}, Asked()) == Body(0, None, None)


def test_a_weak_etag_does_not_name_the_bytes() -> None:
    assert read_answer(200, {"content-length": "9", "etag": 'W/"v1"'}, Asked()) == Body(0, 9, None)


def test_a_file_whose_end_is_unknown_needs_a_hash() -> None:
    assert isinstance(read_answer(200, {}, Asked()), HttpRefused)
    assert read_answer(200, {}, Asked(has_digest=True)) == Body(0, None, None)


def test_the_rest() -> None:
    assert read_answer(206, {"content-range": "bytes 40-99/100", "etag": V1}, PART) == Body(40, 100, V1)
    assert read_answer(206, {"content-range": "bytes 40-99/100"}, PART) == Body(40, 100, V1)
    assert read_answer(206, {"content-range": "bytes 40-99/*"}, PART) == Body(40, 100, V1)


@pytest.mark.parametrize(
    ("place", "etag"),
    [
        ("bytes 0-99/100", V1),
        ("bytes 41-99/100", V1),
        ("bytes 40-98/100", V1),
        ("bytes 40-100/101", V1),
        ("bytes 40-99/100", '"v2"'),
        ("bytes */100", V1),
        ("nonsense", V1),
    ],
)
def test_another_part_than_the_one_asked_for_is_not_appended(place: str, etag: str) -> None:
    assert isinstance(read_answer(206, {"content-range": place, "etag": etag}, PART), StartOver)


def test_a_part_that_nobody_asked_for_is_none() -> None:
    assert isinstance(read_answer(206, {"content-range": "bytes 0-99/100"}, Asked()), StartOver)


@pytest.mark.parametrize("status", [200, 206])
def test_an_encoded_file_is_refused(status: int) -> None:
    headers = {"content-encoding": "gzip", "content-length": "9", "content-range": "bytes 40-99/100"}
    answer = read_answer(status, headers, PART)
    assert isinstance(answer, HttpRefused)
    assert "gzip" in answer.reason


def test_no_more_than_what_is_here() -> None:
    whole = Asked(100, V1, 100)
    assert read_answer(416, {"content-range": "bytes */100"}, whole) == Complete()
    assert isinstance(read_answer(416, {"content-range": "bytes */99"}, whole), StartOver)
    assert isinstance(read_answer(416, {"content-range": "bytes */40"}, PART), StartOver)
    assert isinstance(read_answer(416, {}, whole), StartOver)
    assert isinstance(read_answer(416, {}, Asked()), HttpRefused)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert read_answer(status, {}, Asked()) == TryAgain(f"it answered {status}")
    assert read_answer(status, {"retry-after": "7"}, Asked()) == TryAgain(f"it answered {status}", 7.0)


@pytest.mark.parametrize(("said", "seconds"), [("9" * 9, RETRY_AFTER_SECONDS_MAX), ("-1", None), ("Wed, 1", None)])
def test_how_long_to_wait_is_bounded(said: str, seconds: float | None) -> None:
    assert read_answer(429, {"retry-after": said}, Asked()) == TryAgain("it answered 429", seconds)


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410, 451])
def test_what_stays_so_is_refused_with_its_status(status: int) -> None:
    answer = read_answer(status, {}, Asked())
    assert isinstance(answer, HttpRefused)
    assert str(status) in answer.reason
