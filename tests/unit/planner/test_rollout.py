"""What becomes of the replicas of a model whose spec has changed, by `rollout` (A8, L19)."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, LoadFailure, NodeStatus, Replica
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.resources import Capacity, Requirement
from gateway.domain.routability import build_view, why_not_routable
from gateway.planner.plan import Plan
from tests.fakes.fleet import MODEL, node, replica, spec, state
from tests.fakes.planning import plan_for

NOW = 1000.0
OLD = spec(context_size=8, min_replicas=1)
SURGE = replace(OLD, context_size=16, rollout="surge")
REPLACE = replace(SURGE, rollout="replace")
ROOMY = node(max_replicas_per_model=4)


def old(name: str = "old", slot: int = 0, **changes: object) -> Replica:
    return replica(name, OLD, slot=slot, **changes)


def new(**changes: object) -> Replica:
    return replica("new", SURGE, slot=3, **changes)


def fleet(*rows: Replica, **parts: object) -> ClusterState:
    return state(rows, **{"specs": [SURGE], "nodes": [ROOMY]} | parts)  # type: ignore[arg-type]


def decide(seen: ClusterState, usage: Mapping[ReplicaId, Usage] | None = None) -> Plan:
    return plan_for(seen, NOW, usage=usage or {})


def ends(decided: Plan) -> list[tuple[str, Desired, str]]:
    return [(entry.replica_id, entry.desired, entry.because) for entry in decided.set_desired]


def routable(seen: ClusterState) -> list[str]:
    return [each.replica_id for each in build_view(seen).candidates.get(MODEL, ())]


def test_a8_replace_takes_no_request_to_the_old_revision_from_the_first_moment() -> None:
    seen = fleet(old(), specs=[REPLACE])
    assert routable(seen) == []
    decided = decide(seen)
    assert ends(decided) == [("old", Desired.DRAIN, "its model's spec has changed")]
    assert len(decided.start) == 1


def test_a8_surge_lets_the_old_one_serve_while_a_new_one_loads() -> None:
    seen = fleet(old())
    assert routable(seen) == ["old"]
    decided = decide(seen)
    assert ends(decided) == []
    assert [(start.replica.revision, start.because) for start in decided.start] == [
        (SURGE.revision, "its spec has changed")
    ]
    loading = fleet(old(), new(observed=Observed.LOADING))
    assert (decide(loading), routable(loading)) == (Plan(), ["old"])


def test_a8_surge_ends_with_the_first_new_one_that_is_ready() -> None:
    seen = fleet(old("a", 0), old("b", 1), new())
    assert routable(seen) == ["new"]
    assert {who for who, _, _ in ends(decide(seen))} == {"a", "b"}


@pytest.mark.parametrize("rollout", ["replace", "surge"])
def test_a8_a_late_load_of_an_old_revision_never_serves_beside_the_new_one(rollout: str) -> None:
    present = replace(SURGE, rollout=rollout)  # type: ignore[arg-type]
    assert routable(fleet(old(), new(), specs=[present])) == ["new"]
    assert routable(fleet(old(), specs=[present])) == (["old"] if rollout == "surge" else [])


@pytest.mark.parametrize("status", [status for status in NodeStatus if status is not NodeStatus.HEALTHY])
def test_a8_a_new_one_on_a_node_that_does_not_serve_ends_no_surge(status: NodeStatus) -> None:
    nodes = [node("n2", status=status), node("n1")]
    away = new(node_id=nodes[0].id)
    assert routable(fleet(old(), away, nodes=nodes)) == ["old"]


def test_why_an_old_replica_is_not_routable_says_so_under_either_rollout() -> None:
    assert why_not_routable(old(), ROOMY, SURGE) is None
    reason = "its model's spec has changed since it was loaded"
    assert why_not_routable(old(), ROOMY, SURGE, {MODEL}) == reason
    assert why_not_routable(old(), ROOMY, REPLACE) == reason


def test_an_old_load_that_no_worker_has_received_does_not_survive_the_change() -> None:
    """Its worker would be told the new spec, under the old revision."""
    assert [who for who, _, _ in ends(decide(fleet(old(observed=Observed.PLACED))))] == ["old"]


@pytest.mark.parametrize("observed", sorted(COMING_UP - {Observed.PLACED}))
def test_an_old_load_under_way_may_still_serve_first(observed: Observed) -> None:
    assert ends(decide(fleet(old(observed=observed)))) == []


def test_without_room_for_one_more_the_least_used_old_one_goes_first_and_alone() -> None:
    tight = node(max_replicas_per_model=2)
    rows = [old("a", 0), old("b", 1)]
    usage = {ReplicaId("a"): Usage(2, 0.0, 0.0), ReplicaId("b"): Usage(0, 60.0, 0.0)}
    decided = decide(fleet(*rows, nodes=[tight]), usage)
    assert ends(decided) == [("b", Desired.DRAIN, "makes room for its new revision")]
    leaving = replace(rows[1], desired=Desired.DRAIN)
    after = decide(fleet(rows[0], leaving, nodes=[tight]), usage)
    assert not after.as_write()
    [start] = decide(fleet(rows[0], nodes=[tight]), usage).start
    assert start.replica.slot == 1


def test_a_surge_evicts_no_other_model() -> None:
    other = replica("other", spec("other"))
    memory = node(capacity=Capacity(ram_bytes=100, ram_free_bytes=20), max_replicas_per_model=4)
    needs = {MODEL: Requirement(ram_bytes=40), other.model: Requirement(ram_bytes=40)}
    seen = fleet(old(), other, specs=[SURGE, spec("other")], nodes=[memory], requirements=needs)
    assert [who for who, _, _ in ends(decide(seen))] == ["old"]


def test_l9_a_new_revision_that_does_not_load_costs_no_old_replica() -> None:
    failures = {MODEL: LoadFailure("exit 3", 1, NOW + 5)}
    decided = decide(fleet(old(), nodes=[node()], failures=failures))
    assert not decided.as_write()
    assert decided.replan_at == NOW + 5


def test_a_surge_of_a_model_without_a_floor_is_not_given_up_as_unwanted() -> None:
    free = replace(SURGE, min_replicas=0)
    loading = replica("new", free, slot=3, observed=Observed.LOADING)
    assert decide(fleet(old(), loading, specs=[free])) == Plan()


def test_no_second_old_one_goes_while_the_first_still_leaves() -> None:
    """Also where the first alone does not make room enough."""
    memory = node(capacity=Capacity(ram_bytes=100, ram_free_bytes=0), max_replicas_per_model=4)
    rows = [old("a", 0, desired=Desired.DRAIN), old("b", 1)]
    seen = fleet(*rows, nodes=[memory], requirements={MODEL: Requirement(ram_bytes=60)})
    assert not decide(seen).as_write()
    assert [who for who, _, _ in ends(decide(replace(seen, replicas={rows[1].id: rows[1]})))] == ["b"]
