"""How a gateway asks the registry for a slot, where gateways must not differ for a moment (strict mode)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gateway.domain.ids import GatewayId, ModelName, ReplicaId
from gateway.domain.peers import NOTHING


class ReservationFailed(Exception):
    """The registry could not be asked, or its answer was lost: it may count a lease that nobody has."""


@dataclass(frozen=True)
class SlotRequest:
    """A slot of some replica of `model` for one request, with what only the asking gateway knows."""

    gateway_id: GatewayId
    model: ModelName
    leases: Mapping[ReplicaId, int] = field(default_factory=lambda: NOTHING)
    """Of this gateway, on whatever replicas, without the one that is asked for: as `PeerState.leases`."""
    unused_seconds: Mapping[ReplicaId, float] = field(default_factory=lambda: NOTHING)
    """Since it last took a lease on each replica of the model that it ever did."""
    excluded: Collection[ReplicaId] = ()
    """They have failed this request."""
    suspect: Collection[ReplicaId] = ()
    """They have failed lately: only if there is no other."""
    full: Collection[ReplicaId] = ()
    """They have just said so, whatever is counted."""
    busy: Collection[ReplicaId] = ()
    """They did not answer a probe: rather others that have a free slot."""
