"""The HTTP/1 parser reads what h11 reads, however the bytes arrive, and never takes what h11 refuses.

h11 is the oracle. `http1_head` is stricter in places, which tests/integration/api/test_http1_edge.py lists; such a
request is refused, and is never read in another way.
"""

from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlsplit

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.http.listener.http1_head import Head
from gateway.api.http.listener.http1_parser import BodyPart, Fault, Http1Parser, Preface
from tests.integration.api.test_http1_edge import ALLOWED, BODIES, REFUSED

Requests = list[tuple[str, bytes, list[tuple[bytes, bytes]], bytes, bool]]
"""Method, target, headers, body, and whether the body was complete."""


def read(sent: bytes, cuts: tuple[int, ...] = ()) -> tuple[Requests, Fault | None]:
    """What the parser makes of it if it arrives in these pieces, up to a request after which the connection ends."""
    parser = Http1Parser(speaks_http2=False)
    requests: Requests = []
    keeps_alive = True
    edges = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    for begin, end in pairwise(edges):
        parser.feed(sent[begin:end])
        while (found := parser.next_event()) is not None:
            match found:
                case Head():
                    keeps_alive = found.keeps_alive
                    requests.append((found.method, found.target, found.headers, b"", found.body_bytes == 0))
                case BodyPart():
                    method, target, headers, body, _ = requests[-1]
                    requests[-1] = (method, target, headers, body + found.data, found.is_last)
                case Fault():
                    return requests, found
            if requests[-1][4] and not keeps_alive:
                return requests, None  # There is no next request on the connection.
    return requests, None


