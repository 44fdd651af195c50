"""HTTP/1 connections over real sockets: who leaves, who sends ahead, what is refused early, and what a drain does."""

import math
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.api.http.client_watch import CLIENT_WATCH
from gateway.api.http.listener.connection import HANDSHAKE_SECONDS, ClientConnection, Http2Service
from gateway.api.http.listener.dropping import open_drop_pace
from gateway.api.http.listener.http1_input import UNREAD_BYTES_MAX, Http1Input
from gateway.api.http.listener.http1_parser import CHUNKS_AT_ONCE
from gateway.api.http.listener.http1_request import Http1Service
from gateway.domain.pacing import TokenBucket
from tests.fakes.certificates import make_authority
from tests.fakes.listener_harness import (
    DO,
    FLOOD_PART,
    HEALTH,
    NEVER,
    ListenerHarness,
    let_time_pass,
    open_listener,
    read_response,
    read_to_end,
)

STREAM: Final = DO.replace(b"/do", b"/stream")
MIB: Final = 1024 * 1024


def refused(size_bytes: int, *lines: bytes) -> bytes:
    """The head of a request whose body is too large."""
    more = b"".join(line + b"\r\n" for line in lines)
    return DO.replace(b"Length: 2\r\n\r\n{}", b"Length: %d\r\n%b\r\n" % (size_bytes, more))


def statuses(answers: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d{3})", answers)


def the_input(harness: ListenerHarness) -> Http1Input:
    """Of the only connection."""
    (connection,) = harness.listener._connections
    assert connection._http1 is not None
    return connection._http1._input


async def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - the listener has no event for it
        await trio.sleep(0.01)


# Clients that leave


@pytest.mark.parametrize("end", ["fin", "abort"])
async def test_the_handler_of_a_client_that_leaves_ends(end: str) -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(STREAM)
        await harness.handlers.wait(running=1, done=0)
        if end == "abort":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await client.aclose()
        await harness.handlers.wait(running=0, done=1)
        await harness.wait_connections(0)


async def test_a_client_that_closes_its_side_has_left() -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(STREAM)
        await harness.handlers.wait(running=1, done=0)
        await client.send_eof()
        await harness.handlers.wait(running=0, done=1)
        assert await read_to_end(client)


# Clients that send ahead


async def test_many_requests_in_one_go_are_answered_in_order() -> None:
    count = 500
    async with open_listener() as harness:
        client = await harness.connect()
        closing = HEALTH.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, HEALTH * count + closing)
            assert statuses(await read_to_end(client)) == [b"200"] * (count + 1)


async def test_no_more_is_read_ahead_than_the_bound() -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        sent = trio.Event()

        async def send_much() -> None:
            await client.send_all(STREAM + FLOOD_PART)
            sent.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_much)
            await harness.handlers.wait(running=1, done=0)
            await wait_until(lambda: the_input(harness)._parser.unread_bytes >= UNREAD_BYTES_MAX)
            await wait_all_tasks_blocked(0.05)
            assert the_input(harness)._parser.unread_bytes == UNREAD_BYTES_MAX
            assert not sent.is_set()
            nursery.cancel_scope.cancel()


async def test_a_body_that_is_larger_than_the_bound_arrives() -> None:
    size = 20 * UNREAD_BYTES_MAX
    async with open_listener(body_bytes_max=size) as harness:
        client = await harness.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, refused(size) + bytes(size))
            assert await read_response(client) == 200


# Bodies that are refused early


async def test_the_rests_of_refused_bodies_share_one_pace(mock_clock: MockClock) -> None:
    """Otherwise those who send them take the processor from everybody else."""
    clients, size, pace = 4, 4 * MIB, TokenBucket(2 * MIB, burst=MIB)
    let_time_pass(mock_clock)
    async with open_listener(drop_pace=pace) as harness:
        begin = trio.current_time()

        async def send_much() -> None:
            client = await harness.connect()
            await client.send_all(refused(size) + bytes(size))
            assert await read_response(client) == 413
            assert await read_to_end(client) == b""

        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(send_much)
        await harness.wait_connections(0)  # The answers ended long before.
        unpaced = 2 * UNREAD_BYTES_MAX  # What comes with the head, and the last part, after which nothing is read.
        expected = (clients * (size - unpaced) - pace.burst) / pace.per_second
        assert trio.current_time() - begin >= expected


