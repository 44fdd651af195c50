"""The composition root: opens every part in order, hands each what it needs, closes them in reverse.

Read `open_gateway` from top to bottom: what is opened first dies last. The three seams (`open_registry`, `dial`,
`spawn`) are what a simulation replaces; nothing else in the gateway reaches the outside world.
"""

import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final

import structlog
import trio

from gateway.api.auth import Authenticator, Key, Role
from gateway.api.http_app import BodyLimits, HttpApp
from gateway.api.openai.routes import OpenAiApi
from gateway.api.pages import PAGE_ROUTES, build_pages
from gateway.api.readings import readings
from gateway.api.server import Listener, ListenerSettings, open_socket
from gateway.api.status import StatusSource
from gateway.backends.channel_pool import ChannelPool, Dial, dial
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.grpc_control import GrpcBackendControl
from gateway.backends.grpc_probe import GrpcProbe
from gateway.backends.metadata import replica_token
from gateway.bridge import Bridge, open_bridge
from gateway.config.model import Config
from gateway.control.demand import DemandPublisher, Waiting
from gateway.control.reconciler import Reconciler
from gateway.control.sessions import NodeSession
from gateway.domain.ids import BootId, GatewayId, ModelName, NodeId, ReplicaId, new_id
from gateway.domain.session import DesiredSet, Hello, Report
from gateway.local_state import StartupError, keep_cluster_secret, keep_node_id, prepare_data_dir
from gateway.observability.metrics import Metrics, Reading
from gateway.registry.open import open_registry
from gateway.registry.protocol import OpenRegistry, Registry
from gateway.registry.snapshot import SnapshotStore, run_snapshot_watcher
from gateway.routing.admission import Admission, AdmissionLimits
from gateway.routing.eligibility import EMPTY_VIEW, REFUSING, RoutingView, build_view
from gateway.routing.load_table import LoadTable
from gateway.routing.probe_cache import ProbeCache, open_probe_cache
from gateway.routing.router import Router
from gateway.worker.agent import run_agent
from gateway.worker.command import BackendProgram
from gateway.worker.process import SpawnProcess, spawn_process
from gateway.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

REPORTS_MAX: Final = 64
"""Reports of the embedded worker that wait to be written."""


@dataclass
class Gateway:
    """The parts of one gateway; `open_gateway` brings them to life."""

    config: Config
    registry: Registry
    bridge: Bridge
    channels: ChannelPool
    loads: LoadTable
    probes: ProbeCache
    token_of: Callable[[ReplicaId], str]
    id: GatewayId = field(default_factory=lambda: GatewayId(new_id()))
    url: str = ""
    """Where it listens, once it does."""

    def __post_init__(self) -> None:
        config = self.config
        self.views: SnapshotStore[RoutingView] = SnapshotStore(EMPTY_VIEW)
        self.admission = Admission(
            lambda: self.views.current,
            self.loads,
            AdmissionLimits(
                load_wait_seconds=config.routing.load_wait,
                queue_timeout_seconds=config.routing.queue_timeout,
                queue_length_max=config.routing.queue_max,
                retry_interval_seconds=config.routing.retry_interval,
            ),
            wall_clock=time.time,
            rng=random.Random(),  # noqa: S311 - breaks ties
        )
        self.router = Router(
            self.admission,
            GrpcBackends(self.bridge, self.channels),
            self.probes,
            attempts=config.routing.attempts,
            token_of=self.token_of,
        )
        self.reconciler = Reconciler(self.registry, self.id, config.reconciler.interval)
        self.probes.on_broken = self.reconciler.note_broken
        self.demand = DemandPublisher(
            self.registry, self.id, self._waiting, self.reconciler.wake.set, config.registry.lease_sync_interval
        )
        self.admission.on_demand_change = self.demand.changed.set
        self.status = StatusSource(
            self.id,
            lambda: self.reconciler.epoch is not None,
            lambda: self.views.current,
            self.loads.statistics,
            self.admission.statistics,
        )
        self.metrics = Metrics(self._readings)
        self.admission.on_wait = self._note_wait
        self.app = _build_http_app(self)
        self.stop = trio.Event()
        """Set: stop accepting, drain, end."""

    def _readings(self) -> Iterator[Reading]:
        return readings(self.status, self.router.statistics(), self.probes.statistics(), self.registry.statistics())

    def _note_wait(self, model: ModelName, seconds: float) -> None:
        self.metrics.requests.queue_wait.labels(model).observe(seconds)

    def _waiting(self) -> dict[ModelName, Waiting]:
        return {
            model: Waiting(queue.waiting, queue.oldest_seconds) for model, queue in self.admission.statistics().items()
        }

    def ready(self) -> dict[str, bool]:
        return {
            "registry": self.views.current is not EMPTY_VIEW,
            "control": self.reconciler.epoch is not None,
            "listener": bool(self.url) and not self.stop.is_set(),
        }

    async def run_view_changes(self) -> None:
        """Lets everything that holds on to replicas look again whenever the view changes."""
        view = self.views.current
        while True:
            self.admission.note_view_change()
            self.loads.keep_only(view.state.replicas)
            self.probes.keep_only(view.state.replicas)
            self.channels.keep_only(view.state.replicas)
            self.reconciler.wake.set()
            view = await self.views.wait_change(view)


