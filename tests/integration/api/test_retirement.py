"""The retirement of a listener: it accepts nothing more, and no client loses a request by it."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.api.http.listener.retirement import wait_first
from tests.fakes.listener_harness import HEALTH, ListenerHarness, let_time_pass, open_listener, read_to_end

IDLE_SECONDS = 15.0


async def connect(harness: ListenerHarness) -> trio.SocketStream:
    """A connection that has had an answer, and is idle now."""
    stream = await harness.connect()
    await stream.send_all(HEALTH)
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
    return stream


async def test_an_idle_connection_gets_one_more_answer_which_says_that_it_ends() -> None:
    async with open_listener() as harness:
        stream = await connect(harness)
        harness.listener.retirement.begun.set()
        await wait_all_tasks_blocked(0.05)
        await stream.send_all(HEALTH)
        answer = await read_to_end(stream)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        await harness.listener.retirement.over.wait()
        assert not harness.ended.is_set()


async def test_nobody_else_is_accepted() -> None:
    async with open_listener() as harness:
        await connect(harness)
        harness.listener.retirement.begun.set()
        await wait_all_tasks_blocked(0.05)
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", harness.port)


async def test_an_idle_connection_ends_after_the_usual_time(mock_clock: MockClock) -> None:
    async with open_listener(header_timeout_seconds=IDLE_SECONDS) as harness:
        stream = await connect(harness)
        began = trio.current_time()
        harness.listener.retirement.begun.set()
        let_time_pass(mock_clock)
        assert await read_to_end(stream) == b""
        assert trio.current_time() - began >= IDLE_SECONDS
        await harness.listener.retirement.over.wait()


async def test_a_request_that_lasts_is_left_to_the_drain(mock_clock: MockClock) -> None:
    async with open_listener(header_timeout_seconds=IDLE_SECONDS, drain_seconds=100.0) as harness:
        stream = await harness.connect()
        await stream.send_all(b"POST /stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        await wait_all_tasks_blocked(0.05)
        harness.listener.retirement.begun.set()
        let_time_pass(mock_clock)
        await harness.listener.retirement.over.wait()
        assert not harness.ended.is_set()


async def test_a_stop_ends_a_retirement() -> None:
    async with open_listener() as harness:
        stream = await connect(harness)
        harness.listener.retirement.begun.set()
        await wait_all_tasks_blocked(0.05)
        harness.listener.stop.set()
        assert await read_to_end(stream) == b""
        await harness.ended.wait()


async def test_the_first_of_several_waits_ends_them_all() -> None:
    never, soon = trio.Event(), trio.Event()
    soon.set()
    with trio.fail_after(10):
        await wait_first(never.wait, soon.wait)
