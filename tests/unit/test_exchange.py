"""One request and its response: ids, limits, and what has been sent so far."""

import pytest
import trio
from trio.testing import MockClock

from gateway.api.exchange import HEADER_BYTES_MAX, ClientGone, Exchange
from gateway.domain.errors import HeadersTooLarge, PayloadTooLarge, RequestTimeout
from tests.fakes.asgi import AsgiRequest


def exchange_of(request: AsgiRequest) -> Exchange:
    return Exchange(request.scope, request.receive, request.send)


def post(*parts: bytes, whole: bool = True, **headers: str) -> AsgiRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return AsgiRequest("POST", "/", named, parts, body_is_whole=whole)


@pytest.mark.parametrize("given", ["a", "a" * 128, "!~", "two words", '"quoted"'])
async def test_a_printable_request_id_is_taken(given: str) -> None:
    assert exchange_of(post(x_request_id=given)).request_id == given


@pytest.mark.parametrize("given", ["", "a" * 129, "tab\there", "line\nend", "é", "\x7f"])
async def test_any_other_request_id_is_replaced(given: str) -> None:
    ids = {exchange_of(post(x_request_id=given)).request_id for _ in range(2)}
    assert len(ids) == 2
    assert given not in ids


async def test_header_names_have_no_case() -> None:
    assert exchange_of(AsgiRequest("GET", "/", {"X-One": "1"})).header("x-one") == "1"


async def test_headers_are_counted_together() -> None:
    name_bytes = len("x-one") + len("x-two")
    half = (HEADER_BYTES_MAX - name_bytes) // 2
    exchange_of(post(x_one="a" * half, x_two="a" * half)).check_headers()
    with pytest.raises(HeadersTooLarge):
        exchange_of(post(x_one="a" * half, x_two="a" * (half + 1))).check_headers()


async def test_a_body_comes_in_parts() -> None:
    assert await exchange_of(post(b"ab", b"", b"cd")).read_body(4, 1.0) == b"abcd"


async def test_a_body_of_exactly_the_limit_passes() -> None:
    assert await exchange_of(post(b"abcd", content_length="4")).read_body(4, 1.0) == b"abcd"


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    exchange = exchange_of(post(b"a", whole=False, content_length="5"))
    with pytest.raises(PayloadTooLarge, match="4 bytes"):
        await exchange.read_body(4, 1.0)
    assert exchange.closing


async def test_a_body_that_does_not_say_so_is_cut_off() -> None:
    exchange = exchange_of(post(b"abc", b"de", b"never read", whole=False))
    with pytest.raises(PayloadTooLarge):
        await exchange.read_body(4, 1.0)
    assert (await exchange.receive())["body"] == b"never read"
    assert exchange.closing


async def test_a_slow_body_has_one_deadline_for_all_of_it(autojump_clock: MockClock) -> None:
    request = post(whole=False)
    exchange = exchange_of(request)

    async def drip() -> None:
        for _ in range(10):
            await trio.sleep(1.0)
            request.deliver(b"x", more=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        with pytest.raises(RequestTimeout, match=r"2\.5 s"):
            await exchange.read_body(1000, 2.5)
        assert trio.current_time() == exchange.started_at + 2.5
        nursery.cancel_scope.cancel()
    assert exchange.closing


async def test_a_client_that_leaves_while_it_sends_is_gone() -> None:
    request = post(b"{", whole=False)
    request.hang_up()
    with pytest.raises(ClientGone):
        await exchange_of(request).read_body(4, 1.0)


async def test_waiting_for_the_disconnect_skips_what_is_left_of_the_body() -> None:
    request = post(b"a", b"b")
    request.hang_up()
    await exchange_of(request).wait_disconnect()


async def test_a_response_is_whole_and_carries_the_headers_of_the_exchange() -> None:
    request = post(x_request_id="me")
    exchange = exchange_of(request)
    exchange.response_headers.append((b"allow", b"GET"))
    assert exchange.outcome == "cancelled"
    await exchange.respond(404, b"{}", headers=[(b"retry-after", b"1")])
    assert request.headers == {
        "content-type": "application/json",
        "content-length": "2",
        "retry-after": "1",
        "x-request-id": "me",
        "allow": "GET",
    }
    assert (request.status, request.body, request.is_complete) == (404, b"{}", True)
    assert (exchange.outcome, exchange.status) == ("404", 404)


async def test_the_last_response_of_a_connection_says_so() -> None:
    request = post()
    exchange = exchange_of(request)
    exchange.closing = True
    await exchange.respond(408, b"")
    assert request.headers["connection"] == "close"


async def test_a_stream_has_its_outcome_when_it_has_ended() -> None:
    request = post()
    exchange = exchange_of(request)
    await exchange.start_event_stream([(b"x-gateway-node", b"n")])
    await exchange.send_part(b"data: 1\n\n")
    assert (exchange.outcome, request.is_complete) == ("cancelled", False)
    await exchange.end_stream(b"data: 2\n\n")
    assert (exchange.outcome, request.is_complete) == ("200", True)
    assert request.body == b"data: 1\n\ndata: 2\n\n"
    assert request.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert request.headers["cache-control"] == "no-store"
    assert request.headers["x-gateway-node"] == "n"
    assert "content-length" not in request.headers


async def test_a_stream_that_failed_has_an_outcome_of_its_own() -> None:
    exchange = exchange_of(post())
    await exchange.start_event_stream()
    exchange.failed = True
    await exchange.end_stream()
    assert exchange.outcome == "error"
