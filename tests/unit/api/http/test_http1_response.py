"""The bytes of an HTTP/1 response: one write for head and body, and nothing that a client could take for another."""

import pytest

from gateway.api.http.listener.http1_response import Clock, Http1Response, encode_refusal

DATE = b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
Headers = list[tuple[bytes, bytes]]


def begun(
    status: int = 200,
    headers: Headers | None = None,
    *,
    is_to_head: bool = False,
    is_http_1_0: bool = False,
    closes: bool = False,
) -> Http1Response:
    response = Http1Response(is_to_head=is_to_head, is_http_1_0=is_http_1_0)
    response.begin(status, headers or [], closes=closes, date_line=DATE)
    return response


LENGTH_2: Headers = [(b"content-length", b"2")]


def test_head_and_body_of_known_length_are_one_write() -> None:
    response = begun(200, [(b"Content-Type", b"text/plain"), *LENGTH_2])
    expected = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n" + DATE + b"\r\nok"
    assert response.encode(b"ok", is_last=True) == expected
    assert not response.closes


def test_a_body_of_unknown_length_comes_in_chunks() -> None:
    response = begun()
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" + DATE + b"\r\n"
    assert response.encode(b"a" * 17, is_last=False) == head + b"11\r\n" + b"a" * 17 + b"\r\n"
    assert response.encode(b"", is_last=False) == b"", "an empty chunk would be the end"
    assert response.encode(b"b", is_last=True) == b"1\r\nb\r\n0\r\n\r\n"
    assert not response.closes


def test_http_1_0_gets_it_until_the_end_of_the_connection() -> None:
    response = begun(is_http_1_0=True)
    assert b"chunked" not in (written := response.encode(b"a", is_last=False))
    assert written.endswith(b"connection: close\r\n" + DATE + b"\r\na")
    assert response.encode(b"b", is_last=True) == b"b"
    assert response.closes


@pytest.mark.parametrize(("status", "is_to_head"), [(204, False), (304, False), (200, True)])
def test_a_response_without_a_body_has_none(status: int, is_to_head: bool) -> None:
    response = begun(status, LENGTH_2 if is_to_head else None, is_to_head=is_to_head)
    assert response.encode(b"ok", is_last=True).endswith(DATE + b"\r\n")
    assert not response.closes


@pytest.mark.parametrize("headers", [[], [(b"Connection", b"close")]])
def test_the_last_response_says_so_once(headers: Headers) -> None:
    response = begun(200, [*LENGTH_2, *headers], closes=True)
    assert response.encode(b"ok", is_last=True).lower().count(b"connection: close") == 1
    assert response.closes


def test_an_application_may_end_the_connection() -> None:
    assert begun(200, [*LENGTH_2, (b"connection", b"close")]).closes


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b", b"a\r\n\r\nHTTP/1.1 200 OK"])
def test_a_header_that_is_more_than_one_line_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="line break"):
        begun(200, [(b"x-a", value)])
    with pytest.raises(ValueError, match="line break"):
        begun(200, [(value, b"a")])


def test_a_body_that_is_not_as_long_as_its_head_says_is_refused() -> None:
    """A client would take the rest for another response, or wait for more."""
    with pytest.raises(ValueError, match="content-length"):
        begun(200, LENGTH_2).encode(b"abc", is_last=True)
    with pytest.raises(ValueError, match="content-length"):
        begun(200, LENGTH_2).encode(b"a", is_last=True)


def test_how_a_body_is_framed_is_not_for_the_application() -> None:
    written = begun(200, [(b"transfer-encoding", b"gzip"), *LENGTH_2]).encode(b"ok", is_last=True)
    assert b"transfer-encoding" not in written


def test_a_status_without_a_name_is_written_all_the_same() -> None:
    assert begun(299, LENGTH_2).encode(b"ok", is_last=True).startswith(b"HTTP/1.1 299 \r\n")


def test_a_refusal_is_whole() -> None:
    expected = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n" + DATE + b"\r\n"
    assert encode_refusal(400, DATE) == expected


def test_the_date_changes_with_the_second() -> None:
    clock = Clock()
    assert clock.date_line(0.0) == clock.date_line(0.9) == DATE
    assert clock.date_line(1.0) == DATE.replace(b"00 GMT", b"01 GMT")
