"""Who gets the next free slot: per model a first-come queue that binds late, to a replica that has room now.

Binding happens synchronously in `_serve`, which walks a model's queue in order and gives each waiter a lease while
there are free slots. It runs whenever a slot may have become free: a lease ended, the view changed, a refused
replica may be asked again. A waiter only sleeps until its lease is there or its time is up, so a waiter that is
cancelled leaves no trace: its place is removed, and a lease it was given in the same moment is released.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final

import trio

from gateway.domain.errors import GatewayError, ModelNotFound, Overloaded
from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.routing.eligibility import Candidate, RoutingView
from gateway.routing.lease import Lease
from gateway.routing.load_table import LoadTable
from gateway.routing.picker import pick
from gateway.routing.waiting import fail_fast, gave_up

RETRY_BACKOFF_MAX: Final = 10.0
"""A refused head of the queue asks again after `retry_interval`, doubling up to this many times as long."""


@dataclass(frozen=True)
class AdmissionLimits:
    load_wait_seconds: float
    """How long a request waits for a model that no replica serves yet."""
    queue_timeout_seconds: float
    """How long a request waits for a free slot of a loaded model."""
    queue_length_max: int
    """Waiting requests per model."""
    retry_interval_seconds: float


@dataclass(frozen=True)
class ModelQueueStatistics:
    waiting: int
    oldest_seconds: float
    """How long the oldest has been waiting."""


class Ticket:
    """One request's place in its model's queue, kept over re-routes so that it never queues behind later ones."""

    __slots__ = ("excluded", "lease", "model", "number", "refusals", "request_id", "since", "wake")

    def __init__(self, number: int, model: ModelName, request_id: RequestId, since: float) -> None:
        self.number = number
        self.model = model
        self.request_id = request_id
        self.since = since
        self.excluded: set[ReplicaId] = set()
        """Replicas that failed this request; never tried twice."""
        self.refusals = 0
        self.lease: Lease | None = None
        self.wake = trio.Event()


class Admission:
    def __init__(
        self,
        view: Callable[[], RoutingView],
        loads: LoadTable,
        limits: AdmissionLimits,
        *,
        wall_clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self._view = view
        self._loads = loads
        self._limits = limits
        self._wall_clock = wall_clock
        self._rng = rng
        self._numbers = count()
        self._queues: dict[ModelName, list[Ticket]] = {}
        self.on_demand_change: Callable[[], None] = lambda: None
        """Called when a model's queue begins or ends. Set once, by the demand publisher."""
        loads.on_release = self._serve

    def open_ticket(self, model: ModelName, request_id: RequestId) -> Ticket:
        """Raises `ModelNotFound`."""
        if model not in self._view().state.models:
            raise ModelNotFound(model)
        return Ticket(next(self._numbers), model, request_id, trio.current_time())

    async def wait_lease(self, ticket: Ticket) -> Lease:
        """A lease on a replica with a free slot; the caller has to release it.

        Does not even yield when one is free and nobody waits. Raises `Overloaded`, `ModelLoading`, `ModelLoadFailed`,
        `NoNode`, and `ModelNotFound` when the model is removed meanwhile.
        """
        queue = self._queues.get(ticket.model)
        if not queue and (lease := self._bind(ticket)) is not None:
            return lease
        self._check_hope(ticket)
        waiting = len(queue or ())
        if waiting >= self._limits.queue_length_max:
            raise Overloaded(
                f"{waiting} requests for '{ticket.model}' are waiting already; no more are taken.",
                retry_after_seconds=1,
            )
        return await self._wait_in_queue(ticket)

    async def _wait_in_queue(self, ticket: Ticket) -> Lease:
        self._join(ticket)
        try:
            self._serve(ticket.model)
            while ticket.lease is None:
                await self._sleep(ticket)
                if ticket.lease is None:
                    self._check_hope(ticket)
                    self._serve(ticket.model)
            lease, ticket.lease = ticket.lease, None
            return lease
        finally:
            self._leave(ticket)
            if ticket.lease is not None:  # given in the moment of a cancel or an error
                lease, ticket.lease = ticket.lease, None
                lease.release()

    async def _sleep(self, ticket: Ticket) -> None:
        """Until something changed for this ticket, or it is time to ask a refused replica again, or time is up.

        Raises what `waiting.gave_up` says when time is up.
        """
        now, give_up_at = trio.current_time(), self._give_up_at(ticket)
        if now >= give_up_at:
            raise gave_up(self._view(), ticket.model, now - ticket.since, ticket.excluded)
        ticket.wake = trio.Event()
        with trio.move_on_at(min(give_up_at, self._retry_at(ticket))):
            await ticket.wake.wait()

    def _give_up_at(self, ticket: Ticket) -> float:
        loaded = any(self._candidates(ticket))
        limit = self._limits.queue_timeout_seconds if loaded else self._limits.load_wait_seconds
        return ticket.since + limit

    def _retry_at(self, ticket: Ticket) -> float:
        """When the first refused replica may be asked again; only the head of the queue asks."""
        queue = self._queues[ticket.model]
        if queue[0] is not ticket:
            return float("inf")
        uses = (self._loads.use_of(candidate.replica_id) for candidate in self._candidates(ticket))
        return min((use.full_until for use in uses if use.full_until > trio.current_time()), default=float("inf"))

    def note_refusal(self, ticket: Ticket, lease: Lease) -> None:
        """The replica said "no free slot". That is no failure: it is asked again a little later, or when a lease on it
        ends here."""
        backoff = min(2.0**ticket.refusals, RETRY_BACKOFF_MAX)
        ticket.refusals += 1
        self._loads.note_full(lease, trio.current_time() + self._limits.retry_interval_seconds * backoff)

    def note_view_change(self) -> None:
        """Looks at every waiting request again; called after each change of the view."""
        for model in tuple(self._queues):
            self._serve(model)
            for ticket in self._queues.get(model, ()):
                ticket.wake.set()

    def _serve(self, model: ModelName) -> None:
        """Gives free slots to the waiters of `model`, in order. Stops at the first one that could take any replica and
        gets none: then nobody behind it gets one either."""
        for ticket in tuple(self._queues.get(model, ())):
            if ticket.lease is not None:
                continue
            ticket.lease = self._bind(ticket)
            if ticket.lease is not None:
                ticket.wake.set()
            elif not ticket.excluded:
                return

    def _bind(self, ticket: Ticket) -> Lease | None:
        now = trio.current_time()
        choice = pick(self._candidates(ticket), self._loads.use_of, now, self._rng)
        if choice is None or not choice.has_free_slot:
            return None
        return self._loads.lease(choice.candidate, ticket.request_id, now)

    def _candidates(self, ticket: Ticket) -> tuple[Candidate, ...]:
        candidates = self._view().candidates.get(ticket.model, ())
        if not ticket.excluded:
            return candidates
        return tuple(each for each in candidates if each.replica_id not in ticket.excluded)

    def _check_hope(self, ticket: Ticket) -> None:
        error: GatewayError | None = fail_fast(self._view(), ticket.model, self._wall_clock())
        if error is not None:
            raise error

    def _join(self, ticket: Ticket) -> None:
        queue = self._queues.setdefault(ticket.model, [])
        insort(queue, ticket, key=lambda each: each.number)
        if len(queue) == 1:
            self.on_demand_change()

    def _leave(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.model]
        was_head = queue[0] is ticket
        queue.remove(ticket)
        if not queue:
            del self._queues[ticket.model]
            self.on_demand_change()
        elif was_head:
            queue[0].wake.set()  # the new head has to watch refused replicas from now on

    def statistics(self) -> dict[ModelName, ModelQueueStatistics]:
        """By model, for those that have waiting requests."""
        now = trio.current_time()
        return {
            model: ModelQueueStatistics(len(queue), now - min(ticket.since for ticket in queue))
            for model, queue in self._queues.items()
        }
