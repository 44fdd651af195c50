"""Strict mode: the registry decides which replica a lease is for, by the leases of all gateways at that moment.

Admission stays the queue: it decides which request is next, how long a request may wait, and with which error it ends.
The lease that it gives is a proposal that no peer counts until the registry has picked in a transaction of its own.
Then the lease stays where it is, moves to the replica that was picked, or is given back because no slot is free.

A gateway keeps serving while its registry is away. The lease then stays on the replica that was picked here, as in the
other mode, and the decision records that.
"""

from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from gateway.domain.ids import GatewayId, ReplicaId
from gateway.domain.peers import ReservationFailed, SlotRequest
from gateway.domain.routability import Candidate, FleetView
from gateway.routing.admission import Admission
from gateway.routing.decisions import score_all
from gateway.routing.load_tracker import NEVER, Lease
from gateway.routing.pending_request import PendingRequest

log = structlog.get_logger(__name__)

AWAY_SECONDS: Final = 5.0
"""How long a registry that could not be reached is not asked again, because every request would wait for it."""


class ReserveSlot(Protocol):
    """The call that has the registry pick a replica with a free slot for one request."""

    async def __call__(self, request: SlotRequest) -> ReplicaId | None:
        """Returns the replica for the request, which counts as this gateway's from now on. Returns None if no slot is
        free.

        It limits its own time. Raises `ReservationFailed`.
        """


class StrictReservations:
    """Has the registry confirm, move or refuse each lease that admission gives (strict mode)."""

    def __init__(
        self,
        gateway_id: GatewayId,
        view: Callable[[], FleetView],
        admission: Admission,
        reserve_slot: ReserveSlot,
        lock: trio.Lock,
    ) -> None:
        """`lock` is held while the registry is asked. Who publishes this gateway's leases has to hold it, too, from
        `LoadTracker.published` to the end of the write: each of the two writes all of them."""
        self._gateway_id = gateway_id
        self._view = view
        self._admission = admission
        self._loads = admission.loads
        self._reserve_slot = reserve_slot
        self._away_until = NEVER
        self._queue = trio.Lock()
        """The lock at which requests wait for their turn, so that another task that wants `lock` waits for one of
        them only."""
        self._lock = lock

    async def confirm(self, request: PendingRequest, lease: Lease) -> bool:
        """Returns whether the request has a slot. If so, `lease` is then on the replica that has it."""
        async with self._queue, self._lock:
            if trio.current_time() < self._away_until:
                return self._confirm(request, lease, "away")
            try:
                chosen = await self._reserve_slot(self._request(request))
            except ReservationFailed as error:
                log.warning("reservation.failed", model=request.model, error=str(error))
                self._away_until = trio.current_time() + AWAY_SECONDS
                return self._confirm(request, lease, f"away: {error}")
            except BaseException:
                if self._loads.peers.has_peers:  # None of them may count what the registry may have written.
                    self._loads.peers.report_leases()
                raise
            return self._apply(request, lease, chosen)

    def _request(self, request: PendingRequest) -> SlotRequest:
        now = trio.current_time()
        loads = {each.replica_id: self._loads.load_of(each.replica_id) for each in self._candidates(request)}
        return SlotRequest(
            self._gateway_id,
            request.model,
            leases=self._loads.published(),
            unused_seconds={each: now - load.last_used for each, load in loads.items() if load.last_used > NEVER},
            excluded=tuple(request.excluded),
            suspect=[each for each, load in loads.items() if load.penalties(now)],
            full=[each for each, load in loads.items() if now < load.full_until],
            busy=[each for each, load in loads.items() if now < load.busy_until],
        )

    def _apply(self, request: PendingRequest, lease: Lease, chosen: ReplicaId | None) -> bool:
        if chosen is None:
            self._refuse(request, lease)
            return False
        if chosen == lease.candidate.replica_id:
            return self._confirm(request, lease, "agreed")
        candidate = next((each for each in self._candidates(request) if each.replica_id == chosen), None)
        if candidate is None:
            return self._confirm(request, lease, f"picked {chosen}, which is not known here yet")
        return self._move(request, lease, candidate)

    def _confirm(self, request: PendingRequest, lease: Lease, result: str) -> bool:
        request.decision.attempts[-1].registry = result
        self._loads.confirm(lease, trio.current_time())
        return True

    def _move(self, request: PendingRequest, lease: Lease, candidate: Candidate) -> bool:
        now = trio.current_time()
        considered = score_all(self._candidates(request), candidate, self._loads.load_of, now)
        request.decision.attempts[-1].move(candidate, considered)
        self._loads.move(lease, candidate)
        self._loads.confirm(lease, now)
        return True

    def _refuse(self, request: PendingRequest, lease: Lease) -> None:
        """Has the same effect as a replica's own refusal, but on all replicas that the request could go to."""
        request.decision.attempts[-1].registry = "no free slot"
        self._admission.record_refusal(request, lease)
        load = self._loads.load_of(lease.candidate.replica_id)
        candidates = [each for each in self._candidates(request) if each.replica_id not in request.excluded]
        self._loads.record_none_free(candidates, load.full_until, load.refusals)

    def _candidates(self, request: PendingRequest) -> tuple[Candidate, ...]:
        return self._view().candidates.get(request.model, ())