@asynccontextmanager
async def open_gateway(
    config: Config,
    *,
    open_registry: OpenRegistry = open_registry,
    dial: Dial = dial,
    spawn: SpawnProcess = spawn_process,
) -> AsyncIterator[Gateway]:
    """A running gateway. Leaving the context stops it: the front drains first, then the services end, then the rest.

    Raises `StartupError`, `RegistryError`.
    """
    prepare_data_dir(config.server.data_dir)
    with _listening_socket(config) as listening:
        async with (
            open_registry(config.registry.url) as registry,
            open_bridge() as bridge,
            _open_parts(config, registry, bridge, dial) as gateway,
        ):
            await registry.declare_models([entry.to_spec() for entry in config.models])
            async with trio.open_nursery() as services:
                await _start_services(gateway, services, GrpcBackendControl(bridge, dial), spawn)
                async with trio.open_nursery() as front:
                    await _start_front(gateway, front, listening)
                    try:
                        yield gateway
                    finally:
                        gateway.stop.set()
                services.cancel_scope.cancel()


@asynccontextmanager
async def _open_parts(config: Config, registry: Registry, bridge: Bridge, dial: Dial) -> AsyncIterator[Gateway]:
    """What the services stand on: connections to backends and the cache of what is known of them."""
    loads = LoadTable()
    probe = GrpcProbe(bridge, config.routing.probe_timeout, dial)
    token_of = partial(replica_token, _cluster_secret(config))
    with closing(ChannelPool(dial)) as channels:
        ttl = config.routing.probe_ttl
        async with open_probe_cache(probe, ttl_seconds=ttl, in_flight=loads.in_flight) as probes:
            yield Gateway(config, registry, bridge, channels, loads, probes, token_of)


@contextmanager
def _listening_socket(config: Config) -> Iterator[socket.socket]:
    """Bound before anything else is touched: a port that is taken is the commonest reason not to start."""
    host, port = config.server.host, config.server.port
    try:
        listening = open_socket(host, port)
    except OSError as error:
        raise StartupError(
            f"can't listen on {host}:{port}: {error.strerror or error}; set server.port or pass --port"
        ) from error
    with listening:
        yield listening


async def _start_services(
    gateway: Gateway, services: trio.Nursery, control: GrpcBackendControl, spawn: SpawnProcess
) -> None:
    build = partial(build_view, refusing=_refusing_backends(gateway.config))
    await services.start(run_snapshot_watcher, gateway.registry, gateway.views, build)
    services.start_soon(gateway.run_view_changes)
    services.start_soon(gateway.demand.run)
    await services.start(gateway.reconciler.run)
    if gateway.config.worker.embedded:
        await _start_embedded_worker(gateway, services, control, spawn)


