"""Decides the condition of a node by its session and by how long it has been silent. Pure.

| its session           | silent for (seconds)         | condition                          | its replicas are probed |
|-----------------------|------------------------------|------------------------------------|-------------------------|
| open                  | less than misses x heartbeat | healthy, or draining if it leaves  | no                      |
| open                  | more                         | stays                              | yes                     |
| broken                | any                          | stays                              | yes                     |
| open or broken        | `stale_after` and more       | unhealthy                          | yes                     |
| open or broken        | 4 x `stale_after` and more   | offline                            | no                      |
| ended properly, broke | any, and it is offline       | stays offline, however fresh (H9)  | no                      |

Silence does not prove that a node is dead (H12). It makes the node suspect, and probes find out which of its replicas
live.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

from gateway.domain.cluster import NodeStatus

OFFLINE_FACTOR: Final = 4
"""The multiple of `stale_after` after which a silent node is not expected back any more."""


@dataclass(frozen=True)
class Connectivity:
    """The knowledge of one gateway about the connection to a node at one moment. Ages are those of its own monotonic
    clock (H11)."""

    connected: bool
    """Whether the node has an open session at this gateway."""
    silent_seconds: float
    """The time since its last message, or since its session broke."""
    leaving: bool = False
    """Whether its worker has said that it drains and ends."""


@dataclass(frozen=True)
class HealthSettings:
    """The times of silence after which a node is suspect, unhealthy or offline."""

    heartbeat_seconds: float
    stale_after_seconds: float
    misses: int
    """The number of missed heartbeats, or of failed probes in a row, after which a node or replica is considered
    dead."""

    @property
    def suspect_after_seconds(self) -> float:
        """The seconds of silence after which the replicas of a node are probed."""
        return min(self.misses * self.heartbeat_seconds, self.stale_after_seconds)

    @property
    def offline_after_seconds(self) -> float:
        """The seconds of silence after which a node is not expected back any more."""
        return OFFLINE_FACTOR * self.stale_after_seconds


@dataclass(frozen=True)
class Assessment:
    """The new condition of a node, and whether its replicas have to be probed."""

    condition: NodeStatus
    suspect: bool
    """Whether its replicas have to be probed."""
    again_in: float
    """The seconds until the assessment can change without an event; infinity if it cannot."""


def assess(current: NodeStatus, connectivity: Connectivity, settings: HealthSettings) -> Assessment:
    """Returns the assessment. `current` is the node's condition in the registry."""
    if current is NodeStatus.OFFLINE and (connectivity.leaving or not connectivity.connected):
        return Assessment(NodeStatus.OFFLINE, suspect=False, again_in=inf)
    doubtful = not connectivity.connected or connectivity.silent_seconds >= settings.suspect_after_seconds
    status = _status(current, connectivity, settings, doubtful=doubtful)
    return Assessment(status, doubtful and status is not NodeStatus.OFFLINE, _again_in(connectivity, settings))


def _status(current: NodeStatus, connectivity: Connectivity, settings: HealthSettings, *, doubtful: bool) -> NodeStatus:
    if connectivity.silent_seconds >= settings.offline_after_seconds:
        return NodeStatus.OFFLINE
    if connectivity.silent_seconds >= settings.stale_after_seconds:
        return NodeStatus.UNHEALTHY
    if doubtful:
        return current
    return NodeStatus.DRAINING if connectivity.leaving else NodeStatus.HEALTHY


def _again_in(connectivity: Connectivity, settings: HealthSettings) -> float:
    limits = [settings.stale_after_seconds, settings.offline_after_seconds]
    if connectivity.connected:
        limits.append(settings.suspect_after_seconds)
    return min(
        (limit - connectivity.silent_seconds for limit in limits if limit > connectivity.silent_seconds), default=inf
    )
