"""The parts of one gateway, and what each is told of the others; `app` brings them to life."""

import random
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final
from urllib.parse import urlsplit

import trio

from gateway.api.admin.artifacts import ArtifactFiles
from gateway.api.admin.decisions import Decisions
from gateway.api.admin.documents import StatusSource
from gateway.api.admin.metrics_source import readings
from gateway.api.admin.models import ModelService
from gateway.api.admin.peer_client import PeerClient
from gateway.api.admin.registration import NodeRegistration
from gateway.api.admin.replica_logs import ReplicaLogs, open_replica_tail
from gateway.api.admin.routes import Readiness, build_pages
from gateway.api.http.auth import Authenticator, Key, Role, sha256
from gateway.api.http.http_app import BodyLimits, HttpApp
from gateway.api.openai.routes import OpenAiApi
from gateway.backends.channel_pool import ChannelPool
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.metadata import replica_token
from gateway.bridge import Bridge
from gateway.composition.http import build_http_app
from gateway.config.model import Config
from gateway.control.claims import claims_at
from gateway.control.failure_reporter import FailureReporter
from gateway.control.health_monitor import HealthMonitor
from gateway.control.leader_election import LeaderElection
from gateway.control.load_requests import LoadRequests, Waiting
from gateway.control.node_health import HealthSettings
from gateway.control.peers.publisher import PeerStatePublisher
from gateway.control.peers.sync import PeerSync
from gateway.control.reconciler import Reconciler
from gateway.control.sessions.load_progress import LoadOutcome, LoadProgress
from gateway.control.sessions.node_session import SessionSettings
from gateway.control.sessions.sessions import Sessions
from gateway.data_dir import StartupError
from gateway.domain.activity import Usage, merge_usage
from gateway.domain.cluster import ClusterState, Node, NodeStatus
from gateway.domain.ids import GatewayId, ModelName, ReplicaId, new_id
from gateway.domain.peers import Audience, PeerState, audience
from gateway.domain.routability import EMPTY_VIEW, FleetView
from gateway.observability.metrics import LoopLag, Metrics, Reading
from gateway.planner.reconcile import WatchdogLimits
from gateway.registry.clock import RegistryClock
from gateway.registry.protocol import Registry, SlotReserver
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.admission import Admission, AdmissionLimits
from gateway.routing.call_watch import CallWatch
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.open_calls import OpenCalls
from gateway.routing.picker import ALONE, Policy
from gateway.routing.probe_cache import ProbeCache
from gateway.routing.reservation import StrictReservations
from gateway.routing.router import Router
from gateway.routing.silence import patience
from gateway.transport.credentials import fingerprint, is_credential
from gateway.transport.tls import TlsError, peer_context

WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - to tell them from hosts
SEVERAL: Final = Policy(several_gateways=True)
CUT_OFF: Final = "this gateway has lost its registry; another one may have it"


