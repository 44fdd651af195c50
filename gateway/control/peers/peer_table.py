"""The newest peer states of this gateway and of the others in its fleet, and whether this gateway still reaches
them.

`PeerSync` keeps it up to date; whoever has to know of the others only reads it.
"""

from collections.abc import Mapping
from dataclasses import replace

from gateway.concurrency import Wake
from gateway.domain.ids import GatewayId
from gateway.domain.peers import NO_PEERS, PeerState, PeerStates


class PeerTable:
    """The newest state of each gateway of the fleet, as far as this one knows."""

    def __init__(self, gateway_id: GatewayId) -> None:
        self.own = PeerState(gateway_id)
        """The last state that this gateway has put together for its peers."""
        self.peer_states: PeerStates = NO_PEERS
        """The result of the last successful exchange. It stays while no newer one comes."""
        self.has_peers = False
        """Whether there were other gateways at the last exchange."""
        self.connected = False
        """Whether the last exchange succeeded."""
        self.changed = Wake()
        """The wake-up of the peer sync. It is set when this gateway has news for its peers."""

    @property
    def states(self) -> Mapping[GatewayId, PeerState]:
        """The newest state of each other gateway that lives."""
        return self.peer_states.peers

    def report_demand(self) -> None:
        """Asks for an exchange because a queue has begun or ended."""
        self.changed.set()

    def report_leases(self) -> None:
        """Asks for an exchange because a lease has begun or ended. Leases of a gateway without peers need none."""
        self.changed.set()

    def publish(self, own: PeerState) -> None:
        """Sets the state that the next exchange tells the peers."""
        self.own = own

    def update(self, peer_states: PeerStates) -> None:
        """Sets the result of a successful exchange."""
        self.peer_states, self.has_peers, self.connected = peer_states, bool(peer_states.peers), True

    def lose_contact(self) -> None:
        """Records that an exchange has failed. The last result stays."""
        self.connected = False

    def forget_loads(self) -> None:
        """Forgets the leases, usage, demand and progress of all peers: they may live, but their news is too old."""
        old = self.states.values()
        peers = {each.gateway_id: replace(each, leases={}, uses={}, demand=(), progress={}) for each in old}
        self.peer_states = replace(self.peer_states, peers=peers)