def _refusing_backends(config: Config) -> frozenset[str]:
    """Ours, unless a section takes the name, and those whose section says so."""
    said = {name for name, section in config.backends.items() if section.refuses_when_full}
    return frozenset(said | (REFUSING - config.backends.keys()))


async def _start_embedded_worker(
    gateway: Gateway, services: trio.Nursery, control: GrpcBackendControl, spawn: SpawnProcess
) -> None:
    """The agent and its session, joined by memory channels instead of a connection."""
    send_desired, receive_desired = trio.open_memory_channel[DesiredSet](1)
    send_reports, receive_reports = trio.open_memory_channel[Report](REPORTS_MAX)
    agent = partial(run_agent, spawn=spawn, control=control)
    await services.start(agent, worker_settings(gateway.config), receive_desired, send_reports)
    session = NodeSession(
        hello=_hello(gateway.config),
        gateway_id=gateway.id,
        registry=gateway.registry,
        views=gateway.views,
        epoch=lambda: gateway.reconciler.epoch or 0,
        token_of=gateway.token_of,
        desired=send_desired,
        reports=receive_reports,
    )
    await services.start(session.run)


async def _start_front(gateway: Gateway, front: trio.Nursery, listening: socket.socket) -> None:
    server = gateway.config.server
    listener = Listener(
        gateway.app,
        ListenerSettings(
            drain_seconds=server.drain_timeout,
            write_timeout_seconds=server.write_timeout,
            connections_max=server.connections_max,
        ),
        on_drain=gateway.app.drain,
        on_drain_end=gateway.app.end_streams,
        stop=gateway.stop,
    )
    gateway.url = await front.start(listener.run, listening)


def _build_http_app(gateway: Gateway) -> HttpApp:
    config = gateway.config
    openai = OpenAiApi(
        gateway.router,
        gateway.views,
        gateway.metrics.requests,
        wall_clock=time.time,
        expose_replica=config.routing.expose_replica_header,
    )
    return HttpApp(
        openai.routes(),
        PAGE_ROUTES,
        build_pages(gateway.status, gateway.admission, gateway.metrics, gateway.ready),
        authenticator=_authenticator(config),
        metrics=gateway.metrics.requests,
        limits=BodyLimits(config.server.max_body, config.server.body_timeout),
    )


def _authenticator(config: Config) -> Authenticator:
    keys = [Key(key.name, bytes.fromhex(key.digest), Role[key.role.upper()]) for key in config.auth.api_keys]
    return Authenticator(keys, allow_anonymous=config.auth.allow_anonymous)


def _cluster_secret(config: Config) -> bytes:
    if config.auth.cluster_secret is not None:
        return config.auth.cluster_secret.get_secret_value().encode()
    return keep_cluster_secret(config.server.data_dir)


def worker_settings(config: Config) -> WorkerSettings:
    """What the configuration says to a worker of this process."""
    worker = config.worker
    bind = worker.bind or "127.0.0.1"
    programs = {
        name: BackendProgram(section.command, section.env, section.ready_timeout, section.refuses_when_full)
        for name, section in config.backends.items()
    }
    return WorkerSettings(
        state_folder=config.server.data_dir,
        models_dir=worker.models_dir,
        port_range=worker.port_range,
        bind_host=bind,
        advertise_host=worker.advertise or bind,
        drain_timeout_seconds=config.server.drain_timeout,
        backends=MappingProxyType(programs),
    )


def _hello(config: Config) -> Hello:
    node_id: NodeId = keep_node_id(config.server.data_dir)
    return Hello(
        node_id=node_id,
        name=config.worker.name or socket.gethostname(),
        boot_id=BootId(new_id()),
        labels=config.worker.labels,
        max_replicas_per_model=config.worker.max_replicas_per_model,
    )
