"""Our policy in the simulation: the production picker, load table, queue and admission of several gateways.

What is simulated is what lies around them: time, replicas that are the arbiters of their slots or that queue what they
are sent, and the way of what gateways tell each other. Of `Admission` only the waiting itself is mirrored
(`SimulatedGateway.ask` stands for `wait_lease`), because a simulated request is no task; what it waits for, and who
gets which slot when, is decided by the code that serves.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import Final

import trio

from bench.workload import ROUND_TRIP_SECONDS, SLOTS, Job, Outcome, Setting
from gateway.domain.builtin_backends import REFUSING
from gateway.domain.ids import GatewayId, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.routability import FleetView, build_view
from gateway.routing.admission import Admission, AdmissionLimits
from gateway.routing.fair_queue import FairQueue
from gateway.routing.load_tracker import Lease
from gateway.routing.peer_fairness import RemoteQueue
from gateway.routing.pending_request import PendingRequest
from tests.fakes.fleet import MODEL, replica, spec, state

NEVER: Final = float("inf")
RETRY_SECONDS: Final = 0.02


@dataclass(frozen=True)
class Sharing:
    """What gateways tell each other, every `Setting.stale_seconds`."""

    counts: bool = True
    """How many requests each replica has through them."""
    lines: bool = True
    """Since when requests wait at them, so that the older one goes first."""


ALL: Final = Sharing()
NOTHING: Final = Sharing(counts=False, lines=False)


class VirtualClock(trio.abc.Clock):
    """Trio's clock while the simulation runs: it stands where the event loop below has put it."""

    now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return max(0.0, deadline - self.now)


@dataclass(frozen=True)
class OtherGateways:
    """They read what this gateway publishes at fixed times and need no reports."""

    has_peers: bool

    def report_leases(self) -> None:
        pass


class SimulatedGateway(Admission):
    """An admission that puts whoever was given a lease into `served`, instead of waking a task."""

    def __init__(self, number: int, fleet: FleetView, setting: Setting) -> None:
        peers = OtherGateways(has_peers=setting.gateways > 1)
        rng = Random(f"policy {setting.seed} {number}")
        super().__init__(lambda: fleet, _limits(setting), wall_clock=lambda: 0.0, rng=rng, peers=peers)
        self.id = GatewayId(str(number))
        self.served: list[PendingRequest] = []
        self.retry_armed = NEVER

    def ask(self, ticket: PendingRequest) -> None:
        if not self._queues.get(ticket.model) and (lease := self._bind(ticket)) is not None:
            ticket.lease = lease
            self.served.append(ticket)
        else:
            self._join(ticket)
            self._serve(ticket.model)

    def serve(self) -> None:
        self._serve(MODEL)

    def head(self) -> PendingRequest | None:
        queue = self._queues.get(MODEL)
        return next(iter(queue)) if queue else None

    def retry_at(self) -> float:
        head = self.head()
        return NEVER if head is None else self._retry_at(head)

    def lines(self) -> Iterator[RemoteQueue]:
        now = trio.current_time()
        for model, queue in self.statistics().items():
            yield RemoteQueue(self.id, model, queue.waiting, since := now - queue.oldest_seconds, round(since, 6))

    def _take_out(self, queue: FairQueue[PendingRequest], ticket: PendingRequest) -> None:
        super()._take_out(queue, ticket)
        self.served.append(ticket)


def _limits(setting: Setting) -> AdmissionLimits:
    """As the gateway derives them; but nobody gives up: that would make the wait of the others look shorter."""
    yield_seconds = 2 * setting.stale_seconds + RETRY_SECONDS
    return AdmissionLimits(NEVER, NEVER, 1_000_000_000, RETRY_SECONDS, yield_seconds)


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way: at which gateway, and with which ticket it waits there."""

    job: Job
    gateway: SimulatedGateway
    ticket: PendingRequest


class SimulatedReplica:
    """`SLOTS` slots and, if it can't refuse, a queue that no gateway sees."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.running = 0
        self.queue = deque[tuple[Call, Lease, float]]()
        """With the time at which each has come."""

    @property
    def is_full(self) -> bool:
        return self.running >= SLOTS


