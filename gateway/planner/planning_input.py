"""The input of one plan: a frozen record, so that the same input always gives the same plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState
from gateway.domain.ids import ReplicaId
from gateway.domain.peers import Audience
from gateway.planner.history import NO_HISTORY, PlanningHistory

NO_USAGE: Final[Mapping[ReplicaId, Usage]] = MappingProxyType({})
NOTHING_BROKEN: Final[Mapping[ReplicaId, str]] = MappingProxyType({})


@dataclass(frozen=True)
class WatchdogLimits:
    """The times after which a replica counts as stuck, or as not worth its memory.

    The values come from `watchdog` and `reconciler` in the configuration. An infinite value switches its rule off.
    """

    busy_seconds: float = inf
    """How long a replica may have requests without sending any part of an answer."""
    idle_seconds: float = inf
    """How long a replica above the model's minimum may have no request."""
    scale_down_seconds: float = inf
    """The same for the autoscaler. The lesser of this and `idle_seconds` counts."""


NO_LIMITS: Final = WatchdogLimits()


@dataclass(frozen=True, kw_only=True)
class PlanningInput:
    """Holds everything that the planner may look at."""

    snapshot: ClusterState
    """The models, nodes, replicas, demand and load failures, as one consistent read of the registry."""
    now: float
    """The time of the plan in seconds of the registry's clock."""
    usage: Mapping[ReplicaId, Usage] = field(default_factory=lambda: NO_USAGE)
    """The usage of each replica. A replica that is not in it has never had a request."""
    broken: Mapping[ReplicaId, str] = field(default_factory=lambda: NOTHING_BROKEN)
    """The replicas that some gateway has found useless although their processes live, each with the reason."""
    lost: frozenset[ReplicaId] = frozenset()
    """The broken replicas that ended together with their worker, which says nothing about their models."""
    history: PlanningHistory = NO_HISTORY
    """The facts that the leader remembers from earlier plans."""
    limits: WatchdogLimits = NO_LIMITS
    """How long replicas may be silent or idle."""
    audience: Audience | None = None
    """The knowledge of the gateways that may route requests. None means that all of them route by `snapshot`."""
