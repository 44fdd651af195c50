"""The listener over real sockets, with an application that has a few routes of its own."""

import math
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import h11
import trio
from prometheus_client import CollectorRegistry
from trio.testing import MockClock

from gateway.api.admin.documents import StatusSource
from gateway.api.admin.models import ModelService
from gateway.api.admin.routes import PAGE_ROUTES, build_admin_app
from gateway.api.http.auth import Authenticator, Caller, Role
from gateway.api.http.exchange import App, Exchange
from gateway.api.http.http_app import BodyLimits, HttpApp, Route
from gateway.api.http.listener.listening_socket import open_socket
from gateway.api.http.listener.server import Listener, ListenerSettings
from gateway.composition.http_api import ERRORS
from gateway.domain.ids import GatewayId
from gateway.domain.pacing import TokenBucket
from gateway.observability.metrics import Metrics, RequestMetrics
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.routing.load_tracker import LoadTracker
from tests.fakes.api_harness import MODELS_DIR, READY, FakeLoads
from tests.fakes.fleet_status import fleet_status
from tests.fakes.routing_harness import idle_admission

SOON: Final = 0.2
"""Seconds of a limit that a test waits for, or lets pass on a clock that stands still until then."""
NEVER: Final = 1000.0
"""Seconds of a limit that must not be what ends a test."""
PATIENCE: Final = 20.0
"""Seconds after which a test gives up."""

HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
DO: Final = b"POST /do HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
FLOOD: Final = DO.replace(b"/do", b"/flood")
FLOOD_PART: Final = bytes(16 * 1024 * 1024)
"""More than the sockets of both sides hold."""


BODIES_AT_ONCE: Final = 200
"""Of the largest size: more than any test sends side by side."""


def let_time_pass(clock: MockClock) -> None:
    """To the next limit, whenever all wait."""
    clock.autojump_threshold = 0.0


@dataclass
class ListenerHarness:
    listener: Listener
    port: int
    ended: trio.Event

    held: AsyncExitStack
    """The clients' ends, closed at the end."""
    handlers: "Handlers"

    async def connect(self) -> trio.SocketStream:
        return await self.held.enter_async_context(await trio.open_tcp_stream("127.0.0.1", self.port))

    async def wait_connections(self, count: int) -> None:
        while len(self.listener._connections) != count:  # noqa: ASYNC110 - the listener has no event for it
            await trio.sleep(0.01)


@dataclass
class Handlers:
    """What the routes do, and how many of them are at it."""

    running: int = 0
    done: int = 0
    changed: trio.Event = field(default_factory=trio.Event)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.running += 1
        self._note_change()
        try:
            yield
        finally:
            self.running -= 1
            self.done += 1
            self._note_change()

    def _note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def wait(self, *, running: int, done: int) -> None:
        while (self.running, self.done) != (running, done):
            await self.changed.wait()

    async def answer(self, exchange: Exchange, _caller: Caller, body: bytes) -> None:
        with self._counted():
            await exchange.respond(200, body)

    async def flood(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        with self._counted():
            await exchange.start_event_stream()
            while True:
                await exchange.send_part(FLOOD_PART)

    async def stream(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        """A small part, and then nothing."""
        with self._counted():
            await exchange.start_event_stream()
            await exchange.send_part(b"part")
            await trio.sleep_forever()


def build_app(handlers: Handlers, body_bytes_max: int) -> HttpApp:
    source = StatusSource(fleet_status(GatewayId("g")), LoadTracker().statistics, dict, lambda: 0.0)
    registry = MemoryRegistry()
    service = ModelService(registry, source, FakeLoads(), (), MODELS_DIR)
    return HttpApp(
        [
            Route("POST", "/do", Role.INFERENCE, handlers.answer),
            Route("POST", "/flood", Role.INFERENCE, handlers.flood),
            Route("POST", "/stream", Role.INFERENCE, handlers.stream),
        ],
        PAGE_ROUTES,
        build_admin_app(source, idle_admission(), Metrics(), tuple, lambda: READY, registry, service, errors=ERRORS),
        errors=ERRORS,
        authenticator=Authenticator((), allow_anonymous=False),
        metrics=RequestMetrics(CollectorRegistry()),
        limits=BodyLimits(body_bytes_max, NEVER, budget_bytes=BODIES_AT_ONCE * body_bytes_max),
    )


@asynccontextmanager
async def open_listener(
    *,
    body_bytes_max: int = 1000,
    drop_pace: TokenBucket | None = None,
    tls: ssl.SSLContext | None = None,
    app: App | None = None,
    **settings: Any,
) -> AsyncIterator[ListenerHarness]:
    """Every limit that is not set is out of the way. `app` answers instead of the routes of `Handlers`."""
    limits: dict[str, Any] = {
        "drain_seconds": NEVER,
        "write_timeout_seconds": NEVER,
        "header_timeout_seconds": NEVER,
        "connections_max": 100,
        "end_grace_seconds": SOON,
        **settings,
    }
    handlers = Handlers()
    routes = build_app(handlers, body_bytes_max)
    listener = Listener(
        routes if app is None else app,
        ListenerSettings(**limits),
        on_drain=routes.drain,
        on_drain_end=routes.end_streams,
        tls=tls,
        drop_pace=drop_pace or TokenBucket(math.inf, burst=math.inf),
    )
    harness = ListenerHarness(listener, 0, trio.Event(), AsyncExitStack(), handlers)

    async def run(*, task_status: trio.TaskStatus[str]) -> None:
        await listener.run(open_socket("127.0.0.1", 0), task_status=task_status)
        harness.ended.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(run)
            harness.port = int(url.rpartition(":")[2])
            async with harness.held:
                yield harness
            nursery.cancel_scope.cancel()


async def read_response(stream: trio.abc.ReceiveStream) -> int:
    """Reads one response to its end and returns its status."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    reader.send(h11.EndOfMessage())
    status = 0
    while not isinstance(event := reader.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            reader.receive_data(bytes(await stream.receive_some()))
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
