"""The listener over real sockets: slow heads, idle connections, readers that stall, and the end of all of them."""

import socket
from typing import Final

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from gateway.api.http.client_watch import ClientWatch
from gateway.api.http.exchange import LINGER_IDLE_SECONDS
from gateway.api.http.listener.dropping import Dropping, open_drop_pace
from gateway.api.http.listener.http2_connection import Inbox
from tests.fakes.listener_harness import (
    DO,
    FLOOD,
    FLOOD_PART,
    HEALTH,
    PATIENCE,
    SOON,
    let_time_pass,
    open_listener,
    read_response,
    read_to_end,
)


@pytest.mark.parametrize("head", [b"", b"GET ", HEALTH[:-2]])
async def test_a_connection_without_a_whole_head_is_closed_and_blocks_nobody(
    head: bytes, mock_clock: MockClock
) -> None:
    async with open_listener(header_timeout_seconds=SOON) as harness:
        slow, quick = await harness.connect(), await harness.connect()
        await slow.send_all(head)
        await quick.send_all(HEALTH)
        assert await read_response(quick) == 200
        let_time_pass(mock_clock)
        assert await read_to_end(slow) == b""


@pytest.mark.parametrize("request_bytes", [HEALTH, DO])
async def test_a_connection_that_is_idle_after_a_request_is_closed(request_bytes: bytes, mock_clock: MockClock) -> None:
    async with open_listener(header_timeout_seconds=SOON) as harness:
        client = await harness.connect()
        await client.send_all(request_bytes)
        assert await read_response(client) == 200
        let_time_pass(mock_clock)
        assert await read_to_end(client) == b""


CLOSING: Final = b"\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [HEALTH.replace(b"\r\n", CLOSING, 1), DO.replace(b"\r\n", CLOSING, 1), HEALTH.replace(b"1.1", b"1.0")],
)
async def test_a_connection_that_is_not_to_be_kept_is_closed(request_bytes: bytes) -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(request_bytes)
        assert await read_response(client) == 200
        assert await read_to_end(client) == b""


@pytest.mark.parametrize("request_bytes", [HEALTH, DO])
async def test_an_idle_connection_does_not_hold_the_drain(request_bytes: bytes) -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(request_bytes)
        assert await read_response(client) == 200
        harness.listener.stop.set()
        await harness.ended.wait()


@pytest.mark.parametrize("request_bytes", [b"", HEALTH, DO])
async def test_what_a_client_has_closed_is_given_back_at_once(request_bytes: bytes) -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await harness.wait_connections(1)
        if request_bytes:
            await client.send_all(request_bytes)
            assert await read_response(client) == 200
        await client.aclose()
        await harness.wait_connections(0)


async def test_a_reader_that_stalls_loses_its_connection(mock_clock: MockClock) -> None:
    async with open_listener(write_timeout_seconds=SOON) as harness:
        stalled = await harness.connect()
        await stalled.send_all(FLOOD)
        await stalled.receive_some(1)
        let_time_pass(mock_clock)
        await harness.wait_connections(0)


async def test_a_reader_that_stalls_does_not_hold_the_end(mock_clock: MockClock) -> None:
    async with open_listener(drain_seconds=SOON) as harness:
        stalled = await harness.connect()
        await stalled.send_all(FLOOD)
        await stalled.receive_some(1)
        harness.listener.stop.set()
        let_time_pass(mock_clock)
        await harness.ended.wait()


async def test_one_connection_too_many_is_closed_and_a_free_place_is_used_again() -> None:
    async with open_listener(connections_max=2) as harness:
        first, second = await harness.connect(), await harness.connect()
        await harness.wait_connections(2)
        assert await read_to_end(await harness.connect()) == b""
        await second.send_all(HEALTH)
        assert await read_response(second) == 200
        await first.aclose()
        await harness.wait_connections(1)
        third = await harness.connect()
        await third.send_all(HEALTH)
        assert await read_response(third) == 200


async def test_clients_that_have_left_before_they_are_served_are_no_failure() -> None:
    with capture_logs() as logs:
        async with open_listener() as harness:
            for _ in range(50):
                rude = socket.create_connection(("127.0.0.1", harness.port))
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                rude.close()
            client = await harness.connect()
            await client.send_all(HEALTH)
            assert await read_response(client) == 200
            await harness.wait_connections(1)
    assert [each["event"] for each in logs if each["log_level"] == "error"] == []


async def test_who_writes_a_whole_refused_body_before_reading_gets_the_answer(mock_clock: MockClock) -> None:
    """However long that takes, if more comes all the time: each part is more than the sockets of both sides hold, so
    the gateway has taken some of it when the client has written it."""
    parts = 3
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(DO.replace(b"Length: 2\r\n\r\n{}", b"Length: %d\r\n\r\n" % (parts * len(FLOOD_PART))))
        for _ in range(parts):
            await client.send_all(FLOOD_PART)
            mock_clock.jump(0.8 * LINGER_IDLE_SECONDS)
        assert await read_response(client) == 413
        mock_clock.rate = 1.0
        assert await read_to_end(client) == b""


async def test_the_end_of_a_refused_body_ends_its_connection() -> None:
    """Nothing waits for more of it."""
    inbox = Inbox(messages_max=2, watch=ClientWatch(), dropping=Dropping(open_drop_pace()))
    inbox.record_answer()
    for number in range(4):
        await inbox.put({"type": "http.request", "body": b"much", "more_body": number < 3})
    with trio.fail_after(PATIENCE):
        assert await inbox.receive() == {"type": "http.request", "body": b"", "more_body": False}
