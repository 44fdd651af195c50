"""What is to be thought of a node, from how long it has been silent. Pure.

| its session           | silent for (seconds)         | link                               | its replicas are probed |
|-----------------------|------------------------------|------------------------------------|-------------------------|
| open                  | less than misses x heartbeat | healthy, or draining if it leaves  | no                      |
| open                  | more                         | stays                              | yes                     |
| broken                | any                          | stays                              | yes                     |
| open or broken        | `stale_after` and more       | unhealthy                          | yes                     |
| open or broken        | 4 x `stale_after` and more   | offline                            | no                      |
| ended properly, broke | any, and it is offline       | stays offline, however fresh (H9)  | no                      |

Silence is no evidence of a death (H12): it makes a node suspect, and the probes say what became of its replicas.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

from gateway.domain.cluster import NodeStatus

OFFLINE_FACTOR: Final = 4
"""After so many times `stale_after` a silent node is not expected back any more."""


@dataclass(frozen=True)
class Connectivity:
    """What a gateway has of a node at one moment. Ages are of its own monotonic clock (H11)."""

    connected: bool
    """A session is open here."""
    silent_seconds: float
    """Since its last message, or since its session broke."""
    leaving: bool = False
    """Its worker has said that it drains and ends."""


@dataclass(frozen=True)
class HealthSettings:
    """Sets after how much silence a node is suspect, unhealthy or offline."""

    heartbeat_seconds: float
    stale_after_seconds: float
    misses: int
    """So many heartbeats missed, or probes in a row that found nobody, mean something."""

    @property
    def suspect_after_seconds(self) -> float:
        """Returns after how many seconds of silence the replicas of a node are probed."""
        return min(self.misses * self.heartbeat_seconds, self.stale_after_seconds)

    @property
    def offline_after_seconds(self) -> float:
        """Returns after how many seconds of silence a node is not expected back any more."""
        return OFFLINE_FACTOR * self.stale_after_seconds


@dataclass(frozen=True)
class Assessment:
    """Says what the link of a node is to become, and whether its replicas are to be probed."""

    link: NodeStatus
    suspect: bool
    """Its replicas are to be probed."""
    again_in: float
    """Seconds until the verdict can change by time alone; infinite if it can't."""


def assess(current: NodeStatus, link: Connectivity, settings: HealthSettings) -> Assessment:
    """`current` is the node's link as it is written down."""
    if current is NodeStatus.OFFLINE and (link.leaving or not link.connected):
        return Assessment(NodeStatus.OFFLINE, suspect=False, again_in=inf)
    doubtful = not link.connected or link.silent_seconds >= settings.suspect_after_seconds
    status = _status(current, link, settings, doubtful=doubtful)
    return Assessment(status, doubtful and status is not NodeStatus.OFFLINE, _again_in(link, settings))


def _status(current: NodeStatus, link: Connectivity, settings: HealthSettings, *, doubtful: bool) -> NodeStatus:
    if link.silent_seconds >= settings.offline_after_seconds:
        return NodeStatus.OFFLINE
    if link.silent_seconds >= settings.stale_after_seconds:
        return NodeStatus.UNHEALTHY
    if doubtful:
        return current
    return NodeStatus.DRAINING if link.leaving else NodeStatus.HEALTHY


def _again_in(link: Connectivity, settings: HealthSettings) -> float:
    limits = [settings.stale_after_seconds, settings.offline_after_seconds]
    if link.connected:
        limits.append(settings.suspect_after_seconds)
    return min((limit - link.silent_seconds for limit in limits if limit > link.silent_seconds), default=inf)