@dataclass
class Gateway:
    """The parts of one gateway; `open_gateway` brings them to life."""

    config: Config
    registry: Registry
    bridge: Bridge
    channels: ChannelPool
    loads: LoadTracker
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
        self.clock = RegistryClock()
        self.token_of = partial(replica_token, self.cluster_secret)
        self.views: SnapshotStore[FleetView] = SnapshotStore(EMPTY_VIEW)
        self.admission = Admission(
            lambda: self.views.current,
            self.loads,
            AdmissionLimits(
                load_wait_seconds=config.routing.load_wait,
                queue_timeout_seconds=config.routing.queue_timeout,
                queue_length_max=config.routing.queue_max,
                retry_interval_seconds=config.routing.retry_interval,
                yield_seconds=2 * config.registry.lease_sync_interval + config.routing.retry_interval,
            ),
            wall_clock=self.clock,
            policy=lambda: SEVERAL if self.exchange.has_peers else ALONE,
            rng=random.Random(),  # noqa: S311 - breaks ties
        )
        self.claims = self._strict_claims()
        calls = OpenCalls()
        self.call_watch = CallWatch(
            calls,
            self.loads,
            self.probes,
            patience=patience(config.health.misses, config.health.heartbeat),
            is_offline=self._is_offline,
        )
        self.router = Router(
            self.admission,
            GrpcBackends(self.bridge, self.channels, self._context_size_of),
            self.probes,
            attempts=config.routing.attempts,
            token_of=self.token_of,
            claims=self.claims,
            calls=calls,
        )

    def _context_size_of(self, model: ModelName) -> int | None:
        spec = self.views.current.state.models.get(model)
        return None if spec is None else spec.context_size

    def _is_offline(self, replica_id: ReplicaId) -> bool:
        state = self.views.current.state
        replica = state.replicas.get(replica_id)
        node = state.nodes.get(replica.node_id) if replica is not None else None
        return node is not None and node.link is NodeStatus.OFFLINE

    def _strict_claims(self) -> StrictReservations | None:
        if self.config.routing.mode != "strict" or not isinstance(self.registry, SlotReserver):
            return None
        return StrictReservations(self.id, lambda: self.views.current, self.admission, claims_at(self.registry))

    def _make_control(self) -> None:
        config = self.config
        self.leadership = LeaderElection(self.registry, self.id, config.registry.gateway_ttl, self._note_leadership)
        self.complaints = FailureReporter(self.registry)
        self.probes.on_broken = self.complaints.note_broken
        limits = WatchdogLimits(
            config.watchdog.busy_timeout or inf, config.watchdog.idle_timeout or inf, config.reconciler.scale_down_delay
        )
        self.reconciler = Reconciler(
            registry=self.registry,
            leadership=self.leadership,
            interval_seconds=config.reconciler.interval,
            usage=self._usage,
            audience=self._audience,
            limits=limits,
        )
        self.monitor = HealthMonitor(
            registry=self.registry,
            views=self.views,
            settings=HealthSettings(config.health.heartbeat, config.health.stale_after, config.health.misses),
            links=lambda: self.sessions.open,
            probe=self.probes.ask,
            token_of=self.token_of,
            note_broken=self.complaints.note_lost,
            is_judge_of=self._is_judge_of,
            rests=lambda: not self.exchange.connected,
        )
        self.watch = LoadProgress()
        self.watch.on_end = self._note_load
        self.sessions = Sessions(
            SessionSettings(
                gateway_id=self.id,
                registry=self.registry,
                views=self.views,
                token_of=self.token_of,
                probe=self.probes.ask,
                note_broken=self.complaints.note_broken,
                heartbeat_seconds=config.health.heartbeat,
                node_changed=self.monitor.wake.set,
                watch=self.watch,
            )
        )
        self.wishes = LoadRequests(self.views, lambda: self.exchange.note_demand())
        self._make_fleet()

    def _make_fleet(self) -> None:
        """What joins this gateway to the others."""
        config = self.config
        self.voice = PeerStatePublisher(
            gateway_id=self.id,
            url=self._peer_url,
            secret_fingerprint=fingerprint(self.cluster_secret),
            clock=self.clock,
            views=self.views,
            loads=self.loads,
            admission=self.admission,
            waiting=self._waiting,
            watch=self.watch,
            leadership=self.leadership,
            reconciler=self.reconciler,
            always_tells_leases=self.claims is not None,
        )
        self.exchange = PeerSync(
            registry=self.registry,
            bulletin=PeerState(self.id),
            interval_seconds=config.registry.lease_sync_interval,
            ttl_seconds=config.registry.gateway_ttl,
            fast=self.voice.fast,
            slow=self.voice.slow,
            on_heard=self.voice.hear,
            on_cut_off=self._note_cut_off,
            clock=self.clock,
        )
        if self.claims is not None:
            self.exchange.turn = self.claims.lock
        self.loads.on_change = self.exchange.note_leases
        self.admission.on_demand_change = self.exchange.note_demand
        self.admission.control_rests = lambda: not self.exchange.connected

    def _note_cut_off(self) -> None:
        self.monitor.begin_anew()
        self.sessions.send_away(CUT_OFF)

    def _note_leadership(self) -> None:
        self.reconciler.wake.set()
        self.monitor.wake.set()

    def _usage(self, now: float) -> Mapping[ReplicaId, Usage]:
        return merge_usage(self.loads.usage(), self.exchange.heard.others.values(), now)

    def _audience(self) -> Audience:
        return audience(self.exchange.bulletin, self.views.current.state.version, self.exchange.heard)

    def _is_judge_of(self, node: Node) -> bool:
        """Whoever lives and holds its session is; else the leader."""
        if node.gateway_id in self.exchange.heard.others:
            return False
        return node.gateway_id == self.id or self.leadership.epoch is not None

    def _peer_url(self) -> str:
        """Where the other gateways reach this one; empty until it listens."""
        server = self.config.server
        return _reachable(self.url, server.advertise) if self.url else ""

    def _make_front(self) -> None:
        self.status = StatusSource(
            gateway_id=self.id,
            is_leader=lambda: self.leadership.epoch is not None,
            view=lambda: self.views.current,
            loads=self.loads.statistics,
            queues=self.admission.statistics,
            clock=self.clock,
            own_progress_of=self.sessions.progress_of,
            own_wish=self.wishes.is_open,
            own_unsatisfiable=lambda: self.reconciler.unsatisfiable,
            own_waits=lambda: self.reconciler.waits,
            own_url=self._peer_url,
            peers=self.others,
        )
        self.admission.progress_of = self.status.progress_of
        self.admission.shortage_of = self.status.shortage_of
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

    def others(self) -> Mapping[GatewayId, PeerState]:
        """The newest bulletin of each other gateway that lives."""
        return self.exchange.heard.others

    def ready(self) -> Readiness:
        """Returns what `/readyz` reports: which parts work, and whether this gateway can serve."""
        view, others, connected = self.views.current, self.others(), self.exchange.connected
        leads = self.leadership.epoch is not None or view.state.leader in others
        listens = bool(self.url) and not self.stop.is_set()
        checks = {"registry": connected, "control": connected and leads, "listener": listens}
        return Readiness(checks, can_serve=listens and view is not EMPTY_VIEW)

    async def run_view_changes(self) -> None:
        """Lets everything that holds on to replicas look again whenever the view changes."""
        view = self.views.current
        while True:
            self.admission.note_view_change()
            self.loads.keep_only(view.state.replicas)
            self.probes.keep_only(view.state.replicas)
            self.call_watch.keep_only(view.state.replicas)
            self.channels.keep_only(view.state.replicas)
            self.watch.keep_only(view.state.replicas)
            self.complaints.keep_only(view.state.replicas)
            self.wishes.wake.set()
            self.reconciler.wake.set()
            view = await self.views.wait_change(view)


