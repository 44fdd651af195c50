"""Admission and router over a view that the test changes at will."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import trio

from gateway.backends.protocol import Target
from gateway.domain.cluster import ProbeOutcome, Replica
from gateway.domain.ids import GatewayId, ModelName, ReplicaId, RequestId
from gateway.domain.inference import ANYBODY, Completion, Generation, Origin, Sampling
from gateway.domain.routability import EMPTY_VIEW, FleetView
from gateway.routing.admission import Admission, AdmissionLimits
from gateway.routing.load_tracker import Lease, Peers
from gateway.routing.open_calls import OpenCalls
from gateway.routing.probe_cache import ProbeCache, ReportBroken
from gateway.routing.rejections import LoadOutlook
from gateway.routing.reservation import ReserveSlot, StrictReservations
from gateway.routing.router import Router
from tests.fakes.backends import FakeBackends
from tests.fakes.fleet import GATEWAY, MODEL, view

ORIGIN = Origin(RequestId("request"))
LIMITS = AdmissionLimits(
    load_wait_seconds=60, queue_timeout_seconds=30, queue_length_max=8, retry_interval_seconds=0.02
)


def idle_admission() -> Admission:
    """One that knows no model; needs no Trio."""
    return Admission(lambda: EMPTY_VIEW, LIMITS, wall_clock=lambda: 0.0, rng=Random(7))


@dataclass
class FakePeers:
    """Peers that call the test when they are told of a lease."""

    report_leases: Callable[[], None] = lambda: None
    has_peers: bool = True


class FakeProbe:
    """Says `alive` unless told otherwise, replica by replica; remembers whom it was asked about."""

    def __init__(self) -> None:
        self.outcomes: dict[ReplicaId, ProbeOutcome] = {}
        self.asked: list[ReplicaId] = []
        self.wait: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def __call__(self, target: Target) -> ProbeOutcome:
        self.asked.append(target.replica_id)
        await self.wait()
        return self.outcomes.get(target.replica_id, ProbeOutcome.ALIVE)


class RoutingHarness:
    """Made inside a Trio test: probes run in the nursery around the test function."""

    def __init__(
        self,
        *replicas: Replica,
        limits: AdmissionLimits = LIMITS,
        attempts: int = 3,
        reserve_slot: ReserveSlot | None = None,
        gateway_id: GatewayId = GATEWAY,
        outlook: LoadOutlook | None = None,
        demand_changed: Callable[[], None] = lambda: None,
        peers: Peers | None = None,
        report_broken: ReportBroken = lambda _replica_id, _because: None,
    ) -> None:
        """`reserve_slot`: strict mode."""
        self.view: FleetView = view(*replicas)
        self.wall_now = 1000.0
        self.admission = Admission(
            lambda: self.view,
            limits,
            wall_clock=lambda: self.wall_now,
            rng=Random(7),
            outlook=outlook,
            strict=reserve_slot is not None,
            demand_changed=demand_changed,
            peers=peers,
        )
        self.loads = self.admission.loads
        self.backends = FakeBackends()
        self.probe = FakeProbe()
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        self.probes = ProbeCache(
            nursery, self.probe, ttl_seconds=30, in_flight=self.loads.in_flight, report_broken=report_broken
        )
        self.calls = OpenCalls()
        self.leases_lock = trio.Lock()
        self.reservations = None
        if reserve_slot is not None:
            self.reservations = StrictReservations(
                gateway_id, lambda: self.view, self.admission, reserve_slot, self.leases_lock
            )
        self.router = Router(
            self.admission,
            self.backends,
            self.probes,
            attempts=attempts,
            token_of=lambda replica: f"t-{replica}",
            reservations=self.reservations,
            calls=self.calls,
        )

    def show(self, changed: FleetView) -> None:
        self.view = changed
        self.admission.apply_view_change()

    async def lease(self, name: str = "request", model: ModelName = MODEL, caller: str = ANYBODY) -> Lease:
        return await self.admission.wait_lease(self.admission.open_request(model, Origin(RequestId(name), caller)))

    async def generate(self, model: ModelName = MODEL) -> tuple[Completion, ReplicaId]:
        completion, candidate = await self.router.generate(generation(model), ORIGIN)
        return completion, candidate.replica_id

    def in_flight(self) -> int:
        return sum(self.loads.statistics().in_flight.values())

    def waiting(self) -> int:
        return sum(queue.waiting for queue in self.admission.statistics().values())


def generation(model: ModelName = MODEL) -> Generation:
    return Generation(model, "hello", Sampling())
