"""Admission and router over a view that the test changes at will."""

from random import Random

from gateway.domain.cluster import Replica
from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import Completion, Generation, Sampling
from gateway.routing.admission import Admission, AdmissionLimits
from gateway.routing.eligibility import RoutingView
from gateway.routing.lease import Lease
from gateway.routing.load_table import LoadTable
from gateway.routing.router import Router
from tests.fakes.backends import FakeBackends
from tests.fakes.fleet import MODEL, view

LIMITS = AdmissionLimits(
    load_wait_seconds=60, queue_timeout_seconds=30, queue_length_max=8, retry_interval_seconds=0.02
)


class RoutingBench:
    def __init__(self, *replicas: Replica, limits: AdmissionLimits = LIMITS, attempts: int = 3) -> None:
        self.view: RoutingView = view(*replicas)
        self.wall_now = 1000.0
        self.loads = LoadTable()
        self.admission = Admission(
            lambda: self.view, self.loads, limits, wall_clock=lambda: self.wall_now, rng=Random(7)
        )
        self.backends = FakeBackends()
        self.router = Router(self.admission, self.backends, attempts=attempts, token_of=lambda replica: f"t-{replica}")

    def show(self, changed: RoutingView) -> None:
        self.view = changed
        self.admission.note_view_change()

    async def lease(self, name: str = "request", model: ModelName = MODEL) -> Lease:
        return await self.admission.wait_lease(self.admission.open_ticket(model, RequestId(name)))

    async def generate(self, model: ModelName = MODEL) -> tuple[Completion, ReplicaId]:
        completion, candidate = await self.router.generate(generation(model), RequestId("request"))
        return completion, candidate.replica_id

    def in_flight(self) -> int:
        return sum(self.loads.statistics().in_flight.values())

    def waiting(self) -> int:
        return sum(queue.waiting for queue in self.admission.statistics().values())


def generation(model: ModelName = MODEL) -> Generation:
    return Generation(model, "hello", Sampling())
