"""The planner's decisions, one by one."""

from dataclasses import replace

import pytest

from gateway.domain.cluster import ClusterState, LoadFailure, Node, NodeStatus
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.planner.builder import backoff_seconds
from gateway.planner.plan import Plan, StartReplica
from gateway.planner.planner import STABLE_SECONDS
from tests.fakes.fleet import MODEL, demand, node, replica, spec, state
from tests.fakes.planning import plan_for

NOW = 1000.0
R = ReplicaId("r")
UNFIT = [
    node(approved=False),
    node(draining=True),
    node(condition=NodeStatus.UNHEALTHY),
    node(condition=NodeStatus.OFFLINE, since=NOW),
]
"""A node of each status but healthy."""


def decide(seen: ClusterState) -> Plan:
    return plan_for(seen, NOW)


def started(decided: Plan) -> list[StartReplica]:
    return list(decided.start)


def test_nothing_wanted_nothing_planned() -> None:
    assert decide(state()) == Plan()


def test_demand_starts_one_replica_however_many_requests_wait() -> None:
    [start] = started(decide(state(demand=[demand(waiting=100)])))
    assert start.replica.model == MODEL
    assert start.replica.revision == spec().revision
    assert (start.replica.desired, start.replica.observed) == (Desired.RUN, Observed.PLACED)
    assert start.replica.parallel == 4
    assert start.because == "100 requests wait for it"


@pytest.mark.parametrize("observed", sorted(COMING_UP | {Observed.READY}))
def test_l14_a_replica_that_is_coming_up_or_there_is_enough(observed: Observed) -> None:
    assert started(decide(state([replica("r", observed=observed)], demand=[demand()]))) == []


def test_l17_the_minimum_is_kept_without_any_request() -> None:
    floor = spec(min_replicas=2, max_replicas=2)
    decided = decide(state(specs=[floor], nodes=[node("n1"), node("n2")]))
    assert {start.replica.node_id for start in decided.start} == {"n1", "n2"}


def test_p5_more_than_there_is_room_for_waits_and_says_why() -> None:
    floor = spec(min_replicas=3, max_replicas=3)
    decided = decide(state(specs=[floor], nodes=[node("n1")]))
    assert len(decided.start) == 1
    because = "no healthy node has room for it (name-n1: 1 of 1 slots taken)"
    assert [(wait.because, wait.is_shortage) for wait in decided.pending] == [(because, True)]
    assert decided.unsatisfiable == {MODEL: f"1 of 3 replicas: {because}"}


@pytest.mark.parametrize("unfit", UNFIT, ids=lambda unfit: unfit.status)
def test_no_replica_is_placed_on_a_node_that_is_not_healthy(unfit: Node) -> None:
    decided = decide(state(nodes=[unfit], demand=[demand()]))
    assert decided.start == ()
    assert len(decided.pending) == 1


def test_the_selector_is_part_of_placement() -> None:
    picky = spec(selector={"tier": "gpu"})
    nodes = [node("n1"), node("n2", labels={"tier": "gpu"})]
    [start] = started(decide(state(specs=[picky], nodes=nodes, demand=[demand()])))
    assert start.replica.node_id == "n2"


def test_the_emptier_node_is_chosen() -> None:
    other = spec("other")
    nodes = [node("n1"), node("n2")]
    [start] = started(decide(state([replica("r", other)], specs=[spec(), other], nodes=nodes, demand=[demand()])))
    assert start.replica.node_id == "n2"


def test_r10_a_slot_is_never_used_twice() -> None:
    wide = spec(min_replicas=3, max_replicas=3)
    nodes = [node(max_replicas_per_model=3)]
    decided = decide(state([replica("r", wide, slot=1)], specs=[wide], nodes=nodes))
    assert sorted(start.replica.slot for start in decided.start) == [0, 2]


def test_a_failed_load_is_deleted_and_recorded_as_a_failure() -> None:
    broken = replica("r", observed=Observed.FAILED, error="exit 3")
    decided = decide(state([broken], demand=[demand()]))
    assert [entry.replica_id for entry in decided.delete] == ["r"]
    assert [(mark.model, mark.failure) for mark in decided.set_load_failure] == [
        (MODEL, LoadFailure("exit 3", 1, NOW + 10))
    ]
    assert decided.start == ()
    assert decided.replan_at == NOW + 10


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 10), (2, 20), (3, 40), (5, 160), (6, 300), (10_000, 300)])
def test_l9_the_backoff_doubles_up_to_five_minutes(attempts: int, seconds: float) -> None:
    assert backoff_seconds(attempts) == seconds


def test_l9_failures_in_a_row_are_counted() -> None:
    broken = replica("r", observed=Observed.FAILED, error="exit 3")
    decided = decide(state([broken], failures={MODEL: LoadFailure("exit 3", 2, NOW)}))
    assert decided.set_load_failure[0].failure == LoadFailure("exit 3", 3, NOW + 40)


