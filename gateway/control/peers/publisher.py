"""Makes the peer state that this gateway publishes, and applies those that its peers publish."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final, TypeVar

import trio

from gateway.concurrency import Wake
from gateway.control.leader_election import LeaderElection
from gateway.control.load_requests import Waiting
from gateway.control.plan_outcome import PlanOutcome
from gateway.control.sessions.load_progress import LoadProgress
from gateway.domain.cluster import Demand
from gateway.domain.ids import GatewayId, ModelName, ReplicaId
from gateway.domain.model_spec import NOTHING
from gateway.domain.peers import PeerState, PeerStates, Use
from gateway.domain.routability import FleetView
from gateway.registry.clock import RegistryClock
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.admission import Admission
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.peer_fairness import RemoteQueue

Key = TypeVar("Key", ReplicaId, ModelName)

SAME_SECONDS: Final = 0.05
"""The largest difference between two estimates of one moment. The first estimate stays, so that an unchanged state does
not look new to peers."""


COUNTS_SECONDS: Final = 0.5
"""How often the planner runs because the number of waiting requests has changed."""


@dataclass
class PeerStatePublisher:
    """Makes the state that this gateway publishes to its peers, and applies the states that they publish."""

    gateway_id: GatewayId
    url: Callable[[], str]
    secret_fingerprint: str
    clock: RegistryClock
    views: SnapshotStore[FleetView]
    loads: LoadTracker
    admission: Admission
    waiting: Callable[[], Mapping[ModelName, Waiting]]
    load_progress: LoadProgress
    election: LeaderElection
    outcome: PlanOutcome
    planner_wake: Wake
    always_publishes_leases: bool = False
    """Whether leases are published even without known peers, as in strict mode. Another gateway may then pick by
    them before this one knows of it."""
    _woken_for: Mapping[tuple[GatewayId, ModelName], int] = field(default_factory=dict, init=False)
    """The number of requests that waited for each model at each gateway when this publisher last woke the planner."""
    _woken_at: float = field(default=-inf, init=False)

    def fast(self, last: PeerState, has_peers: bool) -> PeerState:
        """Returns `last` with the parts that peers need soon. Leases are included only if there are peers to count
        them."""
        since = {model: self.clock() - each.oldest_seconds for model, each in self.waiting().items()}
        steady = _steady({row.model: row.since for row in last.demand}, since)
        leases = self.loads.published() if has_peers or self.always_publishes_leases else NOTHING
        # A replica that has just got a request was idle before. With the old usage it would look silent since then.
        uses = last.uses if leases.keys() == last.leases.keys() else self._uses(last)
        return replace(
            last,
            seen_version=self.views.current.state.version,
            leases=leases,
            uses=uses,
            demand=tuple(
                Demand(self.gateway_id, model, each.waiting, steady[model])
                for model, each in sorted(self.waiting().items())
            ),
        )

    def slow(self, last: PeerState) -> PeerState:
        """Returns `last` with new values of the parts that may be a moment old."""
        leads = self.election.epoch is not None
        return replace(
            last,
            url=self.url(),
            secret_fingerprint=self.secret_fingerprint,
            uses=self._uses(last),
            progress=self.load_progress.all_progress(trio.current_time()),
            pending=self.outcome.pending if leads else NOTHING,
            unsatisfiable=self.outcome.unsatisfiable if leads else NOTHING,
        )

    def _uses(self, last: PeerState) -> Mapping[ReplicaId, Use]:
        since = {replica_id: self.clock.of_trio(at) for replica_id, at in self.loads.uses().items()}
        steady = _steady({replica_id: use.since for replica_id, use in last.uses.items()}, since)
        return {replica_id: Use(at) for replica_id, at in steady.items()}

    def apply(self, peer_states: PeerStates, own: PeerState) -> None:
        """Applies the leases and waiting requests of peers to routing, admission and the planner."""
        demand = tuple(row for peer_state in peer_states.peers.values() for row in peer_state.demand)
        self.admission.apply_remote_queues(
            RemoteQueue(row.gateway_id, row.model, row.waiting, self.clock.to_trio(row.since), row.since)
            for row in demand
        )
        at_peers = Counter[ReplicaId]()
        for peer_state in peer_states.peers.values():
            at_peers.update(peer_state.leases)
        self.loads.apply_peers(at_peers)  # This comes after the queues: slots that it finds free may belong to them.
        self._wake_planner((*own.demand, *demand))

    def _wake_planner(self, demand: Iterable[Demand]) -> None:
        """Wakes the planner at once when requests at a peer begin or cease to wait, and now and then while their
        number changes. Requests at this gateway wake it without this."""
        now, before = trio.current_time(), self._woken_for
        counts = {(row.gateway_id, row.model): row.waiting for row in demand}
        known = {key: before.get(key, count) for key, count in counts.items()}
        is_changed = any(gateway_id != self.gateway_id for gateway_id, _ in counts.keys() ^ before.keys())
        if is_changed or (counts != known and now >= self._woken_at + COUNTS_SECONDS):
            self._woken_for, self._woken_at = counts, now
            self.planner_wake.set()
        else:
            self._woken_for = known


def _steady(before: Mapping[Key, float], now: Mapping[Key, float]) -> dict[Key, float]:
    return {
        key: steady if (steady := before.get(key)) is not None and abs(steady - at) < SAME_SECONDS else at
        for key, at in now.items()
    }
