"""Builds the parts that keep the fleet as it should be: the planner's loop, the health monitor, sessions and peers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

from gateway.composition.routing import Routing
from gateway.composition.shared import SharedParts
from gateway.control.health_monitor import HealthMonitor
from gateway.control.load_requests import LoadRequests, Waiting
from gateway.control.node_health import HealthSettings
from gateway.control.peers.publisher import PeerStatePublisher
from gateway.control.peers.sync import PeerSync
from gateway.control.reconciler import Reconciler
from gateway.control.sessions.node_session import SessionSettings
from gateway.control.sessions.sessions import Sessions
from gateway.domain.activity import merge_usage
from gateway.domain.cluster import Demand, Node
from gateway.domain.ids import ModelName
from gateway.domain.peers import audience
from gateway.planner.planning_input import WatchdogLimits
from gateway.transport.node_credentials import fingerprint

Waits = Callable[[], Mapping[ModelName, Waiting]]
"""Returns the requests that wait for each model at this gateway."""
CUT_OFF: Final = "this gateway has lost its registry; another one may have it"


@dataclass(frozen=True)
class Control:
    """The loops around the fleet's state, and what they share with the HTTP API."""

    load_requests: LoadRequests
    reconciler: Reconciler
    sessions: Sessions
    monitor: HealthMonitor
    publisher: PeerStatePublisher
    sync: PeerSync


def build_control(shared: SharedParts, routing: Routing) -> Control:
    """Builds the parts in the order of the control path: demand, plan, sessions, health, and the other gateways."""
    load_requests = LoadRequests(shared.views, shared.report_demand)

    def waiting() -> dict[ModelName, Waiting]:
        """Returns the waiting requests by model, and the loads that were asked for without a request."""
        queues = routing.admission.statistics().items()
        return load_requests.waiting() | {model: Waiting(each.waiting, each.oldest_seconds) for model, each in queues}

    sessions = _build_sessions(shared, routing)
    monitor = _build_monitor(shared, routing, sessions)
    publisher = _build_publisher(shared, routing, waiting)
    return Control(
        load_requests=load_requests,
        reconciler=_build_reconciler(shared, routing, waiting),
        sessions=sessions,
        monitor=monitor,
        publisher=publisher,
        sync=_build_sync(shared, publisher, monitor, sessions),
    )


def _build_reconciler(shared: SharedParts, routing: Routing, waiting: Waits) -> Reconciler:
    config, loads, peers = shared.config, routing.admission.loads, shared.peers

    def own_demand() -> tuple[Demand, ...]:
        """Returns the requests that wait here as rows of demand."""
        now = shared.clock()
        rows = waiting().items()
        return tuple(Demand(shared.id, model, each.waiting, now - each.oldest_seconds) for model, each in rows)

    return Reconciler(
        registry=shared.registry,
        election=shared.election,
        interval_seconds=config.reconciler.interval,
        own_demand=own_demand,
        usage=lambda now: merge_usage(loads.usage(), peers.states.values(), now),
        audience=lambda: audience(peers.own, shared.state().version, peers.peer_states),
        limits=WatchdogLimits(
            config.watchdog.busy_timeout or inf, config.watchdog.idle_timeout or inf, config.reconciler.scale_down_delay
        ),
        wake=shared.planner_wake,
        outcome=shared.outcome,
    )


def _build_sessions(shared: SharedParts, routing: Routing) -> Sessions:
    settings = SessionSettings(
        gateway_id=shared.id,
        registry=shared.registry,
        views=shared.views,
        token_of=shared.token_of,
        probe=routing.probes.ask,
        report_broken=shared.failure_reporter.report_broken,
        heartbeat_seconds=shared.config.health.heartbeat,
        node_changed=shared.monitor_wake.set,
        load_progress=shared.progress,
    )
    return Sessions(settings)


def _build_monitor(shared: SharedParts, routing: Routing, sessions: Sessions) -> HealthMonitor:
    health = shared.config.health
    return HealthMonitor(
        registry=shared.registry,
        views=shared.views,
        settings=HealthSettings(health.heartbeat, health.stale_after, health.misses),
        sessions=lambda: sessions.open,
        probe=routing.probes.ask,
        token_of=shared.token_of,
        report_broken=shared.failure_reporter.report_lost,
        is_responsible_for=partial(_is_responsible_for, shared),
        is_paused=shared.status.control_paused,
        wake=shared.monitor_wake,
    )


def _is_responsible_for(shared: SharedParts, node: Node) -> bool:
    """Returns whether this gateway watches the node. The gateway with the node's session does; if it is dead, the
    leader does."""
    if node.gateway_id in shared.peers.states:
        return False
    return node.gateway_id == shared.id or shared.is_leader()


def _build_publisher(shared: SharedParts, routing: Routing, waiting: Waits) -> PeerStatePublisher:
    admission = routing.admission
    return PeerStatePublisher(
        gateway_id=shared.id,
        url=shared.listeners.peer_url,
        secret_fingerprint=fingerprint(shared.cluster_secret),
        clock=shared.clock,
        views=shared.views,
        loads=admission.loads,
        admission=admission,
        waiting=waiting,
        load_progress=shared.progress,
        election=shared.election,
        outcome=shared.outcome,
        planner_wake=shared.planner_wake,
        always_publishes_leases=admission.loads.is_strict,
    )


def _build_sync(
    shared: SharedParts, publisher: PeerStatePublisher, monitor: HealthMonitor, sessions: Sessions
) -> PeerSync:
    registry = shared.config.registry

    def cut_off() -> None:
        """Forgets the silence of nodes and ends all sessions, because peers take over both."""
        monitor.restart()
        sessions.end_all(CUT_OFF)

    return PeerSync(
        registry=shared.registry,
        peers=shared.peers,
        interval_seconds=registry.lease_sync_interval,
        ttl_seconds=registry.gateway_ttl,
        fast=publisher.fast,
        slow=publisher.slow,
        on_received=publisher.apply,
        on_cut_off=cut_off,
        clock=shared.clock,
        turn=shared.leases_lock,
    )