async def test_a_connection_that_waits_for_its_turn_holds_no_data(mock_clock: MockClock) -> None:
    async with open_listener(drop_pace=TokenBucket(1.0, burst=0.0)) as harness:
        client = await harness.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, refused(len(FLOOD_PART)) + FLOOD_PART)
            assert await read_response(client) == 413
            incoming = the_input(harness)
            mock_clock.rate = 1.0
            await wait_until(lambda: incoming._dropping.pause_seconds > 0)
            mock_clock.rate = 0.0
            assert incoming._parser.unread_bytes == 0
            nursery.cancel_scope.cancel()


async def test_the_end_of_a_refused_body_ends_its_connection() -> None:
    """Nothing waits for more of it, or for a time to pass."""
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(refused(5000) + bytes(4000))
        assert await read_response(client) == 413
        await client.send_all(bytes(1000))
        assert await read_to_end(client) == b""
        await harness.wait_connections(0)


async def test_who_asks_before_it_sends_is_refused_before_it_sends() -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(refused(5000, b"Expect: 100-continue"))
        assert statuses(await client.receive_some()) == [b"413"]
        await client.send_all(DO.replace(b"\r\n\r\n{}", b"\r\n\r\n"))


async def test_a_client_that_awaits_continue_gets_it_once() -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(DO.replace(b"\r\n\r\n{}", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert await client.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send_all(b"{")
        await client.send_all(b"}")
        assert await read_response(client) == 200


# The drain


async def test_an_answer_during_the_drain_is_the_last_of_its_connection() -> None:
    async with open_listener() as harness:
        idle, busy = await harness.connect(), await harness.connect()
        await idle.send_all(HEALTH)
        assert await read_response(idle) == 200
        await busy.send_all(DO[:-1])
        await wait_until(lambda: any(each._http1._input._idle_since == math.inf for each in the_http1(harness)))
        harness.listener.stop.set()
        assert await read_to_end(idle) == b""
        await busy.send_all(DO[-1:])
        answer = await read_to_end(busy)
        assert statuses(answer) == [b"200"]
        assert b"connection: close\r\n" in answer
        await harness.ended.wait()


def the_http1(harness: ListenerHarness) -> list[Any]:
    return [each for each in harness.listener._connections if each._http1 is not None]


# Applications


Send = Callable[[Any], Awaitable[None]]


def answering(*messages: dict[str, Any], error: Exception | None = None) -> Callable[..., Awaitable[None]]:
    """An application that sends these messages to everybody, and then fails or not."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive()) is not None:
                await send({"type": f"{message['type']}.complete"})
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return app


def start(status: int, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


PART: Final = {"type": "http.response.body", "body": b"part", "more_body": True}
END: Final = {"type": "http.response.body", "body": b"end"}


@pytest.mark.parametrize(("status", "method"), [(204, b"GET"), (304, b"GET"), (200, b"HEAD")])
async def test_what_has_no_body_has_none_on_a_connection_that_goes_on(status: int, method: bytes) -> None:
    async with open_listener(app=answering(start(status), PART, END)) as harness:
        client = await harness.connect()
        await client.send_all(2 * HEALTH.replace(b"GET", method))
        await client.send_all(HEALTH.replace(b"GET", method).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        answer = await read_to_end(client)
        assert statuses(answer) == [b"%d" % status] * 3
        assert b"part" not in answer
        assert b"end" not in answer


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (answering(error=KeyError("a bug")), [b"500"]),
        (answering(), [b"500"]),
        (answering(start(200, (b"x-a", b"1\r\nx-b: 2")), END), [b"500"]),
        (answering(start(200), PART, error=KeyError("a bug")), [b"200"]),
        (answering(start(200, (b"content-length", b"9")), PART, END), [b"200"]),
    ],
    ids=["fails", "says_nothing", "breaks_a_header", "fails_late", "says_too_little"],
)
async def test_an_application_that_fails_ends_its_connection_and_no_other(app: Any, expected: list[bytes]) -> None:
    async with open_listener(app=app) as harness:
        other = await harness.connect()
        with capture_logs():
            client = await harness.connect()
            await client.send_all(2 * HEALTH)
            answer = await read_to_end(client)
        assert statuses(answer) == expected
        assert b"x-b" not in answer
        assert not answer.endswith(b"0\r\n\r\n"), "a client would take it for whole"
        await harness.wait_connections(1)
        await other.send_all(HEALTH)
        assert statuses(await read_to_end(other)) == expected


@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_body_of_small_chunks_lets_others_have_their_turn(is_refused: bool) -> None:
    """The turns of another task are counted while the application reads what is there, or the listener drops it. Two
    tasks may drop at the same time."""
    number = 9_000
    turns = began = ended = 0
    done = trio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        nonlocal began, ended
        if scope["type"] == "lifespan":
            await answering()(scope, receive, send)
            return
        began = turns
        if is_refused:
            await send(start(413, (b"content-length", b"3")))
        while (await receive())["more_body"]:
            pass
        ended = turns
        if not is_refused:
            await send(start(200, (b"content-length", b"3")))
        await send(END)
        done.set()

    async def take_turns() -> None:
        nonlocal turns
        while not done.is_set():
            await trio.lowlevel.checkpoint()
            turns += 1

    head = DO.replace(b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n")
    async with open_listener(app=app) as harness, trio.open_nursery() as nursery:
        client = await harness.connect()
        nursery.start_soon(take_turns)
        await client.send_all(head + b"1\r\n \r\n" * number + b"0\r\n\r\n")
        await done.wait()
    assert ended - began >= number // CHUNKS_AT_ONCE // 2


async def test_an_application_that_never_waits_lets_others_have_their_turn() -> None:
    """And notices that its client has left."""
    left = trio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await answering()(scope, receive, send)
        if scope["path"] == "/healthz":
            await answering(start(200, (b"content-length", b"3")), END)(scope, receive, send)
            return
        await send(start(200))
        with trio.CancelScope() as cancel_scope:
            scope["extensions"][CLIENT_WATCH].cancel_when_gone(cancel_scope)
            while True:
                await send(PART)
        left.set()

    async with open_listener(app=app) as harness:
        endless, other = await harness.connect(), await harness.connect()
        await endless.send_all(DO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_to_end, endless)
            await other.send_all(HEALTH)
            assert await read_response(other) == 200
            nursery.cancel_scope.cancel()
        await endless.aclose()
        await left.wait()


# TLS


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of the server and of its clients, which speak no HTTP/2."""
    authority = make_authority(folder)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*authority.issue("127.0.0.1"))
    server.set_alpn_protocols(["h2", "http/1.1"])
    return server, ssl.create_default_context(cafile=str(authority.cert))


async def test_it_is_the_same_over_tls(tmp_path: Path) -> None:
    server, trusting = contexts(tmp_path)
    size = 10 * UNREAD_BYTES_MAX
    async with open_listener(tls=server, body_bytes_max=size) as harness:
        client = trio.SSLStream(await harness.connect(), trusting, server_hostname="127.0.0.1")
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, refused(size) + bytes(size))
                assert await read_response(client) == 200
        await client.send_all(STREAM)
        await harness.handlers.wait(running=1, done=2)
        await client.aclose()
        await harness.handlers.wait(running=0, done=3)
        await harness.wait_connections(0)


async def test_a_handshake_that_does_not_come_is_given_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    app = answering()
    ours, silent = trio.socket.socketpair()
    tls = trio.SSLStream(trio.SocketStream(ours), contexts(tmp_path)[0], server_side=True)
    http1 = Http1Service(app, HANDSHAKE_SECONDS, speaks_http2=True, drop_pace=open_drop_pace())
    http2 = Http2Service(wrap_app(app, 0, "asgi"), Config(), WorkerContext(None), open_drop_pace())
    with silent:
        await ClientConnection(http1, http2, tls, write_timeout_seconds=NEVER).run()
        assert trio.current_time() == HANDSHAKE_SECONDS
        assert await silent.recv(1) == b""
