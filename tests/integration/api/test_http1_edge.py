"""HTTP/1 at its edges: a request that two programs could read in two ways is refused, and its connection closed."""

import re
from typing import Final

import pytest
import trio

from tests.fakes.listener_harness import DO, open_listener, read_response, read_to_end


def request(*lines: str, first: str = "POST /do HTTP/1.1", body: str = "", host: str | None = "Host: localhost") -> str:
    head = [first, *([host] if host is not None else []), "Content-Type: application/json", *lines, "", ""]
    return "\r\n".join(head) + body


CHUNKED: Final = "Transfer-Encoding: chunked"
LENGTH: Final = "Content-Length: 2"
TWO: Final = "2\r\n{}\r\n0\r\n\r\n"
"""`{}` in chunks."""
SMUGGLED: Final = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

REFUSED: Final[dict[str, tuple[str, int]]] = {
    # Where the body ends (RFC 9112, 6)
    "length_and_chunked": (request(LENGTH, CHUNKED, body="0\r\n\r\n" + SMUGGLED), 400),
    "chunked_and_length": (request(CHUNKED, "Content-Length: 5", body="0\r\n\r\n"), 400),
    "two_lengths": (request(LENGTH, "Content-Length: 3", body="{} "), 400),
    "two_lengths_in_one": (request("Content-Length: 2, 3", body="{} "), 400),
    "length_signed": (request("Content-Length: +2", body="{}"), 400),
    "length_negative": (request("Content-Length: -2", body="{}"), 400),
    "length_hex": (request("Content-Length: 0x2", body="{}"), 400),
    "length_empty": (request("Content-Length:", body="{}"), 400),
    "length_digits_of_elsewhere": (request("Content-Length: \xb2", body="{}"), 400),
    "length_huge": (request("Content-Length: " + "9" * 30), 400),
    "gzip": (request("Transfer-Encoding: gzip", body=TWO), 501),
    "gzip_chunked": (request("Transfer-Encoding: gzip, chunked", body=TWO), 501),
    "chunked_twice": (request(CHUNKED, CHUNKED, body=TWO), 501),
    "chunked_twice_in_one": (request("Transfer-Encoding: chunked, chunked", body=TWO), 501),
    "chunked_identity": (request("Transfer-Encoding: chunked, identity", body=TWO), 501),
    "identity": (request("Transfer-Encoding: identity", body=TWO), 501),
    "chunked_with_tail": (request("Transfer-Encoding: chunked;q=1", body=TWO), 501),
    "chunked_with_vertical_tab": (request("Transfer-Encoding: \x0bchunked", body=TWO), 400),
    "chunked_in_1_0": (request(CHUNKED, first="POST /do HTTP/1.0", body=TWO), 400),
    # Lines and headers (RFC 9112, 2.2 and 5)
    "bare_lf": (request(LENGTH, body="{}").replace("\r\n", "\n"), 400),
    "bare_lf_once": (request("X-A: 1\nX-B: 2", LENGTH, body="{}"), 400),
    "bare_lf_at_the_end": (request(LENGTH).removesuffix("\r\n") + "\n{}", 400),
    "bare_lf_behind_the_request_line": (request(LENGTH, first="POST /do HTTP/1.1\nX-A: 1", body="{}"), 400),
    "bare_cr": (request("X-A: 1\rX-B: 2", LENGTH, body="{}"), 400),
    "fold": (request("X-A: 1\r\n 2", LENGTH, body="{}"), 400),
    "fold_with_tab": (request("X-A: 1\r\n\t2", LENGTH, body="{}"), 400),
    "fold_of_the_framing": (request("Transfer-Encoding:\r\n chunked", body=TWO), 400),
    "fold_of_the_first_header": (request(LENGTH, first="POST /do HTTP/1.1\r\n X-A: 1", body="{}"), 400),
    "space_before_colon": (request("Content-Length : 2", body="{}"), 400),
    "tab_before_colon": (request("Transfer-Encoding\t: chunked", body=TWO), 400),
    "no_colon": (request("bad header", LENGTH, body="{}"), 400),
    "no_name": (request(": 1", LENGTH, body="{}"), 400),
    "space_in_a_name": (request("X A: 1", LENGTH, body="{}"), 400),
    "nul_in_a_value": (request("X-A: 1\x002", LENGTH, body="{}"), 400),
    "bell_in_a_value": (request("X-A: 1\x072", LENGTH, body="{}"), 400),
    "escape_in_a_value": (request("X-A: \x1b[31m", LENGTH, body="{}"), 400),
    "delete_in_a_value": (request("X-A: 1\x7f2", LENGTH, body="{}"), 400),
    "nul_in_a_name": (request("X\x00A: 1", LENGTH, body="{}"), 400),
    # Who asks, and whom
    "authorization_twice": (request("Authorization: Bearer a", "authorization: Bearer b", LENGTH, body="{}"), 400),
    "content_type_twice": (request("Content-Type: text/plain", LENGTH, body="{}"), 400),
    "node_twice": (request("X-Gateway-Node: a", "X-Gateway-Node: b", LENGTH, body="{}"), 400),
    "host_twice": (request("Host: elsewhere", LENGTH, body="{}"), 400),
    "no_host": (request(LENGTH, host=None, body="{}"), 400),
    # The request line (RFC 9112, 3)
    "version_9_9": (request(LENGTH, first="POST /do HTTP/9.9", body="{}"), 505),
    "version_2_0": (request(LENGTH, first="POST /do HTTP/2.0", body="{}"), 505),
    "version_1_2": (request(LENGTH, first="POST /do HTTP/1.2", body="{}"), 505),
    "version_0_9": (request(LENGTH, first="POST /do HTTP/0.9", body="{}"), 505),
    "version_long": (request(LENGTH, first="POST /do HTTP/1.10", body="{}"), 400),
    "version_in_small_letters": (request(LENGTH, first="POST /do http/1.1", body="{}"), 400),
    "no_version": (request(LENGTH, first="POST /do", body="{}"), 400),
    "two_spaces": (request(LENGTH, first="POST  /do HTTP/1.1", body="{}"), 400),
    "tab_in_the_line": (request(LENGTH, first="POST\t/do\tHTTP/1.1", body="{}"), 400),
    "space_in_front": (request(LENGTH, first=" POST /do HTTP/1.1", body="{}"), 400),
    "space_in_the_target": (request(LENGTH, first="POST /d o HTTP/1.1", body="{}"), 400),
    "control_character_in_the_target": (request(LENGTH, first="POST /do\x01 HTTP/1.1", body="{}"), 400),
    # HTTP/2 begins with its own preface, or by TLS
    "h2c": (request("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"), 400),
    "h2c_among_others": (request("Upgrade: foo, H2C", "Connection: Upgrade"), 400),
    "h2c_with_a_body": (request("Upgrade: h2c", "Connection: Upgrade", LENGTH, body="{}"), 400),
    "a_preface_of_another_kind": ("PRI /do HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
}


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
async def test_a_request_that_could_be_read_in_two_ways_is_refused(sent: str, status: int) -> None:
    """With one answer, whatever comes behind it, and the connection is closed."""
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(sent.encode("latin-1"))
        answer = await read_to_end(client)
        assert re.findall(rb"HTTP/1\.1 (\d{3})", answer) == [str(status).encode()]
        assert b"connection: close" in answer.lower()
        await harness.wait_connections(0)


@pytest.mark.parametrize("cut", [1, 7, 40])
async def test_it_is_refused_however_it_arrives(cut: int) -> None:
    """Also as the second request of a connection."""
    sent = DO + REFUSED["fold_of_the_framing"][0].encode()
    async with open_listener() as harness:
        client = await harness.connect()
        answers = bytearray()
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                answers.extend(await read_to_end(client))

            nursery.start_soon(read)
            for begin in range(0, len(sent), cut):
                try:
                    await client.send_all(sent[begin : begin + cut])
                except trio.BrokenResourceError:
                    break  # it has been refused
        assert re.findall(rb"HTTP/1\.1 (\d{3})", bytes(answers)) == [b"200", b"400"]


BODIES: Final = {
    "size_in_no_hex": "zz\r\n{}\r\n0\r\n\r\n",
    "size_signed": "+2\r\n{}\r\n0\r\n\r\n",
    "size_with_a_prefix": "0x2\r\n{}\r\n0\r\n\r\n",
    "size_empty": "\r\n{}\r\n0\r\n\r\n",
    "size_huge": "f" * 30 + "\r\n{}",
    "size_behind_a_space": " 2\r\n{}\r\n0\r\n\r\n",
    "bare_lf_behind_the_size": "2\n{}\r\n0\r\n\r\n",
    "bare_lf_behind_the_chunk": "2\r\n{}\n0\r\n\r\n",
    "too_long_a_chunk": "2\r\n{} \r\n0\r\n\r\n",
    "bare_lf_at_the_end": "2\r\n{}\r\n0\r\n\n" + SMUGGLED,
    "bare_lf_in_a_trailer": "2\r\n{}\r\n0\r\nX-A: 1\nX-B: 2\r\n\r\n" + SMUGGLED,
    "fold_in_a_trailer": "2\r\n{}\r\n0\r\nX-A: 1\r\n 2\r\n\r\n" + SMUGGLED,
    "no_trailer": "2\r\n{}\r\n0\r\nbad trailer\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_chunked_body_that_could_be_read_in_two_ways_ends_the_connection(body: str) -> None:
    """Nothing behind it is taken for a request."""
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(request(CHUNKED, body=body).encode())
        answer = await read_to_end(client)
        assert b" 200 " not in answer
        await harness.wait_connections(0)


ALLOWED: Final = {
    "plain": request(LENGTH, body="{}"),
    "chunked": request(CHUNKED, body=TWO),
    "chunked_in_capitals": request("TRANSFER-ENCODING: Chunked", body=TWO),
    "chunk_extension": request(CHUNKED, body="2;a=b\r\n{}\r\n0\r\n\r\n"),
    "trailers": request(CHUNKED, body="2\r\n{}\r\n0\r\nX-A: 1\r\n\r\n"),
    "the_same_length_twice": request(LENGTH, LENGTH, body="{}"),
    "tabs_around_a_value": request("X-A:\t1\t2\t", LENGTH, body="{}"),
    "no_space_behind_the_colon": request("X-A:1", LENGTH, body="{}"),
    "an_empty_value": request("X-A:", LENGTH, body="{}"),
    "latin_1": request("X-A: caf\xe9", LENGTH, body="{}"),
    "no_authorization_worth_the_name": request("Authorization: Bearer a", LENGTH, body="{}"),
    "another_upgrade": request("Upgrade: foo", "Connection: Upgrade", LENGTH, body="{}"),
    "version_1_0": request(LENGTH, first="POST /do HTTP/1.0", body="{}"),
}


@pytest.mark.parametrize("sent", ALLOWED.values(), ids=ALLOWED)
async def test_what_is_odd_and_clear_is_answered(sent: str) -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(sent.encode("latin-1"))
        assert await read_response(client) == 200
