"""One plan for a test: a fleet, a time, and whatever else the test sets."""

from collections.abc import Callable, Mapping
from typing import TypedDict, Unpack

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState
from gateway.domain.ids import ReplicaId
from gateway.domain.peers import Audience
from gateway.planner.history import PlanningHistory
from gateway.planner.plan import Plan
from gateway.planner.planner import plan
from gateway.planner.planning_input import PlanningInput, WatchdogLimits
from tests.fakes.fleet import Ids


class Circumstances(TypedDict, total=False):
    """What a test may set of a `PlanningInput`; see there for what the rest is."""

    usage: Mapping[ReplicaId, Usage]
    broken: Mapping[ReplicaId, str]
    lost: frozenset[ReplicaId]
    history: PlanningHistory
    limits: WatchdogLimits
    audience: Audience | None


def plan_for(
    snapshot: ClusterState,
    now: float,
    new_replica_id: Callable[[], ReplicaId] | None = None,
    **circumstances: Unpack[Circumstances],
) -> Plan:
    """The plan for the fleet at the time; new replicas are r1, r2, ... unless said otherwise."""
    return plan(PlanningInput(snapshot=snapshot, now=now, **circumstances), new_replica_id or Ids())
