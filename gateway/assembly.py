"""The parts of one gateway, and what each is told of the others; `app` brings them to life."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from math import inf

import trio

from gateway.api.artifacts import ArtifactFiles
from gateway.api.auth import Authenticator, Key, Role, sha256
from gateway.api.front import build_http_app
from gateway.api.http_app import BodyLimits, HttpApp
from gateway.api.models import ModelDesk
from gateway.api.node_register import NodeRegister
from gateway.api.openai.routes import OpenAiApi
from gateway.api.pages import build_pages
from gateway.api.readings import readings
from gateway.api.replica_logs import ReplicaLogs, open_replica_tail
from gateway.api.status import StatusSource
from gateway.backends.channel_pool import ChannelPool
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.metadata import replica_token
from gateway.bridge import Bridge
from gateway.config.model import Config
from gateway.control.demand import DemandPublisher, Waiting
from gateway.control.health_monitor import HealthMonitor
from gateway.control.load_watch import LoadOutcome, LoadWatch
from gateway.control.node_health import HealthSettings
from gateway.control.node_session import SessionSettings
from gateway.control.reconciler import Reconciler
from gateway.control.retire import Limits
from gateway.control.sessions import Sessions
from gateway.control.wishes import LoadWishes
from gateway.domain.ids import GatewayId, ModelName, ReplicaId, new_id
from gateway.link.credentials import is_credential
from gateway.observability.loop_lag import LoopLag
from gateway.observability.metrics import Metrics, Reading
from gateway.registry.protocol import Registry
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.admission import Admission, AdmissionLimits
from gateway.routing.eligibility import EMPTY_VIEW, RoutingView
from gateway.routing.load_table import LoadTable
from gateway.routing.probe_cache import ProbeCache
from gateway.routing.router import Router


@dataclass
class Gateway:
    """The parts of one gateway; `open_gateway` brings them to life."""

    config: Config
    registry: Registry
    bridge: Bridge
    channels: ChannelPool
    loads: LoadTable
    probes: ProbeCache
    cluster_secret: bytes = field(repr=False)
    id: GatewayId = field(default_factory=lambda: GatewayId(new_id()))
    url: str = ""
    """Where it listens, once it does."""
    worker_port: int | None = None
    """Where workers of other machines connect, once they can; None: none can."""

    def __post_init__(self) -> None:
        self._make_routing()
        self._make_control()
        self._make_front()
        self.stop = trio.Event()
        """Set: stop accepting, drain, end."""

    def _make_routing(self) -> None:
        config = self.config
        self.token_of = partial(replica_token, self.cluster_secret)
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

    def _make_control(self) -> None:
        config = self.config
        limits = Limits(
            config.watchdog.busy_timeout or inf, config.watchdog.idle_timeout or inf, config.reconciler.scale_down_delay
        )
        self.reconciler = Reconciler(self.registry, self.id, config.reconciler.interval, self.loads.usage, limits)
        self.probes.on_broken = self.reconciler.note_broken
        self.monitor = HealthMonitor(
            self.registry,
            self.views,
            HealthSettings(config.health.heartbeat, config.health.stale_after, config.health.misses),
            lambda: self.sessions.open,
            self.probes.ask,
            self.token_of,
            self.reconciler.note_lost,
        )
        self.watch = LoadWatch()
        self.watch.on_end = self._note_load
        self.sessions = Sessions(
            SessionSettings(
                gateway_id=self.id,
                registry=self.registry,
                views=self.views,
                epoch=lambda: self.reconciler.epoch or 0,
                token_of=self.token_of,
                probe=self.probes.ask,
                note_broken=self.reconciler.note_broken,
                heartbeat_seconds=config.health.heartbeat,
                node_changed=self.monitor.wake.set,
                watch=self.watch,
            )
        )
        self.admission.progress_of = self.sessions.progress_of
        self.admission.shortage_of = self.reconciler.shortage_of
        self.wishes = LoadWishes(self.views, lambda: self.demand.changed.set())
        self.demand = DemandPublisher(
            self.registry, self.id, self._waiting, self.reconciler.wake.set, config.registry.lease_sync_interval
        )
        self.admission.on_demand_change = self.demand.changed.set

    def _make_front(self) -> None:
        self.status = StatusSource(
            self.id,
            lambda: self.reconciler.epoch is not None,
            lambda: self.views.current,
            self.loads.statistics,
            self.admission.statistics,
            time.time,
            progress_of=self.sessions.progress_of,
            requested=self.wishes.is_open,
            unsatisfiable=lambda: self.reconciler.unsatisfiable,
            waits=lambda: {model: wait.because for model, wait in self.reconciler.waits.items()},
        )
        self.lag = LoopLag()
        self.metrics = Metrics(self._readings)
        self.admission.on_wait = self._note_wait
        self.app = _build_http_app(self)

    def _readings(self) -> Iterator[Reading]:
        yield Reading("gateway_loop_lag_seconds", "How late the event loop is.", (), (((), self.lag.seconds),))
        yield from readings(self.status, self.router.statistics(), self.probes.statistics(), self.registry.statistics())

    def _note_wait(self, model: ModelName, seconds: float) -> None:
        self.metrics.requests.queue_wait.labels(model).observe(seconds)

    def _note_load(self, replica_id: ReplicaId, outcome: LoadOutcome, seconds: float | None) -> None:
        if (replica := self.views.current.state.replicas.get(replica_id)) is not None:
            self.metrics.loads.loads.labels(replica.model, outcome.value).inc()
        if seconds is not None:
            self.metrics.loads.seconds.observe(seconds)

    def _waiting(self) -> dict[ModelName, Waiting]:
        """Requests that wait, and loads that were asked for without one."""
        queues = self.admission.statistics().items()
        return self.wishes.waiting() | {model: Waiting(queue.waiting, queue.oldest_seconds) for model, queue in queues}

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
            self.watch.keep_only(view.state.replicas)
            self.wishes.wake.set()
            self.reconciler.wake.set()
            view = await self.views.wait_change(view)


def _build_http_app(gateway: Gateway) -> HttpApp:
    config = gateway.config
    openai = OpenAiApi(
        gateway.router,
        gateway.views,
        gateway.metrics.requests,
        wall_clock=time.time,
        expose_replica=config.routing.expose_replica_header,
    )
    register = NodeRegister(
        gateway.registry,
        gateway.id,
        gateway.cluster_secret,
        auto_approve=config.auth.auto_approve_nodes,
        advertise_host=config.server.advertise,
        worker_port=lambda: gateway.worker_port,
        tls=config.server.tls_cert is not None,
    )
    desk = ModelDesk(
        gateway.registry,
        gateway.status,
        gateway.views,
        gateway.wishes,
        backends=config.backends.keys(),
        models_dir=config.worker.models_dir.absolute(),
    )
    return build_http_app(
        openai,
        register,
        ReplicaLogs(partial(open_replica_tail, lambda: gateway.views.current.state, gateway.sessions.open_tail)),
        ArtifactFiles(lambda: gateway.views.current.state, config.worker.models_dir),
        build_pages(gateway.status, gateway.admission, gateway.metrics, gateway.ready, gateway.registry, desk),
        authenticator=_authenticator(config, gateway.cluster_secret),
        metrics=gateway.metrics.requests,
        limits=BodyLimits(config.server.max_body, config.server.body_timeout),
    )


def _authenticator(config: Config, cluster_secret: bytes) -> Authenticator:
    keys = [Key(key.name, bytes.fromhex(key.digest), Role[key.role.upper()]) for key in config.auth.api_keys]
    token = config.auth.join_token
    return Authenticator(
        keys,
        allow_anonymous=config.auth.allow_anonymous,
        join_token_sha256=sha256(token.get_secret_value()) if token is not None else None,
        is_credential=partial(is_credential, cluster_secret),
    )
