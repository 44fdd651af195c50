"""The forms of a request as RFC 9110 and RFC 9112 have them: one row for each, with the section that says so."""

import json
from typing import Any, Final, NamedTuple

import pytest

from tests.fakes.h2_client import H2Client
from tests.fakes.listener_harness import open_listener, read_to_end


class Row(NamedTuple):
    """A request, and what an application sees of it: or the status of the refusal."""

    line: str
    expected: tuple[str, str, str, str] | int
    """Method, path, query and host."""
    lines: tuple[str, ...] = ("Host: localhost",)
    body: str = ""


def seen(method: str, path: str, query: str = "", host: str = "localhost") -> tuple[str, str, str, str]:
    return method, path, query, host


HOST: Final = ("Host: localhost",)
CHUNKED: Final = (*HOST, "Transfer-Encoding: chunked")
END: Final = "0\r\n\r\n"
ROWS: Final = {
    # RFC 9112, 3.2.1: origin-form
    "path": Row("GET /a/b HTTP/1.1", seen("GET", "/a/b")),
    "path_with_query": Row("GET /a?b=c&d HTTP/1.1", seen("GET", "/a", "b=c&d")),
    "empty_query": Row("GET /a? HTTP/1.1", seen("GET", "/a")),
    "question_marks": Row("GET /a?b?c HTTP/1.1", seen("GET", "/a", "b?c")),
    "root": Row("GET / HTTP/1.1", seen("GET", "/")),
    "two_slashes": Row("GET //a HTTP/1.1", seen("GET", "//a")),
    "a_url_within_the_query": Row("GET /a?b=http://x/y HTTP/1.1", seen("GET", "/a", "b=http://x/y")),
    "colon_in_the_path": Row("GET /api/models/qwen:7b HTTP/1.1", seen("GET", "/api/models/qwen:7b")),
    # RFC 9112, 3.2.2: absolute-form, whose host counts
    "absolute": Row("GET http://localhost/a?b HTTP/1.1", seen("GET", "/a", "b")),
    "absolute_with_port": Row("GET http://localhost:8080/a HTTP/1.1", seen("GET", "/a", host="localhost:8080")),
    "absolute_https": Row("GET https://localhost/a HTTP/1.1", seen("GET", "/a")),
    "absolute_in_capitals": Row("GET HTTP://localhost/a HTTP/1.1", seen("GET", "/a")),
    "absolute_ipv6": Row("GET http://[::1]:80/a HTTP/1.1", seen("GET", "/a", host="[::1]:80")),
    "absolute_without_path": Row("GET http://localhost HTTP/1.1", seen("GET", "/")),
    "absolute_with_query_only": Row("GET http://localhost?b HTTP/1.1", seen("GET", "/", "b")),
    "absolute_and_another_host": Row("GET http://one/a HTTP/1.1", seen("GET", "/a", host="one"), ("Host: two",)),
    "absolute_without_host": Row("GET http://one/a HTTP/1.1", 400, ()),
    "absolute_in_1_0": Row("GET http://one/a HTTP/1.0", seen("GET", "/a", host="one"), ()),
    "absolute_with_user": Row("GET http://user@localhost/a HTTP/1.1", 400),
    "absolute_without_authority": Row("GET http:///a HTTP/1.1", 400),
    "absolute_of_another_scheme": Row("GET ftp://localhost/a HTTP/1.1", 400),
    "absolute_with_fragment": Row("GET http://localhost/a#b HTTP/1.1", 400),
    # RFC 9112, 3.2.3: authority-form, for CONNECT only, which no origin server has to know (RFC 9110, 9.3.6)
    "connect": Row("CONNECT localhost:443 HTTP/1.1", 501),
    "connect_with_a_path": Row("CONNECT /a HTTP/1.1", 501),
    "authority": Row("GET localhost:443 HTTP/1.1", 400),
    "name_only": Row("GET a HTTP/1.1", 400),
    # RFC 9112, 3.2.4: asterisk-form, for OPTIONS only
    "asterisk": Row("OPTIONS * HTTP/1.1", seen("OPTIONS", "*")),
    "asterisk_by_a_proxy": Row("OPTIONS http://localhost HTTP/1.1", seen("OPTIONS", "*")),
    "asterisk_of_get": Row("GET * HTTP/1.1", 400),
    "options_of_a_path": Row("OPTIONS /a HTTP/1.1", seen("OPTIONS", "/a")),
    # RFC 3986, 2.1 and 6.2.2; RFC 9110, 4.2
    "percent": Row("GET /a%20b/%C3%A9 HTTP/1.1", seen("GET", "/a b/é")),
    "percent_of_a_letter": Row("GET /%61 HTTP/1.1", seen("GET", "/a")),
    "percent_in_small_letters": Row("GET /%c3%a9 HTTP/1.1", seen("GET", "/é")),
    "percent_twice_is_decoded_once": Row("GET /%2561 HTTP/1.1", seen("GET", "/%61")),
    "percent_of_a_question_mark": Row("GET /a%3Fb HTTP/1.1", seen("GET", "/a?b")),
    "percent_without_digits": Row("GET /a%zz HTTP/1.1", 400),
    "percent_at_the_end": Row("GET /a% HTTP/1.1", 400),
    "percent_with_one_digit": Row("GET /a%4 HTTP/1.1", 400),
    "percent_in_the_query": Row("GET /a?b=100% HTTP/1.1", seen("GET", "/a", "b=100%")),
    "dot_segments": Row("GET /a/../b/./c HTTP/1.1", seen("GET", "/a/../b/./c")),
    "fragment": Row("GET /a#b HTTP/1.1", 400),
    "letters_beyond_ascii": Row("GET /é HTTP/1.1", 400),
    # RFC 9112, 3.2; RFC 9110, 7.2: Host
    "host_missing": Row("GET /a HTTP/1.1", 400, ()),
    "host_missing_in_1_0": Row("GET /a HTTP/1.0", seen("GET", "/a", host=""), ()),
    "host_twice": Row("GET /a HTTP/1.1", 400, (*HOST, "Host: localhost")),
    "host_empty": Row("GET /a HTTP/1.1", seen("GET", "/a", host=""), ("Host:",)),
    "host_with_port": Row("GET /a HTTP/1.1", seen("GET", "/a", host="my_service:8080"), ("Host: my_service:8080",)),
    "host_ipv6": Row("GET /a HTTP/1.1", seen("GET", "/a", host="[::1]:8080"), ("Host: [::1]:8080",)),
    "host_with_a_path": Row("GET /a HTTP/1.1", 400, ("Host: localhost/a",)),
    "host_with_user": Row("GET /a HTTP/1.1", 400, ("Host: user@localhost",)),
    "host_with_a_space": Row("GET /a HTTP/1.1", 400, ("Host: local host",)),
    "host_list": Row("GET /a HTTP/1.1", 400, ("Host: a, b",)),
    "host_with_a_port_that_is_none": Row("GET /a HTTP/1.1", 400, ("Host: a:b",)),
    # RFC 9110, 9.1: methods are case-sensitive
    "method_in_small_letters": Row("get /a HTTP/1.1", seen("get", "/a")),
    "method_that_nobody_knows": Row("BREW /a HTTP/1.1", seen("BREW", "/a")),
    "method_with_odd_letters": Row("M-SEARCH /a HTTP/1.1", seen("M-SEARCH", "/a")),
    "method_that_is_no_token": Row("G(T /a HTTP/1.1", 400),
    # RFC 9110, 10.1: what a client expects and takes
    "te": Row("GET /a HTTP/1.1", seen("GET", "/a"), (*HOST, "TE: trailers, gzip;q=0.5", "Connection: TE")),
    "expect_without_body": Row("GET /a HTTP/1.1", seen("GET", "/a"), (*HOST, "Expect: 100-continue")),
    "expect_in_1_0": Row("GET /a HTTP/1.0", seen("GET", "/a"), (*HOST, "Expect: nonsense")),
    "expect_something_else": Row("GET /a HTTP/1.1", 417, (*HOST, "Expect: nonsense")),
    # RFC 9112, 6 and 7: framing
    "trailers": Row("POST /a HTTP/1.1", seen("POST", "/a"), CHUNKED, "0\r\nX-Sum: 1\r\n\r\n"),
    "trailer_of_the_framing": Row("POST /a HTTP/1.1", seen("POST", "/a"), CHUNKED, "0\r\nContent-Length: 9\r\n\r\n"),
    "chunk_extensions": Row("POST /a HTTP/1.1", seen("POST", "/a"), CHUNKED, f'2;a="b"\r\n{{}}\r\n{END}'),
    "chunk_size_in_capitals": Row("POST /a HTTP/1.1", seen("POST", "/a"), CHUNKED, f"A\r\n0123456789\r\n{END}"),
    "chunk_size_with_zeros": Row("POST /a HTTP/1.1", seen("POST", "/a"), CHUNKED, "0002\r\n{}\r\n000\r\n\r\n"),
    "coding_that_is_none": Row("POST /a HTTP/1.1", 501, (*HOST, "Transfer-Encoding: gzip, chunked"), END),
    "length_and_coding": Row("POST /a HTTP/1.1", 400, (*CHUNKED, "Content-Length: 0"), END),
    "no_length_is_no_body": Row("POST /a HTTP/1.1", seen("POST", "/a")),
    "body_of_get": Row("GET /a HTTP/1.1", seen("GET", "/a"), (*HOST, "Content-Length: 2"), "{}"),
    # RFC 9112, 2.2 and 3: the request line
    "line_before_it": Row("\r\nGET /a HTTP/1.1", seen("GET", "/a")),
    "lines_before_it": Row("\r\n\r\nGET /a HTTP/1.1", 400),
    "target_without_an_end": Row(f"GET /{'a' * 70_000} HTTP/1.1", 414),
    "head_without_an_end": Row("GET /a HTTP/1.1", 431, (*HOST, f"X-A: {'a' * 70_000}")),
}


