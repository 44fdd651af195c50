"""The state that the gateways of one fleet publish to each other, many times a second and never as part of the state's
version.

Each gateway publishes one complete `PeerState`, which replaces its last one. It counts as long as its gateway renews
it. Times are seconds of the registry's clock, the only one that is compared across machines (H11).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.domain.cluster import Demand, Progress
from gateway.domain.ids import GatewayId, ModelName, ReplicaId
from gateway.domain.model_spec import NOTHING

SILENT_SECONDS_MAX: Final = 3600.0
"""How long the last state of a silent gateway is kept."""


class PendingReason(NamedTuple):
    """The reason why a wanted model cannot be started, as the leader sees it."""

    because: str
    is_shortage: bool
    """Whether no node has room for it, and nothing is under way that makes room."""


@dataclass(frozen=True)
class Use:
    """The use of one replica by the requests of one gateway."""

    since: float
    """The time at which the replica took the oldest of its requests, or at which the last part of an answer came if
    that is later. Without requests, it is the time at which the last one ended."""


@dataclass(frozen=True)
class PeerState:
    """The published state of one gateway."""

    gateway_id: GatewayId
    url: str = ""
    """The URL of its HTTP listener for other gateways, or an empty text if there is none."""
    secret_fingerprint: str = ""
    """The fingerprint of its cluster secret. Gateways of one fleet have the same."""
    seen_version: int = 0
    """The version of the state that it routes by."""
    leases: Mapping[ReplicaId, int] = field(default_factory=lambda: NOTHING)
    """The number of requests that each replica has or may have through this gateway. Replicas without any are left
    out."""
    uses: Mapping[ReplicaId, Use] = field(default_factory=lambda: NOTHING)
    """The usage of replicas that had a request through it. It is published less often than `leases`."""
    demand: tuple[Demand, ...] = ()
    """The requests that wait at this gateway, one row for each model."""
    progress: Mapping[ReplicaId, Progress] = field(default_factory=lambda: NOTHING)
    """The progress of loads on nodes whose session it holds."""
    pending: Mapping[ModelName, PendingReason] = field(default_factory=lambda: NOTHING)
    """The models that need a replica that cannot be started yet. Only the leader publishes them."""
    unsatisfiable: Mapping[ModelName, str] = field(default_factory=lambda: NOTHING)
    """The models that lack replicas of their minimum, with the numbers (P5). Only the leader publishes them."""


@dataclass(frozen=True)
class PeerStates:
    """The answer to a peer state."""

    now: float
    """The registry's clock."""
    version: int
    """The version of the state as it is now."""
    peers: Mapping[GatewayId, PeerState] = field(default_factory=lambda: NOTHING)
    """The newest peer state of each other gateway that lives."""
    silent: Mapping[GatewayId, PeerState] = field(default_factory=lambda: NOTHING)
    """The last state of each peer whose state has expired and that has not said goodbye, for `SILENT_SECONDS_MAX`. That
    peer has died, or is cut off and keeps serving from its last view."""


NO_PEERS: Final = PeerStates(0.0, 0)


@dataclass(frozen=True)
class Audience:
    """The knowledge of the gateways that may route requests, as far as the planner has to wait for them."""

    seen_version: int
    """The least version of the state that one of them routes by."""
    held: frozenset[ReplicaId] = frozenset()
    """The replicas that had a request through a gateway that has fallen silent, as it last published."""


def audience(own: PeerState, seen_version: int, peer_states: PeerStates) -> Audience:
    """Returns what the gateways know that may route requests. `own` is the state that the calling gateway publishes,
    and `seen_version` is the version of the registry's state that it routes by.

    A silent gateway belongs to them, because it may be cut off from the registry and still have clients. It does not
    once another gateway lives at its address, because its process has then ended.
    """
    living = (own, *peer_states.peers.values())
    inhabited = {each.url for each in living if each.url}
    silent = [each for each in peer_states.silent.values() if each.url not in inhabited]
    least = min((each.seen_version for each in (*peer_states.peers.values(), *silent)), default=seen_version)
    return Audience(min(seen_version, least), frozenset(replica_id for each in silent for replica_id in each.leases))


class ReservationFailed(Exception):
    """The registry could not be asked, or its answer was lost: it may count a lease that nobody has."""


@dataclass(frozen=True)
class SlotRequest:
    """A slot of some replica of `model` for one request, with what only the asking gateway knows."""

    gateway_id: GatewayId
    model: ModelName
    leases: Mapping[ReplicaId, int] = field(default_factory=lambda: NOTHING)
    """The leases of this gateway on all replicas, without the one that is asked for, as in `PeerState.leases`."""
    unused_seconds: Mapping[ReplicaId, float] = field(default_factory=lambda: NOTHING)
    """The seconds since this gateway last took a lease on a replica, for each replica that it ever used."""
    excluded: Collection[ReplicaId] = ()
    """The replicas that have failed this request."""
    suspect: Collection[ReplicaId] = ()
    """The replicas that have failed recently. One of them is chosen only if there is no other."""
    full: Collection[ReplicaId] = ()
    """The replicas that have just refused a request as full, however many leases are counted."""
    busy: Collection[ReplicaId] = ()
    """The replicas that did not answer a probe. Others with a free slot are preferred."""
