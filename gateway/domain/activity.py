"""The requests of each replica: how many are open, and since when it is idle or silent. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.domain.ids import ReplicaId
from gateway.domain.peers import PeerState


@dataclass(frozen=True)
class Usage:
    """The facts about a replica's requests that the planner needs, for one gateway or for all of them
    (`merge_usage`)."""

    open: int
    """The number of requests that it has or may have."""
    idle_seconds: float
    """The time since its last request ended: 0 while it has one, infinity if it never had one."""
    silent_seconds: float
    """The seconds since the replica took the oldest of its requests, or since the last part of any answer if that is
    later. It is 0 without requests."""


def merge_usage(
    own: Mapping[ReplicaId, Usage], peer_states: Iterable[PeerState], now: float
) -> Mapping[ReplicaId, Usage]:
    """Returns the usage of each replica that had a request through any gateway. `now` is the time in seconds of the
    registry's clock.

    A replica is as busy as all its requests, idle only since the last of them ended, and silent only since the last
    part of any answer.
    """
    merged = dict(own)
    for peer_state in peer_states:
        for replica_id in peer_state.leases.keys() | peer_state.uses.keys():
            published = _published_usage(peer_state, replica_id, now)
            known = merged.get(replica_id)
            merged[replica_id] = published if known is None else _both(known, published)
    return merged


def _published_usage(peer_state: PeerState, replica_id: ReplicaId, now: float) -> Usage:
    """Returns the usage of a replica at one gateway. A replica with leases and no published usage has just begun."""
    open_leases, use = peer_state.leases.get(replica_id, 0), peer_state.uses.get(replica_id)
    seconds = max(0.0, now - use.since) if use is not None else 0.0
    return Usage(open_leases, 0.0, seconds) if open_leases else Usage(0, seconds, 0.0)


def _both(one: Usage, other: Usage) -> Usage:
    silences = [each.silent_seconds for each in (one, other) if each.open]
    return Usage(one.open + other.open, min(one.idle_seconds, other.idle_seconds), min(silences, default=0.0))