async def show(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what an application sees of the request."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    host = dict(scope["headers"]).get(b"host", b"").decode()
    body = json.dumps([scope["method"], scope["path"], scope["query_string"].decode(), host]).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_a_request_is_read_as_the_standard_says(row: Row) -> None:
    async with open_listener(app=show) as harness:
        client = await harness.connect()
        sent = "\r\n".join([row.line, *row.lines, "", ""]) + row.body
        await client.send_all(sent.encode())
        await client.send_eof()
        head, _, body = (await read_to_end(client)).partition(b"\r\n\r\n")
        if isinstance(row.expected, int):
            assert head.startswith(b"HTTP/1.1 %d " % row.expected)
            assert b"connection: close" in head
        else:
            assert head.startswith(b"HTTP/1.1 200 ")
            assert tuple(json.loads(body)) == row.expected


CONNECTIONS: Final = {
    # RFC 9112, 9.3 and 9.6: whether the connection stays
    "1_1": ("HTTP/1.1", (), True),
    "1_1_close": ("HTTP/1.1", ("Connection: close",), False),
    "1_1_close_in_capitals": ("HTTP/1.1", ("CONNECTION: CLOSE",), False),
    "1_1_close_among_others": ("HTTP/1.1", ("Connection: foo, close",), False),
    "1_1_close_in_a_second_line": ("HTTP/1.1", ("Connection: keep-alive", "Connection: close"), False),
    "1_1_keep_alive": ("HTTP/1.1", ("Connection: keep-alive", "Keep-Alive: timeout=5"), True),
    "1_1_unknown": ("HTTP/1.1", ("Connection: foo", "Foo: bar"), True),
    "1_1_not_the_option": ("HTTP/1.1", ("Connection: closed",), True),
    "1_0": ("HTTP/1.0", (), False),
    "1_0_close": ("HTTP/1.0", ("Connection: close",), False),
}


@pytest.mark.parametrize(("version", "lines", "stays"), CONNECTIONS.values(), ids=CONNECTIONS)
async def test_a_connection_stays_as_its_client_wants(version: str, lines: tuple[str, ...], stays: bool) -> None:
    async with open_listener(app=show) as harness:
        client = await harness.connect()
        first = "\r\n".join([f"GET /a {version}", *HOST, *lines, "", ""])
        last = "\r\n".join(["GET /b HTTP/1.1", *HOST, "Connection: close", "", ""])
        await client.send_all((first + last).encode())
        answer = await read_to_end(client)
        assert answer.count(b"HTTP/1.1 200 ") == (2 if stays else 1)
        assert answer.count(b"connection: close") == 1


ANSWERS: Final = {
    # RFC 9110, 9.3.2, 9.3.7, 15.5.5, 15.5.6: what the gateway answers
    "options_asterisk": ("OPTIONS *", 200, {"allow": "GET, HEAD, POST, PUT, PATCH, DELETE"}, None),
    "get": ("GET /healthz", 200, {}, None),
    "head": ("HEAD /healthz", 200, {"content-length": "15"}, None),
    "head_of_nothing": ("HEAD /nothing", 404, {}, None),
    "wrong_method": ("GET /do", 405, {"allow": "POST"}, "method_not_allowed"),
    "wrong_method_head": ("HEAD /do", 405, {"allow": "POST"}, None),
    "method_in_small_letters": ("post /do", 405, {"allow": "POST"}, "method_not_allowed"),
    "trace": ("TRACE /do", 405, {"allow": "POST"}, "method_not_allowed"),
    "nothing": ("GET /nothing", 404, {}, "not_found"),
    "nothing_by_a_proxy": ("GET http://localhost/nothing", 404, {}, "not_found"),
    "dot_segments": ("GET /x/../healthz", 404, {}, "not_found"),
    "two_slashes": ("GET //healthz", 404, {}, "not_found"),
    "slash_at_the_end": ("GET /healthz/", 404, {}, "not_found"),
    "capitals": ("GET /HEALTHZ", 404, {}, "not_found"),
    "other_host_by_a_proxy": ("GET http://evil.example/do", 403, {}, "bad_host"),
}


@pytest.mark.parametrize(("request_of", "status", "headers", "code"), ANSWERS.values(), ids=ANSWERS)
async def test_what_the_gateway_answers(
    request_of: str, status: int, headers: dict[str, str], code: str | None
) -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(f"{request_of} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await read_to_end(client)).partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0].startswith(f"HTTP/1.1 {status} ")
        found = dict(line.lower().split(": ", 1) for line in lines[1:])
        assert {name: found[name] for name in headers} == {name: text.lower() for name, text in headers.items()}
        if request_of.startswith("HEAD"):
            assert body == b""
        if code is not None:
            assert json.loads(body)["error"]["code"] == code


async def test_a_head_has_the_headers_of_the_get() -> None:
    async with open_listener() as harness:
        answers = []
        for method in ("GET", "HEAD"):
            client = await harness.connect()
            await client.send_all(
                f"{method} /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            head = (await read_to_end(client)).partition(b"\r\n\r\n")[0].decode()
            names = (line for line in head.split("\r\n")[1:] if not line.startswith(("x-request-id", "date")))
            answers.append(sorted(names))
        assert answers[0] == answers[1]


HTTP2: Final = {
    # RFC 9113, 8.3.1
    "path": ({":path": "/a?b"}, ("POST", "/a", "b", "localhost")),
    "asterisk": ({":path": "*", ":method": "OPTIONS"}, ("OPTIONS", "*", "", "localhost")),
    "asterisk_of_post": ({":path": "*"}, None),
    "no_slash": ({":path": "a"}, None),
    "absolute": ({":path": "http://localhost/a"}, None),
    "fragment": ({":path": "/a#b"}, None),
    "same_host": ({":path": "/a", "host": "localhost"}, ("POST", "/a", "", "localhost")),
}


@pytest.mark.parametrize(("fields", "expected"), HTTP2.values(), ids=HTTP2)
async def test_over_http2_a_malformed_request_is_reset_alone(
    fields: dict[str, str], expected: tuple[str, ...] | None
) -> None:
    async with open_listener(app=show) as harness:
        client = H2Client(await harness.connect())
        await client.start()
        named = {":method": "POST", ":scheme": "http", ":authority": "localhost", **fields}
        stream = client.connection.get_next_available_stream_id()
        client.connection.send_headers(stream, list(named.items()), end_stream=True)
        await client.flush()
        await client.read_until(lambda: stream in client.ended or stream in client.resets)
        found = tuple(json.loads(client.bodies[stream])) if stream in client.ended else None
        assert found == expected
        other = await client.ask("/b")
        await client.read_until(lambda: other in client.ended)
