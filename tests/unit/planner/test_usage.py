"""What the planner does about replicas that are stuck, that nobody uses, and that have drained."""

from collections.abc import Mapping
from math import inf

import pytest

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, NodeStatus
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.peers import Audience
from gateway.planner.plan import Plan
from gateway.planner.planning_input import WatchdogLimits
from gateway.planner.watchdog import DRAIN_RECHECK_SECONDS, DRAINED_SECONDS
from tests.fakes.fleet import demand, node, replica, spec, state
from tests.fakes.planning import plan_for

NOW = 10_000.0
LIMITS = WatchdogLimits(busy_seconds=300, idle_seconds=600)
R = ReplicaId("r")


def decide(
    seen: ClusterState,
    usage: Mapping[ReplicaId, Usage],
    limits: WatchdogLimits = LIMITS,
    audience: Audience | None = None,
) -> Plan:
    return plan_for(seen, NOW, usage=usage, limits=limits, audience=audience)


def wanted(decided: Plan) -> list[tuple[str, Desired, str]]:
    return [(entry.replica_id, entry.desired, entry.because) for entry in decided.set_desired]


def test_h1_busy_with_progress_is_left_alone_and_looked_at_again_in_time() -> None:
    decided = decide(state([replica(R)]), {R: Usage(4, 0.0, 299.0)})
    assert wanted(decided) == []
    assert decided.replan_at == NOW + 1


def test_busy_without_any_part_of_an_answer_is_stopped_with_its_evidence_and_replaced() -> None:
    seen = state([replica(R)], demand=[demand()])
    decided = decide(seen, {R: Usage(4, 0.0, 300.0)})
    assert wanted(decided) == [(R, Desired.STOP, "4 requests and no piece of an answer for 300 s")]
    assert len(decided.pending) + len(decided.start) == 1


def test_h1_without_a_limit_nothing_is_ever_stuck() -> None:
    decided = decide(state([replica(R)]), {R: Usage(1, 0.0, 1e6)}, WatchdogLimits())
    assert (wanted(decided), decided.replan_at) == ([], None)


@pytest.mark.parametrize("usage", [{R: Usage(0, 600.0, 0.0)}, {}], ids=["unused for long", "never used"])
def test_an_idle_replica_above_the_floor_is_drained(usage: Mapping[ReplicaId, Usage]) -> None:
    decided = decide(state([replica(R)]), usage)
    assert [(who, what) for who, what, _ in wanted(decided)] == [(R, Desired.DRAIN)]


def test_an_idle_replica_of_the_floor_stays() -> None:
    floor = spec(min_replicas=1)
    assert wanted(decide(state([replica(R, floor)], specs=[floor]), {R: Usage(0, 9999.0, 0.0)})) == []


def test_of_two_idle_replicas_above_a_floor_of_one_only_one_goes() -> None:
    floor = spec(min_replicas=1, max_replicas=2)
    seen = state([replica("a", floor), replica("b", floor, slot=1)], specs=[floor])
    assert len(wanted(decide(seen, {}))) == 1


def test_a_replica_that_has_just_become_ready_is_not_idle_yet() -> None:
    decided = decide(state([replica(R, since=NOW - 1)]), {})
    assert wanted(decided) == []
    assert decided.replan_at == NOW + 599


def test_w11_a_drained_replica_is_stopped_only_when_every_gateway_knows_that_it_drains() -> None:
    draining = replica(R, desired=Desired.DRAIN, observed=Observed.DRAINING, since=NOW - 5, desired_version=7)
    unseen = decide(state([draining]), {}, audience=Audience(6))
    assert (wanted(unseen), unseen.replan_at) == ([], NOW + DRAIN_RECHECK_SECONDS)
    assert wanted(decide(state([draining]), {}, audience=Audience(7))) == [
        (R, Desired.STOP, "its last request has ended")
    ]


def test_w11_a_replica_that_a_silent_gateway_had_a_request_on_is_left_to_its_worker() -> None:
    draining = replica(R, desired=Desired.DRAIN, observed=Observed.DRAINING, since=NOW - 5, desired_version=7)
    decided = decide(state([draining]), {}, audience=Audience(7, frozenset({R})))
    assert (wanted(decided), decided.replan_at) == ([], NOW + DRAIN_RECHECK_SECONDS)


@pytest.mark.parametrize("link", [NodeStatus.HEALTHY, NodeStatus.DRAINING])
def test_r13_what_drains_with_its_worker_is_not_stopped_before_it_is_written_that_it_drains(link: NodeStatus) -> None:
    """Its worker may have said so before it said that it leaves; and who is told with this plan does not know yet."""
    draining = replica(R, observed=Observed.DRAINING, since=NOW - 5, desired_version=7)
    decided = decide(state([draining], nodes=[node(condition=link)]), {}, audience=Audience(9))
    assert [what for _, what, _ in wanted(decided)] == ([Desired.DRAIN] if link is NodeStatus.DRAINING else [])


def test_r13_a_drained_replica_is_stopped_once_its_last_request_has_ended() -> None:
    draining = replica(R, desired=Desired.DRAIN, observed=Observed.DRAINING, since=NOW - 5)
    assert wanted(decide(state([draining]), {R: Usage(1, 0.0, 2.0)}, WatchdogLimits())) == []
    just = decide(state([draining]), {R: Usage(0, DRAINED_SECONDS / 2, 0.0)}, WatchdogLimits())
    assert (wanted(just), just.replan_at) == ([], NOW + DRAINED_SECONDS / 2)
    decided = decide(state([draining]), {R: Usage(0, DRAINED_SECONDS, 0.0)}, WatchdogLimits())
    assert wanted(decided) == [(R, Desired.STOP, "its last request has ended")]


def test_r13_a_replica_that_drains_since_this_moment_may_still_get_a_request_and_is_left_alone() -> None:
    draining = replica(R, desired=Desired.DRAIN, observed=Observed.DRAINING, since=NOW)
    decided = decide(state([draining]), {R: Usage(0, inf, 0.0)}, WatchdogLimits())
    assert wanted(decided) == []
