"""Builds the parts that several rooms of one gateway read or write. They are made first, so no part has to be set
later.

All of them are passive, except two loops that need nothing but the registry.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import trio

from gateway.api.http.listener.retirement import Retirement
from gateway.backends.metadata import replica_token
from gateway.bridge import Bridge
from gateway.concurrency import Wake
from gateway.config.model import Config
from gateway.control.failure_reporter import FailureReporter
from gateway.control.fleet_status import FleetStatus
from gateway.control.leader_election import LeaderElection
from gateway.control.peers.peer_table import PeerTable
from gateway.control.plan_outcome import PlanOutcome
from gateway.control.sessions.load_progress import LoadOutcome, LoadProgress
from gateway.data_dir import keep_cluster_secret
from gateway.domain.cluster import ClusterState
from gateway.domain.ids import GatewayId, ReplicaId, new_id
from gateway.domain.routability import EMPTY_VIEW, FleetView
from gateway.observability.metrics import LoadMetrics, Metrics
from gateway.registry.clock import RegistryClock
from gateway.registry.protocol import Registry
from gateway.registry.snapshot import SnapshotStore

WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - to tell them from hosts


class Listeners:
    """The addresses at which this gateway listens, once it does."""

    def __init__(self, advertise: str | None) -> None:
        """`advertise` is the host by which other machines reach this one. None means that the listener's own address is
        used."""
        self._advertise = advertise
        self.url = ""
        """The URL of the HTTP listener. It is empty until the listener is open."""
        self._peer_url = ""
        self.worker_port: int | None = None
        """The port for the sessions of workers on other machines. None while there is none."""

    def open_http(self, url: str) -> None:
        """Records the URL of the HTTP listener, which is open from now on."""
        self.url = url

    def open_peers(self, url: str) -> None:
        """Records the URL of the listener for peers, which is open from now on."""
        self._peer_url = url

    def open_sessions(self, port: int) -> None:
        """Records the port of the listener for workers' sessions, which is open from now on."""
        self.worker_port = port

    def peer_url(self) -> str:
        """Returns where the other gateways reach this one; empty until it listens. A listener of their own comes before
        the public one, whose port may lead to another gateway as well."""
        return _reachable(self._peer_url or self.url, self._advertise) if self.url else ""


@dataclass(frozen=True)
class SharedParts:
    """The parts that are made before all others."""

    config: Config
    registry: Registry
    bridge: Bridge
    id: GatewayId
    cluster_secret: bytes = field(repr=False)
    clock: RegistryClock
    views: SnapshotStore[FleetView]
    peers: PeerTable
    metrics: Metrics
    listeners: Listeners
    outcome: PlanOutcome
    progress: LoadProgress
    planner_wake: Wake
    monitor_wake: Wake
    leases_lock: trio.Lock
    """The lock of the task that writes this gateway's leases to the registry, from reading them to the end of the
    write."""
    election: LeaderElection
    failure_reporter: FailureReporter
    status: FleetStatus
    token_of: Callable[[ReplicaId], str]
    """Returns the token by which a replica's backend knows that a call comes from this fleet."""
    stop: trio.Event
    """The event that stops the gateway: it accepts nothing more, drains and ends."""
    retirement: Retirement
    """The retirement of the public listener, for a gateway whose port others serve as well."""

    def state(self) -> ClusterState:
        """Returns the newest state of the registry that this gateway has read."""
        return self.views.current.state

    def report_demand(self) -> None:
        """Wakes the planner and asks for an exchange with the peers, because requests for a model began or ceased to
        wait here."""
        self.planner_wake.set()
        self.peers.report_demand()

    def is_leader(self) -> bool:
        """Tells whether this gateway plans."""
        return self.election.epoch is not None


def build_shared(config: Config, registry: Registry, bridge: Bridge) -> SharedParts:
    """Builds the parts that everything else stands on; nothing runs yet."""
    gateway_id, metrics, cluster_secret = GatewayId(new_id()), Metrics(), _cluster_secret(config)
    views: SnapshotStore[FleetView] = SnapshotStore(EMPTY_VIEW)
    planner_wake, monitor_wake = Wake(), Wake()
    peers, outcome = PeerTable(gateway_id), PlanOutcome()
    progress = LoadProgress(partial(_record_load, metrics.loads, views))

    def leader_changed() -> None:
        """Wakes the planner and the health monitor, because their duties have changed."""
        planner_wake.set()
        monitor_wake.set()

    election = LeaderElection(
        registry=registry,
        gateway_id=gateway_id,
        gateway_ttl_seconds=config.registry.gateway_ttl,
        changed=leader_changed,
    )
    return SharedParts(
        config=config,
        registry=registry,
        bridge=bridge,
        id=gateway_id,
        cluster_secret=cluster_secret,
        clock=RegistryClock(),
        views=views,
        peers=peers,
        metrics=metrics,
        listeners=Listeners(config.server.advertise),
        outcome=outcome,
        progress=progress,
        planner_wake=planner_wake,
        monitor_wake=monitor_wake,
        leases_lock=trio.Lock(),
        election=election,
        failure_reporter=FailureReporter(registry),
        status=FleetStatus(
            views=views,
            peers=peers,
            outcome=outcome,
            progress=progress,
            is_leader=lambda: election.epoch is not None,
        ),
        token_of=partial(replica_token, cluster_secret),
        stop=trio.Event(),
        retirement=Retirement(),
    )


def _record_load(
    metrics: LoadMetrics,
    views: SnapshotStore[FleetView],
    replica_id: ReplicaId,
    outcome: LoadOutcome,
    seconds: float | None,
) -> None:
    if (replica := views.current.state.replicas.get(replica_id)) is not None:
        metrics.loads.labels(replica.model, outcome.value).inc()
    if seconds is not None:
        metrics.seconds.observe(seconds)


def _cluster_secret(config: Config) -> bytes:
    if config.auth.cluster_secret is not None:
        return config.auth.cluster_secret.get_secret_value().encode()
    return keep_cluster_secret(config.server.data_dir)


def _reachable(url: str, advertise: str | None) -> str:
    """Returns the URL of a listener as other machines have to write it."""
    parts = urlsplit(url)
    host = advertise or (socket.gethostname() if parts.hostname in WILDCARDS else parts.hostname or "")
    return f"{parts.scheme}://[{host}]:{parts.port}" if ":" in host else f"{parts.scheme}://{host}:{parts.port}"
