"""The parts that carry requests: admission, probes, the router and the watch over its calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from gateway.backends.dial import Dial
from gateway.backends.grpc.pool import ConnectionPool, open_connection_pool
from gateway.backends.grpc.transport import Connect
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.grpc_probe import GrpcProbe
from gateway.composition.shared import SharedParts
from gateway.config.model import Config
from gateway.domain.cluster import ClusterState, NodeStatus
from gateway.domain.ids import ReplicaId
from gateway.domain.peers import ReservationFailed, SlotRequest
from gateway.registry.protocol import RegistryError, SlotReserver
from gateway.routing.admission import Admission, AdmissionLimits
from gateway.routing.call_watch import CallWatch
from gateway.routing.open_calls import OpenCalls
from gateway.routing.probe_cache import ProbeCache, open_probe_cache
from gateway.routing.reservation import ReserveSlot, StrictReservations
from gateway.routing.router import Router
from gateway.routing.silence import tolerance


@dataclass(frozen=True)
class Routing:
    """The parts between the HTTP API and the backends."""

    admission: Admission
    connections: ConnectionPool
    probes: ProbeCache
    call_watch: CallWatch
    router: Router


@asynccontextmanager
async def open_routing(shared: SharedParts, dial: Dial, connect: Connect, rng: Random) -> AsyncIterator[Routing]:
    """Opens the parts in the order of a request's way. `dial` makes the channels of probes, and `connect` makes the
    connections of inference calls. `rng` breaks ties between replicas."""
    config, slots = shared.config, _slot_reserver(shared)
    admission = _build_admission(shared, rng, strict=slots is not None)
    async with (
        open_connection_pool(connect) as connections,
        open_probe_cache(
            GrpcProbe(shared.bridge, config.routing.probe_timeout, dial),
            ttl_seconds=config.routing.probe_ttl,
            in_flight=admission.loads.in_flight,
            report_broken=shared.failure_reporter.report_broken,
        ) as probes,
    ):
        calls = OpenCalls()
        call_watch = CallWatch(
            calls=calls,
            loads=admission.loads,
            probes=probes,
            tolerance=tolerance(config.health.misses, config.health.heartbeat),
            is_offline=lambda replica_id: is_offline(shared.state(), replica_id),
        )
        router = Router(
            admission=admission,
            backends=GrpcBackends(connections),
            probes=probes,
            attempts=config.routing.attempts,
            token_of=shared.token_of,
            reservations=_build_reservations(shared, admission, slots),
            calls=calls,
        )
        yield Routing(admission=admission, connections=connections, probes=probes, call_watch=call_watch, router=router)


def _build_admission(shared: SharedParts, rng: Random, *, strict: bool) -> Admission:
    views, queue_wait = shared.views, shared.metrics.requests.queue_wait
    return Admission(
        view=lambda: views.current,
        limits=_limits(shared.config),
        wall_clock=shared.clock,
        rng=rng,
        outlook=shared.status,
        strict=strict,
        peers=shared.peers,
        demand_changed=shared.report_demand,
        record_wait=lambda model, seconds: queue_wait.labels(model).observe(seconds),
    )


def _limits(config: Config) -> AdmissionLimits:
    routing = config.routing
    return AdmissionLimits(
        load_wait_seconds=routing.load_wait,
        queue_timeout_seconds=routing.queue_timeout,
        queue_length_max=routing.queue_max,
        retry_interval_seconds=routing.retry_interval,
        yield_seconds=2 * config.registry.lease_sync_interval + routing.retry_interval,
    )


def _slot_reserver(shared: SharedParts) -> SlotReserver | None:
    """Returns the registry if it reserves slots in strict mode. Returns None in the other mode, or if the registry
    cannot reserve slots."""
    registry = shared.registry
    return registry if shared.config.routing.mode == "strict" and isinstance(registry, SlotReserver) else None


def _build_reservations(
    shared: SharedParts, admission: Admission, slots: SlotReserver | None
) -> StrictReservations | None:
    if slots is None:
        return None
    return StrictReservations(
        gateway_id=shared.id,
        view=lambda: shared.views.current,
        admission=admission,
        reserve_slot=reservations_at(slots),
        lock=shared.leases_lock,
    )


def reservations_at(registry: SlotReserver) -> ReserveSlot:
    """Makes a `ReserveSlot` that asks the registry; a `RegistryError` becomes `ReservationFailed`."""

    async def reserve_slot(request: SlotRequest) -> ReplicaId | None:
        """Asks the registry for one slot. Raises `ReservationFailed`."""
        try:
            return await registry.reserve_slot(request)
        except RegistryError as error:
            raise ReservationFailed(str(error)) from error

    return reserve_slot


def is_offline(state: ClusterState, replica_id: ReplicaId) -> bool:
    """Tells whether the node of the replica counts as offline; False if there is no such replica or node."""
    replica = state.replicas.get(replica_id)
    node = state.nodes.get(replica.node_id) if replica is not None else None
    return node is not None and node.condition is NodeStatus.OFFLINE
