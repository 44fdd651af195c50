"""Our policy in the simulation: the production picker, load table, queue and admission of several gateways.

What is simulated is what lies around them: time, replicas that refuse when they are full, and the leases that gateways
publish. Of `Admission` only the waiting itself is mirrored (`SimulatedGateway.ask` stands for `wait_lease`), because a
simulated request is no task; what it waits for, and who gets which slot when, is decided by the code that serves.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import Final

import trio

from bench.workload import ROUND_TRIP_SECONDS, SLOTS, Job, Outcome, Setting
from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.routing.admission import Admission, AdmissionLimits, Ticket
from gateway.routing.eligibility import RoutingView
from gateway.routing.fair_queue import FairQueue
from gateway.routing.lease import Lease
from gateway.routing.load_table import LoadTable
from gateway.routing.picker import Policy
from tests.fakes.fleet import MODEL, replica, spec, view

NEVER: Final = float("inf")
RETRY_SECONDS: Final = 0.02
PATIENT: Final = AdmissionLimits(NEVER, NEVER, 1_000_000_000, RETRY_SECONDS)
"""Nobody gives up: a request that left would make the wait of the others look shorter."""


class VirtualClock(trio.abc.Clock):
    """Trio's clock while the simulation runs: it stands where the event loop below has put it."""

    now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return max(0.0, deadline - self.now)


class SimulatedGateway(Admission):
    """An admission that puts whoever was given a lease into `served`, instead of waking a task."""

    def __init__(self, number: int, fleet: RoutingView, setting: Setting) -> None:
        policy = Policy(several_gateways=setting.gateways > 1)
        rng = Random(f"policy {setting.seed} {number}")
        super().__init__(lambda: fleet, LoadTable(), PATIENT, wall_clock=lambda: 0.0, rng=rng, policy=lambda: policy)
        self.served: list[Ticket] = []
        self.retry_armed = NEVER

    def ask(self, ticket: Ticket) -> None:
        if not self._queues.get(ticket.model) and (lease := self._bind(ticket)) is not None:
            ticket.lease = lease
            self.served.append(ticket)
        else:
            self._join(ticket)
            self._serve(ticket.model)

    def serve(self) -> None:
        self._serve(MODEL)

    def head(self) -> Ticket | None:
        queue = self._queues.get(MODEL)
        return next(iter(queue)) if queue else None

    def retry_at(self) -> float:
        head = self.head()
        return NEVER if head is None else self._retry_at(head)

    def _take_out(self, queue: FairQueue[Ticket], ticket: Ticket) -> None:
        super()._take_out(queue, ticket)
        self.served.append(ticket)


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way: at which gateway, and with which ticket it waits there."""

    job: Job
    gateway: SimulatedGateway
    ticket: Ticket


class Simulation:
    def __init__(self, setting: Setting, clock: VirtualClock, *, older_first: bool) -> None:
        self._setting = setting
        self._clock = clock
        self._jobs = setting.jobs()
        self._jobs_left = setting.requests
        self._is_exact = setting.gateways > 1 and setting.stale_seconds == 0
        self._outcome = Outcome(setting)
        of = spec(parallel=SLOTS)
        ids = [ReplicaId(f"r{number:05}") for number in range(setting.replicas)]
        fleet = view(*(replica(each, of, slot=slot) for slot, each in enumerate(ids)), specs=[of])
        self._speeds = dict(zip(ids, setting.speeds(), strict=True))
        self._running = dict.fromkeys(ids, 0)
        self._gateways = [SimulatedGateway(number, fleet, setting) for number in range(setting.gateways)]
        self._published = [dict.fromkeys(ids, 0) for _ in self._gateways]
        self._oldest = [NEVER for _ in self._gateways]
        self._calls: dict[Ticket, Call] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        if older_first:
            for gateway in self._gateways:
                gateway.loads.on_release = partial(self._let_older_go_first, gateway)

    def run(self) -> Outcome:
        self._await_arrival()
        if self._setting.gateways > 1 and not self._is_exact:
            rng = Random(f"phases {self._setting.seed}")
            for number in range(self._setting.gateways):
                self._at(rng.random() * self._setting.stale_seconds, partial(self._publish, number))
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
        ticket = gateway.open_ticket(MODEL, Origin(RequestId(str(job.number))))
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
        replica_id, now = lease.candidate.replica_id, self._clock.now
        if self._running[replica_id] >= SLOTS:
            self._outcome.refusals += 1
            self._at(now + ROUND_TRIP_SECONDS, partial(self._refused, call, lease))
            return
        self._count(call.gateway, replica_id, +1)
        self._outcome.note(call.job, now - call.job.at)
        self._at(now + call.job.work_seconds / self._speeds[replica_id], partial(self._end, call, lease))

    def _refused(self, call: Call, lease: Lease) -> None:
        call.gateway.note_refusal(call.ticket, lease)
        lease.release()
        call.gateway.ask(call.ticket)
        self._go_on(call.gateway)

    def _end(self, call: Call, lease: Lease) -> None:
        del self._calls[call.ticket]
        self._count(call.gateway, lease.candidate.replica_id, -1)
        lease.release()
        self._go_on(call.gateway)
        if self._is_exact:
            self._serve_everywhere()

    # What gateways know of each other

    def _count(self, gateway: SimulatedGateway, replica_id: ReplicaId, change: int) -> None:
        self._running[replica_id] += change
        if self._is_exact:
            for other in self._gateways:
                if other is not gateway:
                    other.loads.use_of(replica_id).elsewhere += change

    def _serve_everywhere(self) -> None:
        waiting = [(head.since, number) for number, each in enumerate(self._gateways) if (head := each.head())]
        for _, number in sorted(waiting):
            self._gateways[number].serve()
            self._go_on(self._gateways[number])

    def _publish(self, number: int) -> None:
        """Writes what this gateway has and reads what the others wrote."""
        gateway = self._gateways[number]
        self._published[number] = {each: len(gateway.loads.use_of(each).leases) for each in self._running}
        head = gateway.head()
        self._oldest[number] = NEVER if head is None else head.since
        others = [each for other, each in enumerate(self._published) if other != number]
        for replica_id in self._running:
            gateway.loads.use_of(replica_id).elsewhere = sum(each[replica_id] for each in others)
        gateway.note_view_change()
        self._go_on(gateway)
        self._at(self._clock.now + self._setting.stale_seconds, partial(self._publish, number))

    def _let_older_go_first(self, gateway: SimulatedGateway, _model: ModelName) -> None:
        """Leaves a slot that became free here to a gateway whose published oldest waiter is older, for one retry."""
        head = gateway.head()
        mine = self._gateways.index(gateway)
        if head is not None and min(since for each, since in enumerate(self._oldest) if each != mine) < head.since:
            self._at(self._clock.now + RETRY_SECONDS, partial(self._retry, gateway, NEVER))
        else:
            gateway.serve()


def run_late(setting: Setting, *, older_first: bool = False) -> Outcome:
    clock = VirtualClock()

    async def simulate() -> Outcome:  # one task that never waits: only the clock is asked
        return Simulation(setting, clock, older_first=older_first).run()

    return trio.run(simulate, clock=clock)