def _reachable(url: str, advertise: str | None) -> str:
    """The URL of a listener as other machines have to write it."""
    parts = urlsplit(url)
    host = advertise or (socket.gethostname() if parts.hostname in WILDCARDS else parts.hostname or "")
    return f"{parts.scheme}://[{host}]:{parts.port}" if ":" in host else f"{parts.scheme}://{host}:{parts.port}"


def _build_http_app(gateway: Gateway) -> HttpApp:
    config = gateway.config
    openai = OpenAiApi(
        gateway.router,
        gateway.views,
        gateway.metrics.requests,
        wall_clock=time.time,
        expose_replica=config.routing.expose_replica_header,
    )
    register = NodeRegistration(
        gateway.registry,
        gateway.id,
        gateway.cluster_secret,
        auto_approve=config.auth.auto_approve_nodes,
        advertise_host=config.server.advertise,
        worker_port=lambda: gateway.worker_port,
        tls=config.server.tls_cert is not None,
    )
    desk = ModelService(
        gateway.registry,
        gateway.status,
        gateway.views,
        gateway.wishes,
        backends=config.backends.keys(),
        models_dir=config.worker.models_dir.absolute(),
    )

    def state() -> ClusterState:
        return gateway.views.current.state

    peers = PeerClient(gateway.others, _peer_tls(config))
    return build_http_app(
        openai=openai,
        register=register,
        logs=ReplicaLogs(partial(open_replica_tail, state, gateway.sessions.open_tail), peers),
        artifacts=ArtifactFiles(state, config.worker.models_dir, peers),
        decisions=Decisions(gateway.admission.decisions, peers),
        pages=build_pages(
            source=gateway.status,
            admission=gateway.admission,
            metrics=gateway.metrics,
            ready=gateway.ready,
            registry=gateway.registry,
            models=desk,
        ),
        authenticator=_authenticator(config, gateway.cluster_secret),
        metrics=gateway.metrics.requests,
        limits=BodyLimits(config.server.max_body, config.server.body_timeout, config.server.bodies_max),
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


def _peer_tls(config: Config) -> ssl.SSLContext | None:
    """What other gateways have to prove themselves with, if the configuration says anything of it: the certificate that
    they all show, or the authority that has signed theirs. Raises `StartupError`."""
    named = [path for path in (config.server.tls_cert, config.worker.tls_ca) if path is not None]
    try:
        return peer_context(named) if named else None
    except TlsError as error:
        raise StartupError(str(error)) from error
