"""How a request's body is read: within the budget, refused before it is read, gone once something was made of it."""

import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
from prometheus_client import CollectorRegistry
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.api.http.auth import Authenticator, Caller, Role
from gateway.api.http.exchange import LINGER_IDLE_SECONDS, Exchange, Message
from gateway.api.http.http_app import BodyLimits, Handler, HttpApp, Route
from gateway.composition.http_api import ERRORS
from gateway.observability.metrics import RequestMetrics
from tests.fakes.asgi import AsgiRequest, FakeAdminApp

MIB = 1024 * 1024
BODY_BYTES_MAX = 8 * MIB
BUDGET_BYTES = 16 * MIB
JSON = {"host": "localhost", "content-type": "application/json"}
PATIENCE_SECONDS = 10.0


async def answer_ok(exchange: Exchange, _caller: Caller, _body: bytes) -> None:
    await exchange.respond(200, b"seen")


async def stay(_exchange: Exchange, _caller: Caller, _body: bytes) -> None:
    await trio.sleep_forever()


def build(handler: Handler = answer_ok) -> HttpApp:
    return HttpApp(
        [Route("POST", "/do", Role.INFERENCE, handler)],
        [],
        FakeAdminApp(),
        errors=ERRORS,
        authenticator=Authenticator([], allow_anonymous=False),
        metrics=RequestMetrics(CollectorRegistry()),
        limits=BodyLimits(BODY_BYTES_MAX, timeout_seconds=5.0, budget_bytes=BUDGET_BYTES),
    )


def announced(size_bytes: int, *parts: bytes) -> AsgiRequest:
    """One that says its size, of which only these parts have come."""
    headers = {**JSON, "content-length": str(size_bytes)}
    return AsgiRequest("POST", "/do", headers, parts, body_is_whole=False)


def whole(size_bytes: int) -> AsgiRequest:
    half = size_bytes // 2
    return AsgiRequest("POST", "/do", JSON, [b" " * half, b" " * (size_bytes - half)])


async def test_what_does_not_fit_is_refused_before_it_is_read() -> None:
    app = build(stay)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(whole(BODY_BYTES_MAX).run, app)
            await wait_all_tasks_blocked()
            late = announced(BODY_BYTES_MAX)
            nursery.start_soon(late.run, app)
            await late.answering.wait()  # nothing of its body was sent
            assert (late.status, late.error["code"]) == (503, "overloaded")
            assert int(late.headers["retry-after"]) > 0
            assert late.headers["connection"] == "close"
            nursery.cancel_scope.cancel()


async def test_what_was_held_is_free_when_the_request_has_ended() -> None:
    app = build()
    for _ in range(2 * BUDGET_BYTES // BODY_BYTES_MAX):
        assert (await whole(BODY_BYTES_MAX).run(app)).status == 200


async def test_what_was_held_is_free_when_the_client_has_left() -> None:
    app = build()
    for _ in range(2 * BUDGET_BYTES // BODY_BYTES_MAX):
        request = announced(BODY_BYTES_MAX, b" " * (BODY_BYTES_MAX - 1))
        request.hang_up()
        await request.run(app)
    assert (await whole(BODY_BYTES_MAX).run(app)).status == 200


async def test_a_body_of_unknown_size_is_refused_when_it_no_longer_fits(autojump_clock: MockClock) -> None:
    app = build(stay)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(whole(BODY_BYTES_MAX - MIB).run, app)
        await wait_all_tasks_blocked()
        grows = AsgiRequest("POST", "/do", JSON, [b" " * MIB, b" " * MIB], body_is_whole=False)
        await grows.run(app)
        assert (grows.status, grows.error["code"]) == (503, "overloaded")
        nursery.cancel_scope.cancel()


def begun(path: str, host: str) -> AsgiRequest:
    return AsgiRequest("POST", path, {**JSON, "host": host, "content-length": "9"}, [b"1"], body_is_whole=False)


Make = Callable[[], AsgiRequest]


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: announced(BODY_BYTES_MAX + 1, b"1"), 413),
        (lambda: begun("/no", "localhost"), 404),
        (lambda: begun("/do", "evil"), 403),
    ],
)
async def test_an_early_answer_is_there_at_once_and_the_rest_of_the_body_is_taken(make: Make, status: int) -> None:
    """A socket that is closed with something unread in it is reset, and the answer is lost."""
    request = make()
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.run, build())
            await request.answering.wait()
            assert request.status == status
            assert request.headers["connection"] == "close"
            assert request.error["message"]
            for _ in range(3):
                request.deliver(b"more", more=True)
                await wait_all_tasks_blocked()
                assert not request.is_complete  # then the connection would be closed
            request.deliver(b"end", more=False)
    assert request.is_complete


async def test_the_rest_of_a_body_is_not_waited_for_for_ever(autojump_clock: MockClock) -> None:
    request = announced(BODY_BYTES_MAX + 1, b"1")
    with trio.fail_after(LINGER_IDLE_SECONDS + 1):
        await request.run(build())
    assert request.is_complete


async def test_the_end_of_an_early_answer_does_not_wait_behind_the_body(autojump_clock: MockClock) -> None:
    """The listener's queue has room for two parts; its word that the connection ends comes behind them."""
    send_parts, parts = trio.open_memory_channel[Message](2)
    ended = False

    async def send(message: Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.body" and not message["more_body"]:
            for _ in range(2):
                send_parts.send_nowait({"type": "http.request", "body": b"x", "more_body": True})
            await send_parts.send({"type": "http.disconnect"})
            ended = True

    with trio.fail_after(10 * LINGER_IDLE_SECONDS):
        await build()(announced(BODY_BYTES_MAX + 1).scope, parts.receive, send)
    assert ended


async def test_a_body_is_gone_once_its_handler_has_let_go_of_it() -> None:
    """While a request waits, only what was made of its body is kept."""
    held: list[int] = []

    async def let_go(exchange: Exchange, _caller: Caller, body: bytes) -> None:
        assert len(body) == BODY_BYTES_MAX
        del body
        held.append(tracemalloc.get_traced_memory()[0])
        await exchange.respond(200, b"done")

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        app: Callable[..., Awaitable[None]] = build(let_go)
        await whole(BODY_BYTES_MAX).run(app)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held[0] - before < MIB
    assert peak - before < 2.5 * BODY_BYTES_MAX  # the parts as they come and one buffer


async def test_what_has_come_of_a_refused_body_is_gone_while_its_rest_is_dropped() -> None:
    """Its charge is given back with the refusal, so others use that memory."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        request = AsgiRequest("POST", "/do", JSON, [], body_is_whole=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.run, build())
            for _ in range(BODY_BYTES_MAX // MIB + 1):
                request.deliver(bytes(MIB), more=True)
            await request.answering.wait()
            await wait_all_tasks_blocked()
            held = tracemalloc.get_traced_memory()[0] - before
            request.deliver(b"", more=False)
    finally:
        tracemalloc.stop()
    assert request.status == 413
    assert held < MIB
