"""What this gateway and the other gateways of its fleet have told each other last, and whether it is still part of it.

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
        """What this gateway has put together last for the others."""
        self.peer_states: PeerStates = NO_PEERS
        """What came last; kept while nothing comes."""
        self.has_peers = False
        """There were other gateways at the last exchange."""
        self.connected = False
        """The last exchange came to an end."""
        self.changed = Wake()
        """Set when this gateway has something new to tell."""

    @property
    def peers(self) -> Mapping[GatewayId, PeerState]:
        """Returns the newest state of each other gateway that lives."""
        return self.peer_states.peers

    def report_demand(self) -> None:
        """A queue has begun or ended."""
        self.changed.set()

    def report_leases(self) -> None:
        """A lease has begun or ended; nobody needs to know if this gateway is alone."""
        if self.has_peers:
            self.changed.set()

    def publish(self, own: PeerState) -> None:
        """Keeps what this gateway is about to tell the others."""
        self.own = own

    def learn(self, peer_states: PeerStates) -> None:
        """Keeps what the others have told in an exchange that came to an end."""
        self.peer_states, self.has_peers, self.connected = peer_states, bool(peer_states.peers), True

    def lose_contact(self) -> None:
        """An exchange has failed; what came last is kept."""
        self.connected = False

    def forget_what_others_have(self) -> None:
        """They still live, as far as is known, but what they said is too old to count."""
        others = {
            each.gateway_id: replace(each, leases={}, uses={}, demand=(), progress={}) for each in self.peers.values()
        }
        self.peer_states = replace(self.peer_states, peers=others)
