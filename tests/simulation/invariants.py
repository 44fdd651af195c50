"""What must be true whenever everything has come to rest, and what must be true of each request that has ended."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

import trio

from gateway.domain.cluster import ClusterState, NodeStatus, Replica
from gateway.domain.errors import (
    BackendFailed,
    GatewayError,
    InsufficientCapacity,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    NoNode,
    Overloaded,
)
from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.routability import Candidate
from gateway.routing.fair_queue import FairQueue
from gateway.routing.load_tracker import Lease
from gateway.routing.pending_request import PendingRequest
from tests.simulation.call_ledger import RERUNS_AFTER_LOSS_MAX
from tests.simulation.clients import Request
from tests.simulation.installation import LOAD_WAIT_SECONDS, QUEUE_SECONDS, Installation

ROUNDING_SECONDS: Final = 1e-6
GIVEN_UP_SECONDS: Final = 25.0
"""After which no request waits any more for a machine that nothing gets through to: three heartbeats, the look at its
calls, and questions to it."""
FAILED_ATTEMPTS: Final = frozenset({"stale", "unreachable", "lost", "failed"})
EXCLUDING_ATTEMPTS: Final = FAILED_ATTEMPTS | {"draining"}


class Watch:
    """Sees every pick as it is made, and everything else at each rest."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._gateway = installation.gateway
        self._world = installation.world
        self._tickets: dict[RequestId, PendingRequest] = {}
        self._rows: dict[ReplicaId, Replica] = {}
        self._replica_of: dict[str, ReplicaId] = {}
        """By token."""
        self._judged: set[RequestId] = set()
        self._overfull: set[ModelName] = set()
        """Models whose queue has been full."""
        installation.clients.on_error = self._judge_error
        self._watch_admission()

    def _watch_admission(self) -> None:
        """Replaces three methods of the gateway's parts by ones that look first."""
        admission, loads = self._gateway.routing.admission, self._gateway.routing.admission.loads
        open_ticket, make_room, lease = admission.open_request, admission._make_room, loads.lease

        def opening_ticket(model: ModelName, origin: Origin) -> PendingRequest:
            ticket = self._tickets[origin.request_id] = open_ticket(model, origin)
            return ticket

        def making_room(queue: FairQueue[PendingRequest], request: PendingRequest) -> None:
            self._overfull.add(request.model)
            make_room(queue, request)

        def leasing(candidate: Candidate, origin: Origin, now: float) -> Lease:
            self._check_pick(candidate, self._tickets[origin.request_id], now)
            self._installation.on_pick(origin.request_id)
            return lease(candidate, origin, now)

        admission.open_request = opening_ticket  # type: ignore[method-assign]
        admission._make_room = making_room  # type: ignore[method-assign]
        loads.lease = leasing  # type: ignore[method-assign]

    def _check_pick(self, candidate: Candidate, ticket: PendingRequest, now: float) -> None:
        replica_id, use = candidate.replica_id, self._gateway.routing.admission.loads.load_of(candidate.replica_id)
        picked = f"{ticket.origin.request_id} is bound to {replica_id}, which"
        if not routable(self._gateway.shared.views.current.state, replica_id, ticket.model):
            self._world.object_to(f"{picked} is not routable")
        if not self._may_have_room(candidate):
            self._world.object_to(f"{picked} has no free slot")
        if now < use.full_until:
            self._world.object_to(f"{picked} has just refused")
        if replica_id in ticket.excluded:
            self._world.object_to(f"{picked} has failed it")
        for earlier in self._waiting(ticket.model):
            comes_first = earlier.caller == ticket.caller and earlier.number < ticket.number
            if comes_first and replica_id not in earlier.excluded:
                self._world.object_to(f"{picked} {earlier.origin.request_id} has waited for longer")

    def _may_have_room(self, candidate: Candidate) -> bool:
        return self._gateway.routing.admission.loads.load_of(candidate.replica_id).open_leases < candidate.slots

    def check(self) -> None:
        """To be called at each rest. Raises `Violation`."""
        self._learn_replicas()
        for check in self._checks():
            check()
        for request in list(self._installation.clients.ended.values()):
            if request.id not in self._judged:
                self._judged.add(request.id)
                self._judge_visits(request)
        self._world.raise_violations()

    def _checks(self) -> Iterator[Callable[[], None]]:
        yield self._check_view_is_current
        yield self._check_one_lease_per_running_request
        yield self._check_calls_are_covered
        yield self._check_nobody_waits_in_vain
        yield self._check_nobody_waits_for_the_vanished
        yield self._check_one_process_per_slot
        yield self._check_one_probe_per_replica

    def _learn_replicas(self) -> None:
        for replica in self._installation.registry._tables.replicas.values():
            if replica.id not in self._rows:
                self._rows[replica.id] = replica
                self._replica_of[self._gateway.shared.token_of(replica.id)] = replica.id

    def _leases(self) -> list[Lease]:
        return [lease for use in self._gateway.routing.admission.loads._loads.values() for lease in use.leases]

    def _waiting(self, model: ModelName) -> list[PendingRequest]:
        return list(self._gateway.routing.admission._queues.get(model, ()))

    def _check_view_is_current(self) -> None:
        if not self._installation.registry.is_at_rest:
            return
        seen, stored = self._gateway.shared.views.current.state.version, self._installation.registry._version
        if seen != stored:
            self._world.object_to(f"the view shows version {seen} of {stored}")

    def _check_one_lease_per_running_request(self) -> None:
        """R4 to R9. A request waits, or it holds one lease, until the backend has said its last word. A lease without
        a request is on a foreign replica that may still work on what was cancelled."""
        held = Counter(lease.origin.request_id for lease in self._leases())
        queued = {
            ticket.origin.request_id for queue in self._gateway.routing.admission._queues.values() for ticket in queue
        }
        live = self._installation.clients.live
        for request in live.values():
            if held[request.id] + (request.id in queued) not in self._owed(request):
                self._world.object_to(f"{request} holds {held[request.id]} leases; queued: {request.id in queued}")
        for gone in queued - live.keys():
            self._world.object_to(f"{gone} has ended and waits")
        for lease in self._leases():
            if lease.origin.request_id not in live and lease.candidate.refuses_when_full:
                self._world.object_to(f"{lease} outlives its request")

    def _owed(self, request: Request) -> Collection[int]:
        """How many leases and places in a queue a request may have whose client is still there.

        None once its call was answered, however long its client still takes to read: a lease outlives neither its
        call nor, since that is cancelled with the connection, its client's connection. The end of a call may be on its
        way for as long as a machine is cut off."""
        visits = self._installation.call_ledger.visits[request.id]
        match visits[-1].outcome if visits else "waiting":
            case "answered":
                return (0,)
            case "unheard" | "lost" | "broken" | "cancelled":
                return (0, 1)
            case _:
                return (1,)

    def _check_calls_are_covered(self) -> None:
        """What a backend works on has a lease. Behind a cut the backend can't know yet that a call was cancelled."""
        leases = {(lease.candidate.replica_id, str(lease.origin.request_id)) for lease in self._leases()}
        for backend in self._installation.backends():
            if self._installation.network.host(backend.address).is_holding:
                continue
            for visit in backend.calls:
                if (self._replica_of.get(backend.token), visit.request_id) not in leases:
                    self._world.object_to(f"{visit.request_id} runs at {backend.address} without a lease")

    def _check_nobody_waits_in_vain(self) -> None:
        view, now = self._gateway.shared.views.current, trio.current_time()
        for model, queue in self._gateway.routing.admission._queues.items():
            for ticket in queue:
                self._check_exclusions(ticket)
                if now - ticket.since > max(QUEUE_SECONDS, LOAD_WAIT_SECONDS) + ROUNDING_SECONDS:
                    self._world.object_to(f"{ticket.origin.request_id} waits for too long")
                for candidate in self._trusted(view.candidates.get(model, ()), now):
                    if candidate.replica_id not in ticket.excluded and self._is_free(candidate, now):
                        self._world.object_to(f"{ticket.origin.request_id} waits though {candidate.replica_id} is free")

    def _check_nobody_waits_for_the_vanished(self) -> None:
        """A call that is neither answered nor refused ends all the same."""
        for lease in self._leases():
            cut_seconds = self._installation.network.cut_seconds(lease.candidate.address)
            if lease.called and min(cut_seconds, trio.current_time() - lease.opened_at) > GIVEN_UP_SECONDS:
                self._world.object_to(f"{lease} is kept though its machine has been out of reach for {cut_seconds} s")

    def _is_free(self, candidate: Candidate, now: float) -> bool:
        use = self._gateway.routing.admission.loads.load_of(candidate.replica_id)
        return use.open_leases < candidate.slots and now >= use.full_until

    def _trusted(self, candidates: Sequence[Candidate], now: float) -> Sequence[Candidate]:
        """While some have not failed lately, requests wait for those."""
        loads = self._gateway.routing.admission.loads
        return [each for each in candidates if not loads.load_of(each.replica_id).penalties(now)] or candidates

    def _check_exclusions(self, ticket: PendingRequest) -> None:
        """A replica that was merely full or busy is asked again."""
        failed = {each.chosen.replica_id for each in ticket.decision.attempts if each.outcome in EXCLUDING_ATTEMPTS}
        if unfair := ticket.excluded - failed:
            self._world.object_to(f"{ticket.origin.request_id} excludes {unfair}, which have not failed it")

    def _check_one_process_per_slot(self) -> None:
        """R10: never two loads of one model in one place."""
        places = Counter(
            (row.node_id, row.model, row.slot)
            for process in self._installation.processes()
            if (row := self._rows.get(self._replica_of.get(process.backend.token, ReplicaId("")))) is not None
        )
        for place, processes in places.items():
            if processes > 1:
                self._world.object_to(f"{processes} processes for {place}")

    def _check_one_probe_per_replica(self) -> None:
        for backend in self._installation.backends():
            if backend.probes_now > 1 and not self._installation.network.host(backend.address).is_holding:
                self._world.object_to(f"{backend.probes_now} probes at a time of {backend.address}")

    def _judge_visits(self, request: Request) -> None:
        visits = self._installation.call_ledger.visits[request.id]
        ends = [visit.outcome for visit in visits]
        if request.outcome == "answered" and ("answered" in ends[:-1] or ends[-1] not in ("answered", "unheard")):
            self._world.object_to(f"{request} was answered though its visits ended as {ends}")

    def _judge_error(self, request: Request, error: GatewayError) -> None:
        """In the moment in which the client is told: the next one may show another view."""
        if (why := self._why_unfounded(request, error)) is not None:
            self._world.object_to(f"{request} was told {error!r}, but {why}")

    def _why_unfounded(self, request: Request, error: GatewayError) -> str | None:
        """None: the error is well-founded."""
        state, waited = self._gateway.shared.views.current.state, trio.current_time() - request.begun_at
        match error:
            case ModelNotFound():
                return "it exists" if request.model in state.models else None
            case ModelLoadFailed():
                return None if request.model in state.failures else "no load has failed"
            case Overloaded():
                if request.model in self._overfull or waited >= QUEUE_SECONDS - ROUNDING_SECONDS:
                    return None
                return f"it waited only {waited} s, and the queue was never full"
            case ModelLoading() | NoNode() | InsufficientCapacity():
                return None if waited >= LOAD_WAIT_SECONDS - ROUNDING_SECONDS else f"it waited only {waited} s"
            case BackendFailed():
                return self._why_not_failed(request, waited)
            case _:
                return "nothing here is a reason for that"

    def _why_not_failed(self, request: Request, waited: float) -> str | None:
        """It may fail when a backend said so, after its first byte, when its attempts are used up, or when all replicas
        have failed it and no other has come up in time."""
        ends = [attempt.outcome for attempt in self._tickets[request.id].decision.attempts]
        failures = [end for end in ends if end in FAILED_ATTEMPTS]
        if ends[-1] == "failed":
            visits = [visit.outcome for visit in self._installation.call_ledger.visits[request.id]]
            return None if visits[-1:] == ["broken"] else f"its visits ended as {visits}"
        if request.words or len(failures) >= self._gateway.shared.config.routing.attempts:
            return None
        if failures.count("lost") > RERUNS_AFTER_LOSS_MAX:
            return None
        if (failures or "draining" in ends) and waited >= LOAD_WAIT_SECONDS - ROUNDING_SECONDS:
            return None
        return f"its attempts ended as {ends}"

    def check_end(self) -> None:
        """When nothing is asked for any more, nothing is left. Raises `Violation`."""
        self.check()
        left = {
            "requests": self._installation.clients.live,
            "leases": self._gateway.routing.admission.loads.statistics().in_flight,
            "queues": self._gateway.routing.admission.statistics(),
            "calls": [visit for backend in self._installation.backends() for visit in backend.calls],
            "probes": self._gateway.routing.probes.statistics().running,
        }
        for name, remaining in left.items():
            if remaining:
                self._world.object_to(f"{name} are left at the end: {remaining}")
        self._world.raise_violations()


def routable(state: ClusterState, replica_id: ReplicaId, model: ModelName) -> bool:
    """The predicate of R11, R12 and A8, written down a second time."""
    replica, spec = state.replicas.get(replica_id), state.models.get(model)
    if replica is None or spec is None or replica.model != model:
        return False
    node = state.nodes.get(replica.node_id)
    wanted = replica.desired is Desired.RUN and replica.revision == spec.revision
    return wanted and replica.observed is Observed.READY and node is not None and node.status is NodeStatus.HEALTHY