class Simulation:
    def __init__(self, setting: Setting, clock: VirtualClock, sharing: Sharing) -> None:
        self._setting = setting
        self._clock = clock
        self._sharing = sharing
        self._jobs = setting.jobs()
        self._jobs_left = setting.requests
        self._outcome = Outcome(setting)
        ids = [ReplicaId(f"r{number:05}") for number in range(setting.replicas)]
        self._replicas = {each: SimulatedReplica(speed) for each, speed in zip(ids, setting.speeds(), strict=True)}
        fleet = _fleet(self._replicas, refuses=setting.refuses)
        self._gateways = [SimulatedGateway(number, fleet, setting) for number in range(setting.gateways)]
        self._counts: dict[GatewayId, Mapping[ReplicaId, int]] = {}
        self._lines: dict[GatewayId, tuple[RemoteQueue, ...]] = {}
        self._calls: dict[PendingRequest, Call] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def run(self) -> Outcome:
        self._await_arrival()
        if self._setting.gateways > 1:
            rng = Random(f"phases {self._setting.seed}")
            for gateway in self._gateways:
                self._at(rng.random() * self._setting.stale_seconds, partial(self._exchange, gateway))
        while self._calls or self._jobs_left:
            self._clock.now, _, event = heapq.heappop(self._events)
            event()
        return self._outcome

    def _at(self, at: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), event))

    # Requests

    def _await_arrival(self) -> None:
        if (job := next(self._jobs, None)) is not None:
            self._at(job.at, partial(self._arrive, job))

    def _arrive(self, job: Job) -> None:
        self._jobs_left -= 1
        gateway = self._gateways[job.gateway]
        ticket = gateway.open_request(MODEL, Origin(RequestId(str(job.number))))
        self._calls[ticket] = Call(job, gateway, ticket)
        gateway.ask(ticket)
        self._go_on(gateway)
        self._await_arrival()

    def _go_on(self, gateway: SimulatedGateway) -> None:
        """After anything happened at `gateway`: makes the calls that have a lease now, and sets its alarm clock."""
        while gateway.served:
            ticket = gateway.served.pop(0)
            lease, ticket.lease = ticket.lease, None
            assert lease is not None
            self._call(self._calls[ticket], lease)
        retry_at = gateway.retry_at()
        if retry_at < gateway.retry_armed:
            gateway.retry_armed = retry_at
            self._at(retry_at, partial(self._retry, gateway, retry_at))

    def _retry(self, gateway: SimulatedGateway, armed: float) -> None:
        if gateway.retry_armed == armed:
            gateway.retry_armed = NEVER
        gateway.serve()
        self._go_on(gateway)

    def _call(self, call: Call, lease: Lease) -> None:
        target, now = self._replicas[lease.candidate.replica_id], self._clock.now
        if not target.is_full:
            self._begin(call, lease)
        elif self._setting.refuses:
            self._outcome.refusals += 1
            self._at(now + ROUND_TRIP_SECONDS, partial(self._refused, call, lease))
        else:
            target.queue.append((call, lease, now))

    def _begin(self, call: Call, lease: Lease) -> None:
        target, now = self._replicas[lease.candidate.replica_id], self._clock.now
        target.running += 1
        self._outcome.note(call.job, now - call.job.at)
        self._at(now + call.job.work_seconds / target.speed, partial(self._end, call, lease))

    def _refused(self, call: Call, lease: Lease) -> None:
        call.gateway.record_refusal(call.ticket, lease)
        lease.release()
        call.gateway.ask(call.ticket)
        self._go_on(call.gateway)

    def _end(self, call: Call, lease: Lease) -> None:
        del self._calls[call.ticket]
        target = self._replicas[lease.candidate.replica_id]
        target.running -= 1
        if target.queue:
            following, its_lease, came_at = target.queue.popleft()
            self._outcome.note_inside(following.job, self._clock.now - came_at)
            self._begin(following, its_lease)
        lease.release()
        self._go_on(call.gateway)

    # What gateways know of each other

    def _exchange(self, gateway: SimulatedGateway) -> None:
        """Says what this gateway has and hears what the others said."""
        if self._sharing.counts:
            self._counts[gateway.id] = gateway.loads.published()
        if self._sharing.lines:
            self._lines[gateway.id] = tuple(gateway.lines())
        others = [each.id for each in self._gateways if each is not gateway]
        gateway.apply_remote_queues(line for other in others for line in self._lines.get(other, ()))
        at_peers = Counter[ReplicaId]()
        for other in others:
            at_peers.update(self._counts.get(other, {}))
        gateway.loads.apply_peers(at_peers)
        self._go_on(gateway)
        self._at(self._clock.now + self._setting.stale_seconds, partial(self._exchange, gateway))


def _fleet(ids: Iterable[ReplicaId], *, refuses: bool) -> FleetView:
    of = spec(parallel=SLOTS)
    rows = [replica(each, of, slot=slot) for slot, each in enumerate(ids)]
    return build_view(state(rows, specs=[of]), REFUSING if refuses else ())


def run_late(setting: Setting, *, sharing: Sharing = ALL) -> Outcome:
    clock = VirtualClock()

    async def simulate() -> Outcome:  # one task that never waits: only the clock is asked
        return Simulation(setting, clock, sharing).run()

    return trio.run(simulate, clock=clock)
