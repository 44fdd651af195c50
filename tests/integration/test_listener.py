"""The listener over real sockets: slow heads, idle connections, readers that stall, and the end of all of them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import h11
import pytest
import trio
from prometheus_client import CollectorRegistry

from gateway.api.auth import Authenticator, Caller, Role
from gateway.api.exchange import Exchange
from gateway.api.http_app import BodyLimits, HttpApp, Route
from gateway.api.models import ModelDesk
from gateway.api.pages import PAGE_ROUTES, build_pages
from gateway.api.server import Listener, ListenerSettings, open_socket
from gateway.api.status import StatusSource
from gateway.domain.ids import GatewayId
from gateway.observability.metrics import Metrics, RequestMetrics
from gateway.registry.memory import MemoryRegistry
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.eligibility import EMPTY_VIEW
from gateway.routing.load_table import LoadTable
from tests.fakes.front import MODELS_DIR, READY, FakeLoads
from tests.fakes.routing_bench import idle_admission

SOON: Final = 0.2
"""Seconds of a limit that a test waits for."""
NEVER: Final = 1000.0
"""Seconds of a limit that must not be what ends a test."""
PATIENCE: Final = 20.0
"""Seconds after which a test gives up."""

HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
DO: Final = b"POST /do HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
FLOOD: Final = DO.replace(b"/do", b"/flood")
FLOOD_PART: Final = bytes(16 * 1024 * 1024)
"""More than the sockets of both sides hold."""


@dataclass
class ListenerBench:
    listener: Listener
    port: int
    ended: trio.Event

    held: AsyncExitStack
    """The clients' ends, closed at the end."""

    async def connect(self) -> trio.SocketStream:
        return await self.held.enter_async_context(await trio.open_tcp_stream("127.0.0.1", self.port))

    async def wait_connections(self, count: int) -> None:
        while len(self.listener._connections) != count:  # noqa: ASYNC110 - the listener has no event for it
            await trio.sleep(0.01)


async def answer(exchange: Exchange, _caller: Caller, body: bytes) -> None:
    await exchange.respond(200, body)


async def flood(exchange: Exchange, _caller: Caller, _body: bytes) -> None:
    await exchange.start_event_stream()
    while True:
        await exchange.send_part(FLOOD_PART)


def build_app() -> HttpApp:
    source = StatusSource(GatewayId("g"), lambda: True, lambda: EMPTY_VIEW, LoadTable().statistics, dict, lambda: 0.0)
    registry = MemoryRegistry()
    desk = ModelDesk(registry, source, SnapshotStore(EMPTY_VIEW), FakeLoads(), (), MODELS_DIR)
    return HttpApp(
        [Route("POST", "/do", Role.INFERENCE, answer), Route("POST", "/flood", Role.INFERENCE, flood)],
        PAGE_ROUTES,
        build_pages(source, idle_admission(), Metrics(list), lambda: READY, registry, desk),
        authenticator=Authenticator((), allow_anonymous=False),
        metrics=RequestMetrics(CollectorRegistry()),
        limits=BodyLimits(1000, NEVER),
    )


@asynccontextmanager
async def open_listener(**settings: Any) -> AsyncIterator[ListenerBench]:
    """Every limit that is not set is out of the way."""
    limits: dict[str, Any] = {
        "drain_seconds": NEVER,
        "write_timeout_seconds": NEVER,
        "header_timeout_seconds": NEVER,
        "connections_max": 100,
        "end_grace_seconds": SOON,
        **settings,
    }
    app = build_app()
    listener = Listener(app, ListenerSettings(**limits), on_drain=app.drain, on_drain_end=app.end_streams)
    bench = ListenerBench(listener, 0, trio.Event(), AsyncExitStack())

    async def run(*, task_status: trio.TaskStatus[str]) -> None:
        await listener.run(open_socket("127.0.0.1", 0), task_status=task_status)
        bench.ended.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(run)
            bench.port = int(url.rpartition(":")[2])
            async with bench.held:
                yield bench
            nursery.cancel_scope.cancel()


