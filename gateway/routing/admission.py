"""Decides which waiting request gets the next free slot. Each model has a fair queue, and a request is bound to a
replica only when that replica has a free slot.

Binding happens synchronously in `_serve`, which gives free slots to waiting requests in turn. It runs whenever a slot
may have become free: a lease ended, the view changed, a refused replica may be asked again. A waiting request only
sleeps until it has a lease or its time is up. So a cancelled one leaves no trace: its place is removed, and a lease
that it was given in the same moment is released.

This file is longer than others because waiting, binding and waking share every invariant, and a reader has to see them
side by side.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import Final

import trio

from gateway.domain.errors import GatewayError, ModelNotFound, Overloaded
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate, FleetView, newest_serving, why_not_routable
from gateway.routing.decisions import Considered, Decision, DecisionLog, score_all
from gateway.routing.fair_queue import FairQueue
from gateway.routing.lease import Lease
from gateway.routing.load_tracker import FOREVER, NEVER, LoadTracker
from gateway.routing.peer_fairness import RemoteQueue, SlotDeferral
from gateway.routing.picker import ALONE, Choice, Policy, pick
from gateway.routing.rejections import LoadOutlook, UnknownOutlook, immediate_rejection, timeout_rejection

RETRY_BACKOFF_MAX: Final = 10.0
"""A replica that refused is asked again after `retry_interval`, doubling with each refusal in a row up to this many
times as long."""
GUESSES_MAX: Final = 32
"""The number of guesses per model and longest pause between retries. A guess asks a replica that is full according to
other gateways. In a small fleet this allows all replicas; in a large one the refused calls must not become the main
traffic."""


@dataclass(frozen=True)
class AdmissionLimits:
    """The limits of waiting: how long a request may wait for a slot, and how many requests may wait per model."""

    load_wait_seconds: float
    """How long a request waits for a model that no replica serves yet."""
    queue_timeout_seconds: float
    """How long a request waits for a free slot of a loaded model."""
    queue_length_max: int
    """Waiting requests per model."""
    retry_interval_seconds: float
    yield_seconds: float = 0.06
    """How long a free slot is left to an older request at another gateway. That gateway has to learn of the slot and
    ask for it, which takes two `lease_sync_interval` and one `retry_interval`."""


@dataclass(frozen=True)
class ModelQueueStatistics:
    """The number of requests that wait for one model, and the wait of the oldest of them in seconds."""

    waiting: int
    oldest_seconds: float
    """The wait of the oldest request, in seconds."""


class Ticket:
    """The place of one request in its model's queue. The request keeps it when it is sent to another replica, so it
    never queues behind later requests."""

    __slots__ = ("decision", "excluded", "failure", "lease", "model", "number", "origin", "since", "wake")

    def __init__(self, number: int, model: ModelName, origin: Origin, since: float, decision: Decision) -> None:
        self.number = number
        self.model = model
        self.origin = origin
        self.since = since
        self.decision = decision
        self.excluded: set[ReplicaId] = set()
        """Replicas that failed this request. It never tries one of them again."""
        self.lease: Lease | None = None
        self.failure: GatewayError | None = None
        """The error of the request, set instead of a lease if it must stop waiting."""
        self.wake = trio.Event()

    @property
    def caller(self) -> str:
        """Returns the name of the API key that the request came with, or the name that stands for callers without a
        key."""
        return self.origin.caller

    def __repr__(self) -> str:
        state = "refused" if self.failure is not None else "open" if self.lease is None else "served"
        name = f"{self.number} {state} model={self.model} request={self.origin.request_id}"
        return f"<Ticket {name} attempts={len(self.decision.attempts)}>"


class Admission:
    """Queues requests per model, and leases each a free slot of a replica when its turn has come."""

    def __init__(
        self,
        view: Callable[[], FleetView],
        limits: AdmissionLimits,
        *,
        wall_clock: Callable[[], float],
        rng: Random,
        outlook: LoadOutlook | None = None,
        policy: Callable[[], Policy] = lambda: ALONE,
        strict: bool = False,
        demand_changed: Callable[[], None] = lambda: None,
        leases_changed: Callable[[], None] = lambda: None,
        record_wait: Callable[[ModelName, float], None] = lambda _model, _seconds: None,
    ) -> None:
        """`strict`, `leases_changed`: see `LoadTracker`. `demand_changed` is called when a model's queue begins or
        ends, `record_wait` with each lease given: for how many seconds its request waited for it."""
        self._view = view
        self.loads = LoadTracker(
            strict=strict,
            leases_changed=leases_changed,
            on_release=self._serve,
            on_free=self._record_free,
            on_peers_changed=self._apply_peer_changes,
        )
        self._limits = limits
        self._wall_clock = wall_clock
        self._rng = rng
        self._numbers = count()
        self._queues: dict[ModelName, FairQueue[Ticket]] = {}
        self._deferral = SlotDeferral(limits.yield_seconds)
        self._guess_at: dict[ModelName, float] = {}
        """The time of the next allowed guess. It lags behind while there are no guesses, so that several may then come
        at once."""
        self.decisions = DecisionLog()
        self._policy = policy
        self._outlook = outlook or UnknownOutlook()
        self._demand_changed = demand_changed
        self._record_wait = record_wait

    def open_ticket(self, model: ModelName, origin: Origin) -> Ticket:
        """Creates the ticket of a new request and opens its decision. Raises `ModelNotFound`."""
        if model not in self._view().state.models:
            raise ModelNotFound(model)
        decision = self.decisions.open(model, origin)
        return Ticket(next(self._numbers), model, origin, trio.current_time(), decision)

    async def wait_lease(self, ticket: Ticket) -> Lease:
        """Returns a lease on a replica with a free slot. The caller has to release it.

        If a slot is free and nobody waits, it returns without a checkpoint. Raises `Overloaded`, `ModelLoading`,
        `ModelLoadFailed`, `NoNode`, `InsufficientCapacity`, `BackendFailed`, and `ModelNotFound` if the model is
        removed meanwhile.
        """
        queue = self._queues.get(ticket.model)
        if not queue and (lease := self._bind(ticket)) is not None:
            self._record_wait(ticket.model, 0.0)
            return lease
        self._check_can_serve(ticket)
        if len(queue or ()) >= self._limits.queue_length_max:
            self._make_room(queue or FairQueue(), ticket)
        return await self._wait_in_queue(ticket)

    def _make_room(self, queue: FairQueue[Ticket], ticket: Ticket) -> None:
        """Makes room for one more request. In a full queue, the request of a caller that has many leaves for it. Raises
        `Overloaded` if there is no such caller."""
        full = Overloaded(
            f"{len(queue)} requests for '{ticket.model}' are waiting already; no more are taken.",
            retry_after_seconds=1,
        )
        displaced = queue.to_displace(ticket.caller)
        if displaced is None:
            raise full
        queue.remove(displaced)
        displaced.failure = full
        displaced.wake.set()

    async def _wait_in_queue(self, ticket: Ticket) -> Lease:
        began = trio.current_time()
        self._join(ticket)
        try:
            self._serve(ticket.model)
            while ticket.lease is None:
                await self._sleep(ticket)
                if ticket.failure is not None:
                    raise ticket.failure
                if ticket.lease is None:
                    self._check_can_serve(ticket)
                    self._serve(ticket.model)
            lease, ticket.lease = ticket.lease, None
            self._record_wait(ticket.model, trio.current_time() - began)
            return lease
        finally:
            self._leave(ticket)
            if ticket.lease is not None:  # It was given in the moment of a cancel or an error.
                lease, ticket.lease = ticket.lease, None
                lease.release()

    async def _sleep(self, ticket: Ticket) -> None:
        """Sleeps until something changed for this ticket, or it is time to ask a refused replica again, or its time is
        up.

        Raises the error of `timeout_rejection` if its time is up.
        """
        now, give_up_at = trio.current_time(), self._give_up_at(ticket)
        if now >= give_up_at:
            waited, shortage = now - ticket.since, self._outlook.shortage_of(ticket.model)
            raise timeout_rejection(
                view=self._view(),
                model=ticket.model,
                waited_seconds=waited,
                excluded=ticket.excluded,
                progress_of=self._outlook.progress_of,
                shortage=shortage,
                control_paused=self._outlook.control_paused(),
            )
        ticket.wake = trio.Event()
        with trio.move_on_at(min(give_up_at, self._retry_at(ticket))):
            await ticket.wake.wait()

    def _give_up_at(self, ticket: Ticket) -> float:
        loaded = any(self._candidates(ticket))
        limit = self._limits.queue_timeout_seconds if loaded else self._limits.load_wait_seconds
        return ticket.since + limit

    def _retry_at(self, ticket: Ticket) -> float:
        """Returns the time at which the first full or suspect replica may be asked again.

        Only the first request of a line asks, on behalf of the whole line: a replica that it has excluded may serve
        those behind it.
        """
        if not self._queues[ticket.model].is_first(ticket):
            return FOREVER
        now, candidates = trio.current_time(), self._view().candidates.get(ticket.model, ())
        guess_at = self._guess_at.get(ticket.model, NEVER)
        tracked = [self.loads.load_of(candidate.replica_id) for candidate in candidates]
        full = (self.loads.ask_at(candidate, guess_at) for candidate in candidates)
        # This holds also while the refused lease still ends, because its end wakes only requests that it gives a slot.
        retry_times = (at for load in tracked for at in (load.full_until, load.suspect_until))
        deferred = self._deferral.deferred_until(ticket.model)
        return min((at for at in (*full, *retry_times, *deferred) if at > now), default=FOREVER)

    def record_refusal(self, ticket: Ticket, lease: Lease) -> None:
        """Records that the replica refused the request because it is full. That is no failure. The replica is asked
        again a little later, or when a lease on it ends here."""
        refusals = self.loads.load_of(lease.candidate.replica_id).refusals
        backoff = min(2.0 ** min(refusals, 30), RETRY_BACKOFF_MAX)
        self.loads.record_full(lease, trio.current_time() + self._limits.retry_interval_seconds * backoff)
        if (queue := self._queues.get(ticket.model)) is not None:
            for first in queue.firsts():
                first.wake.set()  # it may sleep until another time, or not know that there is something to ask again

    def apply_remote_queues(self, queues: Iterable[RemoteQueue]) -> None:
        """Replaces what is known of the requests that wait at other gateways; `queues` has all of them."""
        for model in self._deferral.apply(queues, trio.current_time()):
            self._serve_freed(model)

    def _record_free(self, model: ModelName, slots: int = 1) -> None:
        if self._deferral.has_waiting(model):
            self._deferral.record_free(model, slots, self._free_slots(model), trio.current_time())
        self._serve_freed(model)

    def _apply_peer_changes(self, changes: Mapping[ReplicaId, int]) -> None:
        """Wakes requests whose replica has fewer leases of other gateways than before, since that may have freed
        slots."""
        replicas, freed = self._view().state.replicas, Counter[ModelName]()
        for replica_id, change in changes.items():
            if change < 0 and replica_id in replicas:
                freed[replicas[replica_id].model] -= change
        for model, slots in freed.items():
            self._record_free(model, slots)

    def _serve_freed(self, model: ModelName) -> None:
        """Does what `_serve` does, and sets the timers of waiting requests that are blocked by a deferred slot or a
        suspect replica."""
        self._serve(model)
        if (queue := self._queues.get(model)) is not None and (
            self._deferral.is_deferring(model) or self._some_are_suspect(model)
        ):
            for first in queue.firsts():
                first.wake.set()

    def _some_are_suspect(self, model: ModelName) -> bool:
        now, candidates = trio.current_time(), self._view().candidates.get(model, ())
        return any(self.loads.load_of(candidate.replica_id).penalties(now) for candidate in candidates)

    def apply_view_change(self) -> None:
        """Looks at every waiting request again; called after each change of the view."""
        for model in tuple(self._queues):
            self._serve(model)
            for ticket in self._queues.get(model, ()):
                ticket.wake.set()

    def _serve(self, model: ModelName) -> None:
        """Gives free slots to the waiting requests of `model`, in turn. It stops at the first request that could use
        any replica and gets none, because no request behind it would get one either."""
        passed_over: set[Ticket] = set()
        share_of = partial(self.loads.share_of, model, self._view().candidates.get(model, ()))
        while (queue := self._queues.get(model)) is not None:
            ticket = queue.next_in_turn(share_of, passed_over)
            if ticket is None:
                return
            ticket.lease = self._bind(ticket)
            if ticket.lease is not None:
                self._take_out(queue, ticket)
                ticket.wake.set()
            elif ticket.excluded:
                passed_over.add(ticket)
            else:
                return

    def _bind(self, ticket: Ticket) -> Lease | None:
        now, candidates = trio.current_time(), self._candidates(ticket)
        choice = pick(candidates, self.loads.load_of, now, self._rng, self._policy())
        if choice is not None and not choice.has_free_slot:
            choice = self._guess(ticket.model, candidates, now)
        elif choice is not None and self._deferral.is_deferring(ticket.model) and self._is_deferred(ticket, now):
            return None
        if choice is None:
            return None
        considered = score_all(candidates, choice.candidate, self.loads.load_of, now, self._policy())
        lease = self.loads.lease(choice.candidate, ticket.origin, now)
        ticket.decision.picked(choice.candidate, considered, now)
        return lease

    def _is_deferred(self, ticket: Ticket, now: float) -> bool:
        """Returns whether all free slots are left to older requests at other gateways."""
        firsts = self._queues[ticket.model].firsts() if ticket.model in self._queues else ()
        oldest = min((first.since for first in firsts), default=ticket.since)
        free = self._free_slots(ticket.model)
        deferred = self._deferral.deferred_slots(ticket.model, min(oldest, ticket.since), free, now)
        return deferred > 0 and free <= deferred

    def _free_slots(self, model: ModelName) -> int:
        now, candidates = trio.current_time(), self._view().candidates.get(model, ())
        return sum(self.loads.free_slots(candidate, now) for candidate in candidates)

    def _guess(self, model: ModelName, candidates: Sequence[Candidate], now: float) -> Choice | None:
        """Returns the replica that was asked longest ago, of those that are full only according to other gateways.

        A slot that those gateways have freed since would stay idle until they publish again, and the replica knows
        better.
        """
        guess_at = self._guess_at.get(model, NEVER)
        if now < guess_at:
            return None
        loads = self.loads
        doubtful = [each for each in candidates if loads.is_doubtful(each) and loads.ask_at(each, guess_at) <= now]
        choice = pick(doubtful, self.loads.load_of, now, self._rng)
        if choice is not None:
            period = self._limits.retry_interval_seconds * RETRY_BACKOFF_MAX
            self._guess_at[model] = max(guess_at, now - period) + period / GUESSES_MAX
        return choice

    def explain(self, model: ModelName) -> tuple[Candidate | None, tuple[Considered, ...], float]:
        """Returns what a request would get now: the chosen candidate, all candidates with their scores, and the time of
        the answer. Raises `ModelNotFound`."""
        view, now = self._view(), trio.current_time()
        if model not in view.state.models:
            raise ModelNotFound(model)
        candidates = view.candidates.get(model, ())
        choice = pick(candidates, self.loads.load_of, now, self._rng, self._policy())
        chosen = choice.candidate if choice is not None and choice.has_free_slot else None
        return chosen, score_all(candidates, chosen, self.loads.load_of, now, self._policy()), now

    def not_routable(self, model: ModelName) -> dict[ReplicaId, str]:
        """Returns the replicas of the model that may take no request, each with the first reason."""
        state = self._view().state
        spec, newest = state.models.get(model), newest_serving(state)
        reasons = {
            replica.id: why_not_routable(replica, state.nodes.get(replica.node_id), spec, newest)
            for replica in state.replicas.values()
            if replica.model == model
        }
        return {replica_id: reason for replica_id, reason in reasons.items() if reason is not None}

    def _candidates(self, ticket: Ticket) -> tuple[Candidate, ...]:
        candidates = self._view().candidates.get(ticket.model, ())
        if not ticket.excluded:
            return candidates
        return tuple(each for each in candidates if each.replica_id not in ticket.excluded)

    def _check_can_serve(self, ticket: Ticket) -> None:
        error: GatewayError | None = immediate_rejection(self._view(), ticket.model, self._wall_clock())
        if error is not None:
            raise error

    def _join(self, ticket: Ticket) -> None:
        queue = self._queues.setdefault(ticket.model, FairQueue())
        queue.add(ticket)
        if len(queue) == 1:
            self._demand_changed()

    def _leave(self, ticket: Ticket) -> None:
        queue = self._queues.get(ticket.model)
        if queue is not None and ticket in queue:
            self._take_out(queue, ticket)

    def _take_out(self, queue: FairQueue[Ticket], ticket: Ticket) -> None:
        following = queue.remove(ticket)
        if following is not None:
            following.wake.set()  # From now on it has to watch refused replicas.
        if not queue:
            del self._queues[ticket.model]
            self._demand_changed()

    def statistics(self) -> dict[ModelName, ModelQueueStatistics]:
        """Returns the statistics of each model that has waiting requests."""
        now = trio.current_time()
        return {
            model: ModelQueueStatistics(len(queue), now - min(each.since for each in queue))
            for model, queue in self._queues.items()
        }
