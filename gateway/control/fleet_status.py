"""Combines this gateway's own knowledge of the fleet with the states that its peers have published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from gateway.control.peers.peer_table import PeerTable
from gateway.control.plan_outcome import PlanOutcome
from gateway.control.sessions.load_progress import LoadProgress
from gateway.domain.cluster import Progress
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.peers import PeerState, PendingReason
from gateway.domain.routability import FleetView
from gateway.registry.snapshot import SnapshotStore


@dataclass(frozen=True)
class FleetStatus:
    """Answers questions about the fleet, whichever gateway knows the answer. It is the `LoadOutlook` of routing."""

    views: SnapshotStore[FleetView]
    peers: PeerTable
    outcome: PlanOutcome
    """The outcome of the last plan, if this gateway leads."""
    progress: LoadProgress
    """The progress of loads on nodes whose session is at this gateway."""
    is_leader: Callable[[], bool]
    """Whether this gateway plans."""
    now: Callable[[], float] = trio.current_time
    """The clock of `progress`, in seconds."""

    @property
    def view(self) -> FleetView:
        """The fleet as this gateway sees it now."""
        return self.views.current

    async def wait_version(self, version: int) -> None:
        """Waits until this gateway's view shows that version of the registry's state, or a newer one."""
        view = self.views.current
        while view.state.version < version:
            view = await self.views.wait_change(view)

    def progress_of(self, replica_id: ReplicaId) -> Progress | None:
        """Returns how far a load is, as the gateway with the node's session has reported it. Returns None if nobody has
        reported anything."""
        if (own := self.progress.progress_of(replica_id, self.now())) is not None:
            return own
        reported = (peer.progress.get(replica_id) for peer in self.peers.states.values())
        return next((progress for progress in reported if progress is not None), None)

    def unsatisfiable(self) -> Mapping[ModelName, str]:
        """Returns the models that lack replicas of their minimum, each with the reason, as the leader sees it."""
        leader = self._other_leader()
        return self.outcome.unsatisfiable if leader is None else leader.unsatisfiable

    def pending(self) -> Mapping[ModelName, PendingReason]:
        """Returns the models that need a replica which cannot be started now, each with the reason, as the leader sees
        it."""
        leader = self._other_leader()
        return self.outcome.pending if leader is None else leader.pending

    def shortage_of(self, model: ModelName) -> str | None:
        """Returns why no node has room for the model. Returns None if it does not wait for room, or if room is being
        made."""
        reason = self.pending().get(model)
        return reason.because if reason is not None and reason.is_shortage else None

    def control_paused(self) -> bool:
        """Tells whether nothing can be loaded now, since the registry is away."""
        return not self.peers.connected

    def _other_leader(self) -> PeerState | None:
        leader = self.view.state.leader
        return None if leader is None or self.is_leader() else self.peers.states.get(leader)
