"""Who gets the next free slot: per model a fair queue that binds late, to a replica that has room now.

Binding happens synchronously in `_serve`, which gives free slots to waiters in turn. It runs whenever a slot may have
become free: a lease ended, the view changed, a refused replica may be asked again. A waiter only sleeps until its
lease is there or its time is up, so a waiter that is cancelled leaves no trace: its place is removed, and a lease it
was given in the same moment is released.

Longer than other files: waiting, binding and what makes a waiter look again share every invariant, and reading them
side by side is what keeps them.
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
from gateway.routing.decisions import Considered, Decision, DecisionLog, consider
from gateway.routing.fair_queue import FairQueue
from gateway.routing.lease import Lease
from gateway.routing.load_tracker import FOREVER, NEVER, LoadTracker
from gateway.routing.peer_fairness import RemoteQueue, SlotDeferral
from gateway.routing.picker import ALONE, Choice, Policy, pick
from gateway.routing.rejections import ProgressOf, immediate_rejection, no_progress, timeout_rejection

RETRY_BACKOFF_MAX: Final = 10.0
"""A replica that refused is asked again after `retry_interval`, doubling with each refusal in a row up to this many
times as long."""
GUESSES_MAX: Final = 32
"""Per model and longest pause between retries: replicas that are asked although others have published that they are
full. All of a small fleet; in a large one the refused calls must not become the main traffic."""


@dataclass(frozen=True)
class AdmissionLimits:
    """Sets how long requests may wait for a slot, and how many of them may wait per model."""

    load_wait_seconds: float
    """How long a request waits for a model that no replica serves yet."""
    queue_timeout_seconds: float
    """How long a request waits for a free slot of a loaded model."""
    queue_length_max: int
    """Waiting requests per model."""
    retry_interval_seconds: float
    yield_seconds: float = 0.06
    """How long a slot that has become free is left to an older request at another gateway: until that one hears of it
    and has asked, so two `lease_sync_interval` and a `retry_interval`."""


@dataclass(frozen=True)
class ModelQueueStatistics:
    """Tells how many requests wait for one model, and for how many seconds the oldest of them has waited."""

    waiting: int
    oldest_seconds: float
    """How long the oldest has been waiting."""


class Ticket:
    """One request's place in its model's queue, kept over re-routes so that it never queues behind later ones."""

    __slots__ = ("decision", "excluded", "failure", "lease", "model", "number", "origin", "since", "wake")

    def __init__(self, number: int, model: ModelName, origin: Origin, since: float, decision: Decision) -> None:
        self.number = number
        self.model = model
        self.origin = origin
        self.since = since
        self.decision = decision
        self.excluded: set[ReplicaId] = set()
        """Replicas that failed this request; never tried twice."""
        self.lease: Lease | None = None
        self.failure: GatewayError | None = None
        """Set instead of a lease when it has to go."""
        self.wake = trio.Event()

    @property
    def caller(self) -> str:
        """Returns the name of the API key that the request came with, or of whoever needs none."""
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
        loads: LoadTracker,
        limits: AdmissionLimits,
        *,
        wall_clock: Callable[[], float],
        rng: Random,
        decisions: DecisionLog | None = None,
        policy: Callable[[], Policy] = lambda: ALONE,
    ) -> None:
        self._view = view
        self.loads = loads
        self._limits = limits
        self._wall_clock = wall_clock
        self._rng = rng
        self._numbers = count()
        self._queues: dict[ModelName, FairQueue[Ticket]] = {}
        self._elders = SlotDeferral(limits.yield_seconds)
        self._guess_at: dict[ModelName, float] = {}
        """When the next guess is allowed. It lags behind while there are none: so many may then come at once."""
        self.decisions = decisions or DecisionLog()
        self._policy = policy
        self.on_demand_change: Callable[[], None] = lambda: None
        """Called when a model's queue begins or ends. Set once, by the exchange with the other gateways."""
        self.on_wait: Callable[[ModelName, float], None] = lambda _model, _seconds: None
        """Called with each lease given: how long its request waited for it. Set once, by the metrics."""
        self.progress_of: ProgressOf = no_progress
        """Set once, by who holds sessions."""
        self.shortage_of: Callable[[ModelName], str | None] = lambda _model: None
        """Why the fleet has no room for a model, if that is what it waits for. Set once, by the planner's loop."""
        self.control_rests: Callable[[], bool] = lambda: False
        """Whether nothing can be loaded now, since the registry is away. Set once, by who talks to it."""
        loads.on_release = self._serve
        loads.on_free = self._note_free
        loads.on_heard = self._note_heard

    def open_ticket(self, model: ModelName, origin: Origin) -> Ticket:
        """Raises `ModelNotFound`."""
        if model not in self._view().state.models:
            raise ModelNotFound(model)
        decision = self.decisions.open(model, origin)
        return Ticket(next(self._numbers), model, origin, trio.current_time(), decision)

    async def wait_lease(self, ticket: Ticket) -> Lease:
        """A lease on a replica with a free slot; the caller has to release it.

        Does not even yield when one is free and nobody waits. Raises `Overloaded`, `ModelLoading`, `ModelLoadFailed`,
        `NoNode`, `InsufficientCapacity`, `BackendFailed`, and `ModelNotFound` when the model is removed meanwhile.
        """
        queue = self._queues.get(ticket.model)
        if not queue and (lease := self._bind(ticket)) is not None:
            self.on_wait(ticket.model, 0.0)
            return lease
        self._check_hope(ticket)
        if len(queue or ()) >= self._limits.queue_length_max:
            self._make_room(queue or FairQueue(), ticket)
        return await self._wait_in_queue(ticket)

    def _make_room(self, queue: FairQueue[Ticket], ticket: Ticket) -> None:
        """A full queue takes one more only in place of another caller's that has many. Raises `Overloaded`."""
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
                    self._check_hope(ticket)
                    self._serve(ticket.model)
            lease, ticket.lease = ticket.lease, None
            self.on_wait(ticket.model, trio.current_time() - began)
            return lease
        finally:
            self._leave(ticket)
            if ticket.lease is not None:  # given in the moment of a cancel or an error
                lease, ticket.lease = ticket.lease, None
                lease.release()

    async def _sleep(self, ticket: Ticket) -> None:
        """Until something changed for this ticket, or it is time to ask a refused replica again, or time is up.

        Raises what `waiting.timeout_rejection` says when time is up.
        """
        now, give_up_at = trio.current_time(), self._give_up_at(ticket)
        if now >= give_up_at:
            waited, shortage = now - ticket.since, self.shortage_of(ticket.model)
            raise timeout_rejection(
                view=self._view(),
                model=ticket.model,
                waited_seconds=waited,
                excluded=ticket.excluded,
                progress_of=self.progress_of,
                shortage=shortage,
                control_rests=self.control_rests(),
            )
        ticket.wake = trio.Event()
        with trio.move_on_at(min(give_up_at, self._retry_at(ticket))):
            await ticket.wake.wait()

    def _give_up_at(self, ticket: Ticket) -> float:
        loaded = any(self._candidates(ticket))
        limit = self._limits.queue_timeout_seconds if loaded else self._limits.load_wait_seconds
        return ticket.since + limit

    def _retry_at(self, ticket: Ticket) -> float:
        """When the first replica that is full or suspect may be asked again.

        Only the first of a line asks, for the whole line: a replica that it has excluded may serve those behind it."""
        if not self._queues[ticket.model].is_first(ticket):
            return FOREVER
        now, candidates = trio.current_time(), self._view().candidates.get(ticket.model, ())
        guess_at = self._guess_at.get(ticket.model, NEVER)
        uses = [self.loads.use_of(candidate.replica_id) for candidate in candidates]
        full = (self.loads.ask_at(candidate, guess_at) for candidate in candidates)
        # Also while the refused lease still ends: that it has ended wakes only those whom it gives a slot.
        told = (at for use in uses for at in (use.full_until, use.suspect_until))
        left = self._elders.ends(ticket.model)
        return min((at for at in (*full, *told, *left) if at > now), default=FOREVER)

    def note_refusal(self, ticket: Ticket, lease: Lease) -> None:
        """The replica said "no free slot". That is no failure: it is asked again a little later, or when a lease on it
        ends here."""
        refusals = self.loads.use_of(lease.candidate.replica_id).refusals
        backoff = min(2.0 ** min(refusals, 30), RETRY_BACKOFF_MAX)
        self.loads.note_full(lease, trio.current_time() + self._limits.retry_interval_seconds * backoff)
        if (queue := self._queues.get(ticket.model)) is not None:
            for first in queue.firsts():
                first.wake.set()  # it may sleep until another time, or not know that there is something to ask again

    def hear(self, lines: Iterable[RemoteQueue]) -> None:
        """Takes in which requests wait at other gateways: all of them, whatever was heard before."""
        for model in self._elders.hear(lines, trio.current_time()):
            self._serve_freed(model)

    def _note_free(self, model: ModelName, slots: int = 1) -> None:
        if self._elders.wait_for(model):
            self._elders.note_free(model, slots, self._free_slots(model), trio.current_time())
        self._serve_freed(model)

    def _note_heard(self, changes: Mapping[ReplicaId, int]) -> None:
        """Other gateways have more or fewer leases on some replicas: the fewer leave free slots behind."""
        replicas, freed = self._view().state.replicas, Counter[ModelName]()
        for replica_id, change in changes.items():
            if change < 0 and replica_id in replicas:
                freed[replicas[replica_id].model] -= change
        for model, slots in freed.items():
            self._note_free(model, slots)

    def _serve_freed(self, model: ModelName) -> None:
        """Does what `_serve` does; who may have to wait until a slot is left to others no longer, or until a replica
        that has just failed somebody is trusted again, sets its alarm to that time."""
        self._serve(model)
        if (queue := self._queues.get(model)) is not None and (
            self._elders.leaves_some(model) or self._some_are_suspect(model)
        ):
            for first in queue.firsts():
                first.wake.set()

    def _some_are_suspect(self, model: ModelName) -> bool:
        now, candidates = trio.current_time(), self._view().candidates.get(model, ())
        return any(self.loads.use_of(candidate.replica_id).phantoms(now) for candidate in candidates)

    def note_view_change(self) -> None:
        """Looks at every waiting request again; called after each change of the view."""
        for model in tuple(self._queues):
            self._serve(model)
            for ticket in self._queues.get(model, ()):
                ticket.wake.set()

    def _serve(self, model: ModelName) -> None:
        """Gives free slots to the waiters of `model`, in turn. Ends with the first one that could take any replica and
        gets none: then nobody behind it gets one either."""
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
        choice = pick(candidates, self.loads.use_of, now, self._rng, self._policy())
        if choice is not None and not choice.has_free_slot:
            choice = self._guess(ticket.model, candidates, now)
        elif choice is not None and self._elders.leaves_some(ticket.model) and self._is_left(ticket, now):
            return None
        if choice is None:
            return None
        considered = consider(candidates, choice.candidate, self.loads.use_of, now, self._policy())
        lease = self.loads.lease(choice.candidate, ticket.origin, now)
        ticket.decision.picked(choice.candidate, considered, now)
        return lease

    def _is_left(self, ticket: Ticket, now: float) -> bool:
        """Whether all slots that are free now are left to older requests at other gateways."""
        firsts = self._queues[ticket.model].firsts() if ticket.model in self._queues else ()
        oldest = min((first.since for first in firsts), default=ticket.since)
        free = self._free_slots(ticket.model)
        left = self._elders.left(ticket.model, min(oldest, ticket.since), free, now)
        return left > 0 and free <= left

    def _free_slots(self, model: ModelName) -> int:
        now, candidates = trio.current_time(), self._view().candidates.get(model, ())
        return sum(self.loads.free_slots(candidate, now) for candidate in candidates)

    def _guess(self, model: ModelName, candidates: Sequence[Candidate], now: float) -> Choice | None:
        """The one asked longest ago of those that are full only as far as other gateways have published.

        A slot that they have freed since would stay idle until they publish again, and the replica can tell better.
        """
        guess_at = self._guess_at.get(model, NEVER)
        if now < guess_at:
            return None
        loads = self.loads
        doubtful = [each for each in candidates if loads.is_doubtful(each) and loads.ask_at(each, guess_at) <= now]
        choice = pick(doubtful, self.loads.use_of, now, self._rng)
        if choice is not None:
            period = self._limits.retry_interval_seconds * RETRY_BACKOFF_MAX
            self._guess_at[model] = max(guess_at, now - period) + period / GUESSES_MAX
        return choice

    def explain(self, model: ModelName) -> tuple[Candidate | None, tuple[Considered, ...], float]:
        """What would be chosen now, among what, and when "now" was. Raises `ModelNotFound`."""
        view, now = self._view(), trio.current_time()
        if model not in view.state.models:
            raise ModelNotFound(model)
        candidates = view.candidates.get(model, ())
        choice = pick(candidates, self.loads.use_of, now, self._rng, self._policy())
        chosen = choice.candidate if choice is not None and choice.has_free_slot else None
        return chosen, consider(candidates, chosen, self.loads.use_of, now, self._policy()), now

    def not_routable(self, model: ModelName) -> dict[ReplicaId, str]:
        """Replicas of the model that may take no request, each with the first reason."""
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

    def _check_hope(self, ticket: Ticket) -> None:
        error: GatewayError | None = immediate_rejection(self._view(), ticket.model, self._wall_clock())
        if error is not None:
            raise error

    def _join(self, ticket: Ticket) -> None:
        queue = self._queues.setdefault(ticket.model, FairQueue())
        queue.add(ticket)
        if len(queue) == 1:
            self.on_demand_change()

    def _leave(self, ticket: Ticket) -> None:
        queue = self._queues.get(ticket.model)
        if queue is not None and ticket in queue:
            self._take_out(queue, ticket)

    def _take_out(self, queue: FairQueue[Ticket], ticket: Ticket) -> None:
        following = queue.remove(ticket)
        if following is not None:
            following.wake.set()  # it has to watch refused replicas from now on
        if not queue:
            del self._queues[ticket.model]
            self.on_demand_change()

    def statistics(self) -> dict[ModelName, ModelQueueStatistics]:
        """Returns the statistics of each model that has waiting requests."""
        now = trio.current_time()
        return {
            model: ModelQueueStatistics(len(queue), now - min(each.since for each in queue))
            for model, queue in self._queues.items()
        }
