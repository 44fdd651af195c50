"""The parts of one gateway, put together in the order in which they need each other; `services` brings them to life."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from random import Random

from gateway.api.admin.documents import StatusSource
from gateway.api.admin.metrics_source import readings
from gateway.api.admin.replica_logs import open_replica_tail
from gateway.api.admin.routes import Readiness
from gateway.api.http.auth import Authenticator
from gateway.api.http.http_app import HttpApp
from gateway.api.http.stream_keepalive import StreamKeepalive
from gateway.backends.dial import Dial
from gateway.backends.grpc.transport import Connect, connect
from gateway.bridge import Bridge
from gateway.composition.control import Control, build_control
from gateway.composition.http_api import HttpParts, build_http_app
from gateway.composition.http_settings import http_settings
from gateway.composition.routing import Routing, open_routing
from gateway.composition.shared import SharedParts, build_shared
from gateway.config.model import Config
from gateway.domain.routability import EMPTY_VIEW
from gateway.observability.metrics import LoopLag, Reading
from gateway.process_place import ProcessPlace
from gateway.registry.protocol import Registry


@dataclass(frozen=True)
class Gateway:
    """The parts of one gateway."""

    shared: SharedParts
    routing: Routing
    control: Control
    lag: LoopLag
    ready: Callable[[], Readiness]
    app: HttpApp
    authenticator: Authenticator
    keepalive: StreamKeepalive | None
    """Sends comments to streams that wait. None if `server.stream_keepalive` is off."""

    @property
    def url(self) -> str:
        """The URL at which its HTTP API listens. It is empty until the listener is open."""
        return self.shared.listeners.url


@asynccontextmanager
async def open_parts(
    config: Config,
    registry: Registry,
    bridge: Bridge,
    dial: Dial,
    rng: Random,
    *,
    connect: Connect = connect,
    place: ProcessPlace | None = None,
) -> AsyncIterator[Gateway]:
    """Opens a gateway of which no service runs yet. `rng` breaks ties between replicas, and `place` is that of a
    process with a supervisor. Raises `StartupError`."""
    shared, lag = build_shared(config, registry, bridge), LoopLag()
    async with open_routing(shared, dial, connect, rng) as routing:
        control = build_control(shared, routing)
        ready = partial(_readiness, shared)
        interval = config.server.stream_keepalive
        keepalive = StreamKeepalive(interval) if interval else None
        settings = http_settings(config, shared.id, shared.cluster_secret, place)
        app = build_http_app(
            settings,
            _http_parts(shared, routing, control, lag, ready, keepalive=keepalive),
        )
        yield Gateway(
            shared=shared,
            routing=routing,
            control=control,
            lag=lag,
            ready=ready,
            app=app,
            authenticator=settings.authenticator,
            keepalive=keepalive,
        )


def _http_parts(
    shared: SharedParts,
    routing: Routing,
    control: Control,
    lag: LoopLag,
    ready: Callable[[], Readiness],
    *,
    keepalive: StreamKeepalive | None,
) -> HttpParts:
    admission, listeners = routing.admission, shared.listeners
    source = StatusSource(
        fleet=shared.status,
        loads=admission.loads.statistics,
        queues=admission.statistics,
        clock=shared.clock,
        own_load_request=control.load_requests.is_open,
        own_url=listeners.peer_url,
    )
    return HttpParts(
        registry=shared.registry,
        router=routing.router,
        admission=admission,
        source=source,
        metrics=shared.metrics,
        load_requests=control.load_requests,
        open_tail=partial(open_replica_tail, shared.state, control.sessions.open_tail),
        worker_port=lambda: listeners.worker_port,
        read=lambda: _readings(shared, routing, lag, source),
        ready=ready,
        keepalive=keepalive,
    )


def _readings(shared: SharedParts, routing: Routing, lag: LoopLag, source: StatusSource) -> Iterator[Reading]:
    yield Reading("gateway_loop_lag_seconds", "How late the event loop is.", (), (((), lag.seconds),))
    yield from readings(source, routing.router.statistics(), routing.probes.statistics(), shared.registry.statistics())


def _readiness(shared: SharedParts) -> Readiness:
    """Returns what `/readyz` reports: which parts work, and whether this gateway can serve."""
    view, peers = shared.views.current, shared.peers
    leads = shared.is_leader() or view.state.leader in peers.states
    listens = bool(shared.listeners.url) and not shared.stop.is_set()
    refused = view.state.writes_refused
    checks = {
        "registry": peers.connected and refused is None,
        "control": peers.connected and leads,
        "listener": listens,
    }
    causes = {} if refused is None else {"registry": refused}
    return Readiness(checks, can_serve=listens and view is not EMPTY_VIEW, causes=causes)
