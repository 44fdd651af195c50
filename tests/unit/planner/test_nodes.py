"""What the planner does about nodes that drain, fall silent, come back or do not."""

from dataclasses import replace

import pytest

from gateway.domain.cluster import ClusterState, Node, NodeStatus
from gateway.domain.ids import NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.planner.builder import backoff_seconds
from gateway.planner.plan import Plan
from gateway.planner.reconcile import OFFLINE_SECONDS_MAX
from tests.fakes.fleet import MODEL, demand, node, replica, spec, state
from tests.fakes.planning import plan_for

NOW = 10_000.0
FLOOR = spec(min_replicas=1)
A, B = NodeId("n1"), NodeId("n2")
R = ReplicaId("r")
SILENT = [NodeStatus.UNHEALTHY, NodeStatus.OFFLINE]


def decide(seen: ClusterState, broken: dict[ReplicaId, str] | None = None) -> Plan:
    return plan_for(seen, NOW, broken=broken or {})


def fleet(first: Node, **changes: object) -> ClusterState:
    """A floor of one, kept by a replica on `first`, and a second node with room."""
    return state([replica(R, FLOOR, node_id=first.id, **changes)], specs=[FLOOR], nodes=[first, node(B)])


def wanted(decided: Plan) -> list[tuple[str, Desired, str]]:
    return [(entry.replica_id, entry.desired, entry.because) for entry in decided.set_desired]


def places(decided: Plan) -> list[NodeId]:
    return [entry.replica.node_id for entry in decided.start]


@pytest.mark.parametrize(
    ("first", "because"),
    [
        (node(A, draining=True), "its node drains"),
        (node(A, condition=NodeStatus.DRAINING), "its node drains"),
        (node(A, approved=False), "its node is not approved"),
    ],
    ids=["an admin drains it", "its worker leaves", "not approved"],
)
def test_r13_a_node_that_takes_nothing_is_drained_and_another_one_takes_over_at_once(first: Node, because: str) -> None:
    decided = decide(fleet(first))
    assert wanted(decided) == [(R, Desired.DRAIN, because)]
    assert places(decided) == [B]
    assert decided.delete == ()


def test_r11_a_node_that_the_selector_excludes_now_is_drained() -> None:
    picky = replace(FLOOR, selector={"tier": "gpu"})
    nodes = [node(A), node(B, labels={"tier": "gpu"})]
    decided = decide(state([replica(R, picky, node_id=A)], specs=[picky], nodes=nodes))
    assert wanted(decided) == [(R, Desired.DRAIN, "its node does not match the model's selector")]
    assert places(decided) == [B]


@pytest.mark.parametrize("link", SILENT)
def test_h12_what_runs_on_a_silent_node_is_left_alone_and_does_not_count(link: NodeStatus) -> None:
    decided = decide(fleet(node(A, condition=link, since=NOW)))
    assert decided.set_desired == ()
    assert decided.delete == ()
    assert places(decided) == [B]


@pytest.mark.parametrize("observed", sorted(COMING_UP))
def test_l3_a_load_on_a_silent_node_is_taken_over_by_another_one(observed: Observed) -> None:
    assert places(decide(fleet(node(A, condition=NodeStatus.UNHEALTHY), observed=observed))) == [B]


def test_demand_is_met_on_another_node_while_the_node_is_silent() -> None:
    seen = state([replica(R)], nodes=[node(A, condition=NodeStatus.UNHEALTHY), node(B)], demand=[demand()])
    assert places(decide(seen)) == [B]


def test_w13_an_offline_node_is_waited_for_a_quarter_of_an_hour() -> None:
    since = NOW - OFFLINE_SECONDS_MAX + 1
    decided = decide(fleet(node(A, condition=NodeStatus.OFFLINE, since=since)))
    assert decided.delete == ()
    assert decided.replan_at == NOW + 1


def test_w13_then_its_replicas_are_forgotten() -> None:
    decided = decide(fleet(node(A, condition=NodeStatus.OFFLINE, since=NOW - OFFLINE_SECONDS_MAX)))
    [entry] = decided.delete
    assert (entry.replica_id, entry.because) == (R, "its node has been offline for 15 minutes")
    assert decided.set_load_failure == ()