def test_l9_after_its_backoff_a_model_is_tried_again() -> None:
    failures = {MODEL: LoadFailure("exit 3", 1, NOW)}
    assert len(decide(state(demand=[demand()], failures=failures)).start) == 1


def test_a_success_clears_the_failure() -> None:
    failed_at = NOW - 15
    failures = {MODEL: LoadFailure("exit 3", 1, failed_at + backoff_seconds(1))}
    decided = decide(state([replica("r", since=failed_at + 1)], failures=failures))
    assert [(mark.model, mark.failure) for mark in decided.set_load_failure] == [(MODEL, None)]


def test_l9_one_that_served_before_does_not_clear_the_failure_of_another() -> None:
    """Else the other one would be tried again at once and for ever."""
    two = spec(min_replicas=2, max_replicas=2)
    fleet = [replica("serves", two, since=NOW - 100), replica("r", two, slot=1, observed=Observed.FAILED)]
    decided = decide(state(fleet, specs=[two], nodes=[node(max_replicas_per_model=2)]))
    assert [mark.failure and mark.failure.retry_at for mark in decided.set_load_failure] == [NOW + 10]
    assert decided.start == ()


def test_a8_a_replica_of_an_old_revision_is_drained_and_replaced() -> None:
    old, new = spec(context_size=8), spec(context_size=16)
    nodes = [node(max_replicas_per_model=2)]
    decided = decide(state([replica("old", old)], specs=[new], nodes=nodes, demand=[demand()]))
    assert [(entry.replica_id, entry.desired) for entry in decided.set_desired] == [("old", Desired.DRAIN)]
    assert [start.replica.revision for start in decided.start] == [new.revision]


def test_a_failed_load_of_an_old_revision_says_nothing_of_the_new_one() -> None:
    broken = replica("r", spec(context_size=8), observed=Observed.FAILED, error="exit 3")
    decided = decide(state([broken], specs=[spec(context_size=16)], demand=[demand()]))
    assert decided.set_load_failure == ()
    assert len(decided.start) == 1


def test_a_removed_model_is_drained() -> None:
    decided = decide(state([replica("r")], specs=[spec("other")]))
    assert [(entry.replica_id, entry.desired) for entry in decided.set_desired] == [("r", Desired.DRAIN)]


def test_demand_for_a_model_that_does_not_exist_is_nothing() -> None:
    assert decide(state(demand=[demand("ghost")])) == Plan()


def test_a_plan_that_was_carried_out_leaves_nothing_to_plan() -> None:
    before = state(demand=[demand()])
    decided = decide(before)
    after = replace(before, replicas={start.replica.id: start.replica for start in decided.start})
    assert decide(after) == Plan()


def test_the_write_says_the_same_as_the_plan() -> None:
    gone = replica("gone", observed=Observed.GONE)
    old = replica("old", spec(context_size=8), node_id=NodeId("n2"))
    write = decide(state([gone, old], demand=[demand()], nodes=[node(), node("n2")])).as_write()
    assert write.delete == ("gone",)
    assert write.set_desired == (("old", Desired.DRAIN),)
    assert [row.model for row in write.create] == [ModelName("m")]


def test_l9_what_breaks_after_it_was_ready_is_replaced_at_once_the_first_time_only() -> None:
    broke = replica(R, observed=Observed.GONE, error="was killed by SIGKILL", since=NOW)
    first = decide(state([broke], demand=[demand()]))
    assert len(first.start) == 1
    [mark] = first.set_load_failure
    assert mark.failure is not None
    assert (mark.failure.attempts, mark.failure.retry_at) == (0, NOW)
    again = decide(state([broke], demand=[demand()], failures={MODEL: mark.failure}))
    assert again.start == ()
    [mark] = again.set_load_failure
    assert mark.failure is not None
    assert mark.failure.retry_at == NOW + 10
    assert mark.failure.times_broken == 2


def test_l9_failures_are_forgiven_once_a_replica_has_lived_for_a_while() -> None:
    failure = LoadFailure("it broke", 0, NOW - 5)
    young = state([replica(R, since=NOW - 4)], failures={MODEL: failure})
    assert (decide(young).set_load_failure, decide(young).replan_at) == ((), NOW - 4 + STABLE_SECONDS)
    old = state([replica(R, since=NOW - STABLE_SECONDS)], failures={MODEL: replace(failure, retry_at=NOW - 20)})
    assert [mark.failure for mark in decide(old).set_load_failure] == [None]


def test_h14_a_stop_on_request_is_no_failure() -> None:
    assert (
        decide(state([replica(R, desired=Desired.STOP, observed=Observed.GONE, error="late words")])).set_load_failure
        == ()
    )
    assert decide(state([replica(R, observed=Observed.GONE)])).set_load_failure == ()
