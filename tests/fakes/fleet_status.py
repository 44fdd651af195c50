"""What a gateway knows of its fleet, as the test says it."""

from collections.abc import Callable, Iterable

from gateway.control.fleet_status import FleetStatus
from gateway.control.peers.peer_table import PeerTable
from gateway.control.plan_outcome import PlanOutcome
from gateway.control.sessions.load_progress import LoadProgress
from gateway.domain.cluster import Progress
from gateway.domain.ids import GatewayId, ReplicaId
from gateway.domain.peers import PeerState, PeerStates
from gateway.domain.routability import EMPTY_VIEW, FleetView
from gateway.registry.snapshot import SnapshotStore


class KnownProgress(LoadProgress):
    """Loads that are as far as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[ReplicaId, Progress] = {}

    def progress_of(self, replica_id: ReplicaId, _now: float) -> Progress | None:
        return self.known.get(replica_id)


def peer_table(own: GatewayId, others: Iterable[PeerState] = ()) -> PeerTable:
    peers = PeerTable(own)
    peers.update(PeerStates(0.0, 0, {each.gateway_id: each for each in others}))
    return peers


def fleet_status(
    own: GatewayId,
    *others: PeerState,
    view: FleetView = EMPTY_VIEW,
    views: SnapshotStore[FleetView] | None = None,
    is_leader: Callable[[], bool] = lambda: True,
) -> FleetStatus:
    """`views` is taken for `view` if it is there."""
    return FleetStatus(
        views=views or SnapshotStore(view),
        peers=peer_table(own, others),
        outcome=PlanOutcome(),
        progress=KnownProgress(),
        is_leader=is_leader,
        now=lambda: 0.0,
    )
