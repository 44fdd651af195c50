"""Decides which waiting request gets the next free slot, with a fair queue per model and late binding.

`_serve` binds waiting requests to free slots, in turn and synchronously. It runs whenever a slot may have become free:
a lease ended, the view changed, a refused replica may be asked again. A waiting request only sleeps until it has a
lease or its time is up. So a cancelled one leaves no trace: its place and a lease given just then are given back.

This file is longer than others because waiting, binding and waking share every invariant.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import Final

import trio

from gateway.domain.errors import ModelNotFound, Overloaded
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.inference import Origin
from gateway.domain.pacing import doubled_seconds
from gateway.domain.routability import Candidate, FleetView, newest_serving, why_not_routable
from gateway.routing.decisions import AttemptRecord, DecisionLog
from gateway.routing.fair_queue import FairQueue
from gateway.routing.load_index import ModelIndex
from gateway.routing.load_tracker import FOREVER, NEVER, Lease, LoadTracker, Peers
from gateway.routing.peer_fairness import RemoteQueue, SlotDeferral
from gateway.routing.pending_request import PendingRequest
from gateway.routing.picker import ALONE, SEVERAL, Choice, Considered, pick
from gateway.routing.rejections import LoadOutlook, UnknownOutlook, immediate_rejection, timeout_rejection

RETRY_BACKOFF_MAX: Final = 10.0
"""A replica that refused is asked again after `retry_interval`, doubling with each refusal in a row up to this many
times as long."""
GUESSES_MAX: Final = 32
"""The number of guesses per model and longest pause between retries. A guess asks a replica that peers say is full. A
small fleet may guess everywhere; in a large one the refused calls must not become the main traffic."""

LOOK_AT_EACH_MAX: Final = 6
"""Up to so many candidates, a look at each costs less than to keep an index of them up to date."""


@dataclass(frozen=True)
class AdmissionLimits:
    """The limits of waiting: how long a request may wait for a slot, and how many requests may wait per model."""

    load_wait_seconds: float
    """How long a request waits for a model that no replica serves yet."""
    queue_timeout_seconds: float
    """How long a request waits for a free slot of a loaded model."""
    queue_length_max: int
    """The largest number of waiting requests per model."""
    retry_interval_seconds: float
    yield_seconds: float = 0.06
    """How long a free slot is left to an older request at a peer, which has to learn of it and to ask: two
    `lease_sync_interval` and one `retry_interval`."""


@dataclass(frozen=True)
class ModelQueueStatistics:
    """The number of requests that wait for one model, and the wait of the oldest in seconds."""

    waiting: int
    oldest_seconds: float
    """The wait of the oldest request, in seconds."""


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
        peers: Peers | None = None,
        strict: bool = False,
        demand_changed: Callable[[], None] = lambda: None,
        record_wait: Callable[[ModelName, float], None] = lambda _model, _seconds: None,
    ) -> None:
        """`strict`, `peers`: see `LoadTracker`. `demand_changed` is called when a model's queue begins or
        ends, `record_wait` with each lease given: for how many seconds its request waited for it."""
        self._view = view
        self.loads = LoadTracker(
            strict=strict,
            peers=peers,
            on_release=self._serve,
            on_free=self._record_free,
            on_peers_changed=self._apply_peer_changes,
        )
        self._limits = limits
        self._wall_clock = wall_clock
        self._rng = rng
        self._numbers = count()
        self._queues: dict[ModelName, FairQueue[PendingRequest]] = {}
        self._deferral = SlotDeferral(limits.yield_seconds)
        self._guess_at: dict[ModelName, float] = {}
        """The time of the next allowed guess. It lags behind while there are no guesses, so that several may then come
        at once."""
        self.decisions = DecisionLog()
        self._outlook = outlook or UnknownOutlook()
        self._demand_changed = demand_changed
        self._record_wait = record_wait

    def open_request(self, model: ModelName, origin: Origin) -> PendingRequest:
        """Raises `ModelNotFound`."""
        if model not in self._view().state.models:
            raise ModelNotFound(model)
        now = trio.current_time()
        return PendingRequest(next(self._numbers), model, origin, now, self.decisions.open(model, origin, now))

    async def wait_lease(self, request: PendingRequest) -> Lease:
        """Returns a lease on a replica with a free slot, which the caller has to release.

        There is no checkpoint if a slot is free and nobody waits. Raises `Overloaded`, `ModelLoading`,
        `ModelLoadFailed`, `NoNode`, `InsufficientCapacity`, `BackendFailed`, and `ModelNotFound` if it is removed
        meanwhile.
        """
        queue = self._queues.get(request.model)
        if not queue and (lease := self._bind(request)) is not None:
            self._record_wait(request.model, 0.0)
            return lease
        self._check_can_serve(request)
        if len(queue or ()) >= self._limits.queue_length_max:
            self._make_room(queue or FairQueue(), request)
        return await self._wait_in_queue(request)

    def _make_room(self, queue: FairQueue[PendingRequest], request: PendingRequest) -> None:
        """Makes room in a full queue at the expense of another caller that has many requests in it. Raises
        `Overloaded`."""
        full = Overloaded(
            f"{len(queue)} requests for '{request.model}' are waiting already; no more are taken.",
            retry_after_seconds=1,
        )
        displaced = queue.to_displace(request.caller)
        if displaced is None:
            raise full
        queue.remove(displaced)
        displaced.failure = full
        displaced.wake_up()

    async def _wait_in_queue(self, request: PendingRequest) -> Lease:
        began = trio.current_time()
        self._join(request)
        try:
            self._serve(request.model)
            while request.lease is None:
                await self._sleep(request)
                if request.failure is not None:
                    raise request.failure
                if request.lease is None:
                    self._check_can_serve(request)
                    self._serve(request.model)
            lease, request.lease = request.lease, None
            self._record_wait(request.model, trio.current_time() - began)
            return lease
        finally:
            self._leave(request)
            if request.lease is not None:  # given in the moment of a cancel or an error
                lease, request.lease = request.lease, None
                lease.release()

    async def _sleep(self, request: PendingRequest) -> None:
        """Sleeps until something changed for this request, or until it is time to ask a refused replica again.

        Raises what `rejections.timeout_rejection` says when time is up.
        """
        now, give_up_at = trio.current_time(), self._give_up_at(request)
        if now >= give_up_at:
            waited, shortage = now - request.since, self._outlook.shortage_of(request.model)
            raise timeout_rejection(
                view=self._view(),
                model=request.model,
                waited_seconds=waited,
                excluded=request.excluded,
                progress_of=self._outlook.progress_of,
                shortage=shortage,
                control_paused=self._outlook.control_paused(),
            )
        request.wake = wake = trio.Event()
        with trio.move_on_at(min(give_up_at, self._retry_at(request))):
            await wake.wait()

    def _give_up_at(self, request: PendingRequest) -> float:
        candidates = self._view().candidates.get(request.model, ())
        loaded = any(each.replica_id not in request.excluded for each in candidates)
        limit = self._limits.queue_timeout_seconds if loaded else self._limits.load_wait_seconds
        return request.since + limit

    def _retry_at(self, request: PendingRequest) -> float:
        """Returns the time at which the first full or suspect replica may be asked again.

        Only the first of a line asks, for the whole line: a replica that it has excluded may serve those behind it.
        """
        if not self._queues[request.model].is_first(request):
            return FOREVER
        now = trio.current_time()
        index, guess_at = self._index(request.model, now), self._guess_at.get(request.model, NEVER)
        # This holds also while the refused lease still ends, because its end wakes only requests that it gives a slot.
        guesses = (guess_at,) if index.doubtful else ()
        times = (index.next_change_at(), *guesses, *self._deferral.deferred_until(request.model))
        return min((at for at in times if at > now), default=FOREVER)

    def record_refusal(self, request: PendingRequest, lease: Lease) -> None:
        """Records that the replica said "no free slot". That is no failure: it is asked again a little later, or when a
        lease on it ends here."""
        refusals = self.loads.load_of(lease.candidate.replica_id).refusals
        first = self._limits.retry_interval_seconds
        pause = doubled_seconds(first, refusals, RETRY_BACKOFF_MAX * first)
        self.loads.record_full(lease, trio.current_time() + pause)
        if (queue := self._queues.get(request.model)) is not None:
            for waiting in queue.firsts():
                waiting.wake_up()  # it may sleep until another time, or not know that there is something to ask again

    def apply_remote_queues(self, queues: Iterable[RemoteQueue]) -> None:
        """Replaces what is known of the requests that wait at other gateways; `queues` has all of them."""
        for model in self._deferral.apply(queues, trio.current_time()):
            self._serve_freed(model)

    def _record_free(self, model: ModelName, slots: int = 1) -> None:
        if model in self._deferral.queues:
            now = trio.current_time()
            self._deferral.record_free(model, slots, self._index(model, now).free_slots, now)
        if model in self._queues:
            self._serve_freed(model)

    def _apply_peer_changes(self, changes: Mapping[ReplicaId, int]) -> None:
        """Wakes requests that wait for a replica on which other gateways now have fewer leases than before."""
        replicas, freed = self._view().state.replicas, Counter[ModelName]()
        for replica_id, change in changes.items():
            if change < 0 and replica_id in replicas:
                freed[replicas[replica_id].model] -= change
        for model, slots in freed.items():
            self._record_free(model, slots)

    def _serve_freed(self, model: ModelName) -> None:
        """Serves the queue as `_serve` does, and re-arms the timer of waiters blocked by a deferred slot or a suspect
        replica."""
        self._serve(model)
        if (queue := self._queues.get(model)) is not None and (
            model in self._deferral.ends or self._index(model, trio.current_time()).suspects
        ):
            for first in queue.firsts():
                first.wake_up()

    def prepare_view(self) -> Iterator[None]:
        """Makes the view ready for picks in parts of a millisecond: see `LoadIndex.prepare`."""
        return self.loads.index.prepare(self._view().candidates, trio.current_time)

    def apply_view_change(self) -> None:
        """Looks at every waiting request again; called after each change of the view."""
        self.loads.index.keep_only(self._view().state.models)
        for model in tuple(self._queues):
            self._serve(model)
            for request in self._queues.get(model, ()):
                request.wake_up()

    def _serve(self, model: ModelName) -> None:
        """Gives free slots to the waiters of `model`, in turn. Ends with the first one that could take any replica and
        gets none: then nobody behind it gets one either."""
        passed_over: set[PendingRequest] = set()
        share_of = partial(self.loads.share_of, model, self._view().candidates.get(model, ()))
        while (queue := self._queues.get(model)) is not None:
            request = queue.next_in_turn(share_of, passed_over)
            if request is None:
                return
            request.lease = self._bind(request)
            if request.lease is not None:
                self._take_out(queue, request)
                request.wake_up()
            elif request.excluded:
                passed_over.add(request)
            else:
                return

    # A request for which this gateway has its turn is bound, or left to wait, by the first of these that holds:
    #
    # 1. No replica may serve it, or each that may has failed it already: it waits.
    # 2. The best replica has a free slot, and the free slots are not left to older requests elsewhere: it is bound.
    # 3. The best replica has a free slot, but all slots that are free are left to older requests elsewhere: it waits.
    # 4. Every replica is full, one of them only as far as other gateways have published, and a guess is due: it is
    #    bound to the one that was asked longest ago, which can tell better.
    # 5. Every replica is full: it waits.
    #
    # A replica that has failed lately comes behind all others, also behind full ones: requests wait for those.
    def _bind(self, request: PendingRequest) -> Lease | None:
        now, model = trio.current_time(), request.model
        choice = self._pick(model, request.excluded, now)
        if choice is None:
            return None
        if choice.has_free_slot:
            if request.model in self._deferral.ends and self._is_deferred(request, now):
                return None
        else:
            guess = self._guess(self._index(model, now), request, now)
            if guess is None:
                return None
            choice = guess.among(choice)
        lease = self.loads.lease(choice.candidate, request.origin, now)
        request.decision.attempts.append(AttemptRecord(choice.candidate, choice, now))
        return lease

    def _pick(self, model: ModelName, excluded: Collection[ReplicaId], now: float) -> Choice | None:
        candidates = self._view().candidates.get(model, ())
        policy = SEVERAL if self.loads.peers.has_peers else ALONE
        if len(candidates) <= LOOK_AT_EACH_MAX and not excluded:
            return pick(candidates, self.loads.load_of, now, self._rng, policy)
        return self._index(model, now).pick(self._rng, policy, excluded)

    def _is_deferred(self, request: PendingRequest, now: float) -> bool:
        """Returns whether all slots that are free now are left to older requests at other gateways."""
        firsts = self._queues[request.model].firsts() if request.model in self._queues else ()
        oldest = min((first.since for first in firsts), default=request.since)
        free = self._index(request.model, now).free_slots
        deferred = self._deferral.deferred_slots(request.model, min(oldest, request.since), free, now)
        return deferred > 0 and free <= deferred

    def _guess(self, index: ModelIndex, request: PendingRequest, now: float) -> Choice | None:
        """Returns the replica that was asked longest ago, of those that are full only according to peers.

        A slot freed since would stay idle until the peers publish again, and the replica knows better.
        """
        guess_at = self._guess_at.get(request.model, NEVER)
        if now < guess_at:
            return None
        choice = index.guess(self._rng, request.excluded)
        if choice is not None:
            period = self._limits.retry_interval_seconds * RETRY_BACKOFF_MAX
            self._guess_at[request.model] = max(guess_at, now - period) + period / GUESSES_MAX
        return choice

    def explain(self, model: ModelName) -> tuple[Candidate | None, tuple[Considered, ...], float]:
        """Returns the candidate that a request would get now, all scores, and the time. Raises `ModelNotFound`."""
        view, now = self._view(), trio.current_time()
        if model not in view.state.models:
            raise ModelNotFound(model)
        choice = self._pick(model, (), now)
        if choice is None:
            return None, (), now
        return choice.candidate if choice.has_free_slot else None, choice.considered, now

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

    def _index(self, model: ModelName, now: float) -> ModelIndex:
        return self.loads.index.of(model, self._view().candidates.get(model, ()), now)

    def _check_can_serve(self, request: PendingRequest) -> None:
        patience = request.since + self._limits.load_wait_seconds - trio.current_time()
        error = immediate_rejection(self._view(), request.model, self._wall_clock(), patience)
        if error is not None:
            raise error

    def _join(self, request: PendingRequest) -> None:
        queue = self._queues.setdefault(request.model, FairQueue())
        queue.add(request)
        if len(queue) == 1:
            self._demand_changed()

    def _leave(self, request: PendingRequest) -> None:
        queue = self._queues.get(request.model)
        if queue is not None and request in queue:
            self._take_out(queue, request)

    def _take_out(self, queue: FairQueue[PendingRequest], request: PendingRequest) -> None:
        following = queue.remove(request)
        if following is not None:
            following.wake_up()  # From now on it has to watch refused replicas.
        if not queue:
            del self._queues[request.model]
            self._demand_changed()

    def statistics(self) -> dict[ModelName, ModelQueueStatistics]:
        """Returns the statistics of each model that has waiting requests."""
        now = trio.current_time()
        return {
            model: ModelQueueStatistics(len(queue), now - min(each.since for each in queue))
            for model, queue in self._queues.items()
        }
