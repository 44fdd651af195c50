"""Strict mode: which replica a lease is for is the registry's to say, exactly, by what every gateway has just then.

Admission stays the queue: who is next, how long it may wait, what it is told. A lease that it gives is a proposal that
nobody else counts, until the registry has picked in a transaction of its own. Then it stays where it is, moves to the
replica that was picked, or is given back because no slot is free.

A gateway goes on serving while its registry is away: the lease stays on the replica that was picked here, as in the
other mode, and the decision tells.
"""

from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from gateway.domain.claim import ReservationFailed, SlotRequest
from gateway.domain.ids import GatewayId, ReplicaId
from gateway.domain.routability import Candidate, FleetView
from gateway.routing.admission import Admission, Ticket
from gateway.routing.decisions import consider
from gateway.routing.lease import Lease
from gateway.routing.load_tracker import NEVER

log = structlog.get_logger(__name__)

AWAY_SECONDS: Final = 5.0
"""A registry that could not be asked is not asked again for so long: every request would wait for that."""


class ReserveSlot(Protocol):
    """Asks the registry to pick a replica with a free slot for one request."""

    async def __call__(self, claim: SlotRequest) -> ReplicaId | None:
        """Which replica the request is to use, counted as the gateway's from now on; None: no slot is free.

        Bounded by itself. Raises `ReservationFailed`.
        """


class StrictReservations:
    """Has the registry confirm, move or refuse each lease that admission gives (strict mode)."""

    def __init__(
        self, gateway_id: GatewayId, view: Callable[[], FleetView], admission: Admission, claim_slot: ReserveSlot
    ) -> None:
        self._gateway_id = gateway_id
        self._view = view
        self._admission = admission
        self._loads = admission.loads
        self._loads.strict = True
        self._claim_slot = claim_slot
        self._away_until = NEVER
        self._queue = trio.Lock()
        """For claims to wait for their turn, so that who else wants `lock` waits for one of them only."""
        self.lock = trio.Lock()
        """Held while the registry is asked. Who publishes this gateway's leases has to hold it, too, from
        `LoadTable.published` to the end of the write: each of the two writes all of them."""

    async def confirm(self, ticket: Ticket, lease: Lease) -> bool:
        """Whether the request has a slot; `lease` is on the replica that has it then."""
        async with self._queue, self.lock:
            if trio.current_time() < self._away_until:
                return self._keep(ticket, lease, "away")
            try:
                chosen = await self._claim_slot(self._claim(ticket))
            except ReservationFailed as error:
                log.warning("strict.not_confirmed", model=ticket.model, error=str(error))
                self._away_until = trio.current_time() + AWAY_SECONDS
                return self._keep(ticket, lease, f"away: {error}")
            except BaseException:
                self._loads.on_change()  # what it may have counted is nobody's
                raise
            return self._note(ticket, lease, chosen)

    def _claim(self, ticket: Ticket) -> SlotRequest:
        now = trio.current_time()
        uses = {each.replica_id: self._loads.use_of(each.replica_id) for each in self._candidates(ticket)}
        return SlotRequest(
            self._gateway_id,
            ticket.model,
            leases=self._loads.published(),
            unused_seconds={each: now - use.last_used for each, use in uses.items() if use.last_used > NEVER},
            excluded=tuple(ticket.excluded),
            suspect=[each for each, use in uses.items() if use.phantoms(now)],
            full=[each for each, use in uses.items() if now < use.full_until],
            busy=[each for each, use in uses.items() if now < use.busy_until],
        )

    def _note(self, ticket: Ticket, lease: Lease, chosen: ReplicaId | None) -> bool:
        if chosen is None:
            self._refuse(ticket, lease)
            return False
        if chosen == lease.candidate.replica_id:
            return self._keep(ticket, lease, "agreed")
        candidate = next((each for each in self._candidates(ticket) if each.replica_id == chosen), None)
        if candidate is None:
            return self._keep(ticket, lease, f"picked {chosen}, which is not known here yet")
        return self._move(ticket, lease, candidate)

    def _keep(self, ticket: Ticket, lease: Lease, said: str) -> bool:
        ticket.decision.attempts[-1].registry = said
        self._loads.claim(lease, trio.current_time())
        return True

    def _move(self, ticket: Ticket, lease: Lease, candidate: Candidate) -> bool:
        now, attempt = trio.current_time(), ticket.decision.attempts[-1]
        attempt.registry = f"moved from {attempt.chosen.replica_id}"
        attempt.chosen = candidate
        attempt.considered = consider(self._candidates(ticket), candidate, self._loads.use_of, now)
        self._loads.move(lease, candidate)
        self._loads.claim(lease, now)
        return True

    def _refuse(self, ticket: Ticket, lease: Lease) -> None:
        """Has the same effect as a replica's own refusal, but on all replicas that the request could go to."""
        ticket.decision.attempts[-1].registry = "no free slot"
        self._admission.note_refusal(ticket, lease)
        use = self._loads.use_of(lease.candidate.replica_id)
        candidates = [each for each in self._candidates(ticket) if each.replica_id not in ticket.excluded]
        self._loads.note_none_free(candidates, use.full_until, use.refusals)

    def _candidates(self, ticket: Ticket) -> tuple[Candidate, ...]:
        return self._view().candidates.get(ticket.model, ())
