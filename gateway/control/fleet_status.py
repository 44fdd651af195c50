"""What is known of the whole fleet at this gateway: its own parts and what the other gateways have said, as one."""

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
    """Answers for the fleet, whichever gateway knows. It is the `LoadOutlook` of routing."""

    views: SnapshotStore[FleetView]
    peers: PeerTable
    outcome: PlanOutcome
    """What this gateway's planner came to."""
    progress: LoadProgress
    """The loads of which this gateway's sessions have heard."""
    is_leader: Callable[[], bool]
    """Whether this gateway plans."""
    now: Callable[[], float] = trio.current_time
    """The clock of `progress`, in seconds."""

    @property
    def view(self) -> FleetView:
        """Returns the fleet as this gateway sees it now."""
        return self.views.current

    def progress_of(self, replica_id: ReplicaId) -> Progress | None:
        """How far a load is: whoever holds the node's session knows. None: nobody has said anything."""
        if (own := self.progress.progress_of(replica_id, self.now())) is not None:
            return own
        reported = (peer.progress.get(replica_id) for peer in self.peers.states.values())
        return next((progress for progress in reported if progress is not None), None)

    def unsatisfiable(self) -> Mapping[ModelName, str]:
        """Models that can't have what they have to have, and why, as the leader sees it."""
        leader = self._other_leader()
        return self.outcome.unsatisfiable if leader is None else leader.unsatisfiable

    def pending(self) -> Mapping[ModelName, PendingReason]:
        """Models of which a replica is wanted that can't be started now, and why, as the leader sees it."""
        leader = self._other_leader()
        return self.outcome.pending if leader is None else leader.pending

    def shortage_of(self, model: ModelName) -> str | None:
        """Why no node has room for the model, if it waits for room and nothing is under way that makes any."""
        reason = self.pending().get(model)
        return reason.because if reason is not None and reason.is_shortage else None

    def control_paused(self) -> bool:
        """Tells whether nothing can be loaded now, since the registry is away."""
        return not self.peers.connected

    def _other_leader(self) -> PeerState | None:
        leader = self.view.state.leader
        return None if leader is None or self.is_leader() else self.peers.states.get(leader)