async def read_response(stream: trio.SocketStream) -> int:
    """Reads one response to its end and returns its status."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    reader.send(h11.EndOfMessage())
    status = 0
    while not isinstance(event := reader.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            reader.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            status = event.status_code
    return status


async def read_to_end(stream: trio.SocketStream) -> bytes:
    """What still comes until the server closes; a reset is an end, too."""
    parts = b""
    try:
        async for part in stream:
            parts += part
    except trio.BrokenResourceError:
        pass
    return parts


@pytest.mark.parametrize("head", [b"", b"GET ", HEALTH[:-2]])
async def test_a_connection_without_a_whole_head_is_closed_and_blocks_nobody(head: bytes) -> None:
    async with open_listener(header_timeout_seconds=SOON) as bench:
        slow, quick = await bench.connect(), await bench.connect()
        await slow.send_all(head)
        await quick.send_all(HEALTH)
        assert await read_response(quick) == 200
        assert await read_to_end(slow) == b""


@pytest.mark.parametrize("request_bytes", [HEALTH, DO])
async def test_a_connection_that_is_idle_after_a_request_is_closed(request_bytes: bytes) -> None:
    async with open_listener(header_timeout_seconds=SOON) as bench:
        client = await bench.connect()
        await client.send_all(request_bytes)
        assert await read_response(client) == 200
        assert await read_to_end(client) == b""


CLOSING: Final = b"\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [HEALTH.replace(b"\r\n", CLOSING, 1), DO.replace(b"\r\n", CLOSING, 1), HEALTH.replace(b"1.1", b"1.0")],
)
async def test_a_connection_that_is_not_to_be_kept_is_closed(request_bytes: bytes) -> None:
    async with open_listener() as bench:
        client = await bench.connect()
        await client.send_all(request_bytes)
        assert await read_response(client) == 200
        assert await read_to_end(client) == b""


@pytest.mark.parametrize("request_bytes", [HEALTH, DO])
async def test_an_idle_connection_does_not_hold_the_drain(request_bytes: bytes) -> None:
    async with open_listener() as bench:
        client = await bench.connect()
        await client.send_all(request_bytes)
        assert await read_response(client) == 200
        bench.listener.stop.set()
        await bench.ended.wait()


@pytest.mark.parametrize("request_bytes", [b"", HEALTH, DO])
async def test_what_a_client_has_closed_is_given_back_at_once(request_bytes: bytes) -> None:
    async with open_listener() as bench:
        client = await bench.connect()
        await bench.wait_connections(1)
        if request_bytes:
            await client.send_all(request_bytes)
            assert await read_response(client) == 200
        await client.aclose()
        await bench.wait_connections(0)


async def test_a_reader_that_stalls_loses_its_connection() -> None:
    async with open_listener(write_timeout_seconds=SOON) as bench:
        stalled = await bench.connect()
        await stalled.send_all(FLOOD)
        await stalled.receive_some(1)
        await bench.wait_connections(0)


async def test_a_reader_that_stalls_does_not_hold_the_end() -> None:
    async with open_listener(drain_seconds=SOON) as bench:
        stalled = await bench.connect()
        await stalled.send_all(FLOOD)
        await stalled.receive_some(1)
        bench.listener.stop.set()
        await bench.ended.wait()


async def test_one_connection_too_many_is_closed_and_a_free_place_is_used_again() -> None:
    async with open_listener(connections_max=2) as bench:
        first, second = await bench.connect(), await bench.connect()
        await bench.wait_connections(2)
        assert await read_to_end(await bench.connect()) == b""
        await second.send_all(HEALTH)
        assert await read_response(second) == 200
        await first.aclose()
        await bench.wait_connections(1)
        third = await bench.connect()
        await third.send_all(HEALTH)
        assert await read_response(third) == 200