def test_w13_an_unhealthy_node_is_waited_for_however_long_it_is() -> None:
    decided = decide(fleet(node(A, condition=NodeStatus.UNHEALTHY, since=0.0)))
    assert (decided.delete, decided.replan_at) == ((), None)


def test_w13_replicas_of_a_node_that_was_removed_are_forgotten() -> None:
    seen = state([replica(R, FLOOR, node_id=NodeId("removed"))], specs=[FLOOR])
    decided = decide(seen)
    assert [(entry.replica_id, entry.because) for entry in decided.delete] == [(R, "its node does not exist any more")]
    assert places(decided) == [A]


def back(maximum: int, **changes: object) -> ClusterState:
    """`r` is on a node that is back; `substitute` was started for it meanwhile."""
    of = spec(min_replicas=1, max_replicas=maximum)
    substitute = replace(replica("substitute", of, node_id=B, since=NOW - 10), **changes)  # type: ignore[arg-type]
    return state([replica(R, of, node_id=A, since=NOW - 900), substitute], specs=[of], nodes=[node(A), node(B)])


def test_when_a_node_is_back_the_youngest_above_the_maximum_drains() -> None:
    decided = decide(back(1))
    assert wanted(decided) == [("substitute", Desired.DRAIN, "more than max_replicas")]
    assert decided.start == ()


def test_what_does_not_serve_yet_drains_before_what_does() -> None:
    decided = decide(back(1, observed=Observed.FETCHING, since=NOW - 1000))
    assert [who for who, _, _ in wanted(decided)] == ["substitute"]


@pytest.mark.parametrize("maximum", [0, 2])
def test_more_than_the_minimum_is_left_alone(maximum: int) -> None:
    assert decide(back(maximum)) == Plan()


def test_replicas_on_silent_nodes_are_not_too_much() -> None:
    seen = back(1)
    silent = {**seen.nodes, A: node(A, condition=NodeStatus.UNHEALTHY)}
    assert decide(replace(seen, nodes=silent)) == Plan()


@pytest.mark.parametrize("observed", sorted(COMING_UP))
def test_l9_what_breaks_before_it_was_ready_is_a_failed_load(observed: Observed) -> None:
    decided = decide(fleet(node(A), observed=observed), {R: "nothing listens"})
    assert wanted(decided) == [(R, Desired.STOP, "nothing listens")]
    [mark] = decided.set_load_failure
    assert mark.failure is not None
    assert (mark.model, mark.failure.cause) == (MODEL, "nothing listens")
    assert mark.failure.retry_at == NOW + backoff_seconds(1)
    assert (decided.start, decided.replan_at) == ((), mark.failure.retry_at)


@pytest.mark.parametrize("changes", [{}, {"desired": Desired.DRAIN, "observed": Observed.LOADING}])
def test_what_breaks_later_or_was_not_wanted_any_more_is_none(changes: dict[str, object]) -> None:
    assert decide(fleet(node(A), **changes), {R: "nothing listens"}).set_load_failure == ()


@pytest.mark.parametrize("observed", sorted(COMING_UP))
def test_l3_a_load_that_is_lost_with_its_worker_is_none_and_another_node_has_it_at_once(observed: Observed) -> None:
    decided = plan_for(fleet(node(A), observed=observed), NOW, broken={R: "nothing listens"}, lost=frozenset({R}))
    assert wanted(decided) == [(R, Desired.STOP, "nothing listens")]
    assert places(decided) == [B]
    assert decided.set_load_failure == ()


def test_the_substitute_of_a_broken_one_goes_to_another_node_if_there_is_one() -> None:
    """The whole node may have died, and is healthy for as long as it may still come back."""
    roomy = [node(A, max_replicas_per_model=2), node(B)]
    other = [replica("x", spec("other"), node_id=B), replica("y", spec("another"), node_id=B)]
    seen = state([replica(R, FLOOR, node_id=A), *other], specs=[FLOOR, spec("other"), spec("another")], nodes=roomy)
    assert places(decide(seen, {R: "nothing listens"})) == [B]
    assert places(decide(replace(seen, nodes={A: roomy[0]}), {R: "nothing listens"})) == [A]