def read_by_h11(sent: bytes) -> tuple[Requests, str]:
    """The same by the oracle, which answers each request as soon as it is complete, and why it stopped."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    connection.receive_data(sent)
    pass_empty_line(connection)
    requests: Requests = []
    try:
        while True:
            found: Any = connection.next_event()
            if isinstance(found, h11.Request):
                target, headers = as_origin_reads(found.target, list(found.headers))
                requests.append((found.method.decode(), target, headers, b"", False))
            elif isinstance(found, h11.Data):
                method, target, headers, body, _ = requests[-1]
                requests[-1] = (method, target, headers, body + bytes(found.data), False)
            elif isinstance(found, h11.EndOfMessage):
                requests[-1] = (*requests[-1][:4], True)
                answer_by_h11(connection)
            elif found is h11.PAUSED:
                connection.start_next_cycle()
                pass_empty_line(connection)
            else:
                return requests, "at the end"
    except h11.RemoteProtocolError:
        return requests, "refused"
    except h11.LocalProtocolError:
        return requests, "not kept"


def pass_empty_line(connection: h11.Connection) -> None:
    """h11 refuses what RFC 9112, 2.2 has servers ignore: one empty line in front of a request."""
    data = connection._receive_buffer._data
    if data.startswith(b"\r\n"):
        del data[:2]


def as_origin_reads(target: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """h11 leaves whole URLs to the application: their host counts, and the rest is the path."""
    parts = urlsplit(target)
    if target.startswith(b"/") or parts.scheme != b"http":
        return target, headers
    _, _, rest = target.partition(parts.netloc)
    others = [each for each in headers if each[0] != b"host"]
    return rest if rest.startswith(b"/") else b"/" + rest, [(b"host", parts.netloc), *others]


def answer_by_h11(connection: h11.Connection) -> None:
    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    connection.send(h11.EndOfMessage())


CASES: Final = {
    **{f"refused_{name}": sent.encode("latin-1") for name, (sent, _) in REFUSED.items()},
    **{f"allowed_{name}": sent.encode("latin-1") for name, sent in ALLOWED.items()},
    **{
        f"body_{name}": ALLOWED["chunked"].partition("2\r\n{}")[0].encode() + body.encode()
        for name, body in BODIES.items()
    },
    "two_in_one_go": 2 * ALLOWED["plain"].encode(),
    "chunks_and_then_another": ALLOWED["trailers"].encode() + ALLOWED["plain"].encode(),
    "many_chunks": ALLOWED["chunked"].partition("2\r\n{}")[0].encode() + b"1\r\na\r\n" * 20 + b"0\r\n\r\n",
}


@pytest.mark.parametrize("sent", CASES.values(), ids=CASES)
def test_it_is_read_in_the_same_way_wherever_it_is_split(sent: bytes) -> None:
    whole, fault = read(sent)
    for cut in range(len(sent)):
        requests, found = read(sent, (cut,))
        assert (requests, found and found.status) == (whole, fault and fault.status), f"split at {cut}"
    requests, found = read(sent, tuple(range(len(sent))))
    assert (requests, found and found.status) == (whole, fault and fault.status), "split everywhere"


@pytest.mark.parametrize("name", CASES)
def test_it_reads_what_h11_reads_and_refuses_what_h11_refuses(name: str) -> None:
    compare(CASES[name])


def compare(sent: bytes) -> None:
    """Where one of both refuses, both have read the same before. Only h11 may go further, where it is more lenient."""
    mine, fault = read(sent)
    theirs, end = read_by_h11(sent)
    complete = [request for request in mine if request[4]]
    assert complete == theirs[: len(complete)]
    if end == "refused":
        assert len(mine) <= len(theirs)
    elif fault is None:
        assert mine == theirs


def test_the_preface_of_http_2_is_recognized_only_at_the_beginning() -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\n"
    parser = Http1Parser(speaks_http2=True)
    parser.feed(preface[:5])
    assert parser.next_event() is None
    parser.feed(preface[5:] + b"SM\r\n\r\nmore")
    assert isinstance(parser.next_event(), Preface)
    assert parser.take_rest() == preface + b"SM\r\n\r\nmore"
    late = Http1Parser(speaks_http2=True)
    late.feed(ALLOWED["plain"].encode() + preface)
    assert [type(late.next_event()) for _ in range(3)] == [Head, BodyPart, Fault]


# Fuzzing

NAMES = st.sampled_from(["X-A", "x-b", "Accept", "Cookie", "Connection", "Content-Type", "Authorization", "Expect"])
VALUES = st.text(st.sampled_from("ab1 ,;=/\t\xe9"), max_size=8) | st.sampled_from(
    ["close", "keep-alive", "100-continue"]
)
FRAMINGS = st.sampled_from(
    [
        *([], ["Content-Length: 3"], ["content-length: 3", "Content-Length: 3"], ["Content-Length: 3, 3"]),
        *(["Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", "Content-Length: 3"]),
        *(["Content-Length: 4", "Content-Length: 3"], ["Transfer-Encoding: gzip"], ["Transfer-Encoding: Chunked "]),
    ]
)
CHUNKS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["", ";a", ";a=b", " ", "\t", ";\x00"])).map(
        lambda chunk: f"{chunk[0]:x}{chunk[1]}\r\n" + "c" * chunk[0] + "\r\n"
    ),
    max_size=4,
).map("".join)
BODIES_OF_ALL_KINDS = st.one_of(
    st.just("abc"),
    CHUNKS.map(lambda chunks: chunks + "0\r\n\r\n"),
    CHUNKS.map(lambda chunks: chunks + "0\r\nX: 1\r\n\r\n"),
)


@st.composite
def requests_of_all_kinds(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "put", "BREW"]))
    target = draw(st.sampled_from(["/", "/do", "/a?b=c", "*", "http://a/b", "/%zz"]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0", "2.0"]))
    headers = [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))]
    head = [f"{method} {target} HTTP/{version}", "Host: a", *headers, *draw(FRAMINGS), "", ""]
    return ("\r\n".join(head) + draw(BODIES_OF_ALL_KINDS)).encode("latin-1")


SPOILS = st.lists(
    st.tuples(
        st.integers(0, 2000), st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\0", b",", b"0", b"\xff"])
    ),
    max_size=2,
)


@given(st.lists(requests_of_all_kinds(), min_size=1, max_size=3).map(b"".join), SPOILS, st.lists(st.integers(0, 5000)))
def test_whatever_comes_is_read_as_h11_reads_it(sent: bytes, spoils: list[tuple[int, bytes]], cuts: list[int]) -> None:
    for place, spoil in spoils:
        at = place % (len(sent) + 1)
        sent = sent[:at] + spoil + sent[at:]
    compare(sent)
    whole, fault = read(sent)
    requests, found = read(sent, tuple(cuts))
    assert [request for request in requests if request[4]] == [request for request in whole if request[4]]
    assert (found and found.status) == (fault and fault.status)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_noise_is_never_a_request_and_never_an_error(sent: bytes, cuts: list[int]) -> None:
    requests, _ = read(sent, tuple(cuts))
    assert requests == [] or read_by_h11(sent)[0]
