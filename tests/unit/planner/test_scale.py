"""How the planner grows a model, shrinks it, keeps one on every node and gives up what nobody wants."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, LoadFailure, NodeStatus, Replica
from gateway.domain.ids import NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.planner.history import NO_HISTORY, PlanningHistory, record_demand
from gateway.planner.plan import Plan
from gateway.planner.planner import UNLOAD_PAUSE_SECONDS
from gateway.planner.planning_input import WatchdogLimits
from gateway.planner.scale import ABANDON_AFTER_SECONDS, SCALE_UP_AFTER_SECONDS
from tests.fakes.fleet import MODEL, demand, node, replica, spec, state
from tests.fakes.planning import plan_for

NOW = 1000.0
WIDE = spec(max_replicas=3)
FULL = Usage(4, 0.0, 0.0)
LIMITS = WatchdogLimits(scale_down_seconds=300)


def fleet(*rows: Replica, of: ModelSpec = WIDE, waiting_since: float | None = None, **parts: object) -> ClusterState:
    """On one node with many slots."""
    wanted = [] if waiting_since is None else [demand(since=waiting_since)]
    return state(rows, **{"specs": [of], "nodes": [node(max_replicas_per_model=9)], "demand": wanted} | parts)  # type: ignore[arg-type]


def several(count: int, of: ModelSpec = WIDE, **changes: object) -> list[Replica]:
    return [replica(f"r{slot}", of, slot=slot, **changes) for slot in range(count)]


def decide(seen: ClusterState, usage: Mapping[str, Usage] | None = None, limits: WatchdogLimits = LIMITS) -> Plan:
    used = {ReplicaId(who): use for who, use in (usage or {}).items()}
    return plan_for(seen, NOW, usage=used, limits=limits)


def ends(decided: Plan) -> list[tuple[str, Desired]]:
    return [(entry.replica_id, entry.desired) for entry in decided.set_desired]


def test_l15_when_all_are_full_one_more_is_started() -> None:
    row = replica("r0", WIDE, since=NOW - 1)
    [start] = decide(fleet(row), {"r0": FULL}).start
    assert start.because == "all 4 slots are taken"
    assert decide(fleet(row), {"r0": Usage(3, 0.0, 0.0)}).start == ()


def test_p10_none_is_started_while_one_is_coming_up() -> None:
    rows = [replica("r0", WIDE), replica("r1", WIDE, slot=1, observed=Observed.LOADING)]
    assert decide(fleet(*rows, waiting_since=0.0), {"r0": FULL}).start == ()


def test_requests_that_wait_although_it_is_loaded_ask_for_one_more() -> None:
    row = replica("r0", WIDE, since=NOW - 100)
    assert len(decide(fleet(row, waiting_since=NOW - SCALE_UP_AFTER_SECONDS)).start) == 1
    early = decide(fleet(row, waiting_since=NOW - SCALE_UP_AFTER_SECONDS / 2))
    assert (early.start, early.replan_at) == ((), NOW + SCALE_UP_AFTER_SECONDS / 2)


def test_p10_the_newest_has_a_second_to_take_what_waits() -> None:
    """One burst asks for one: what it asked for has to have come before more is asked for."""
    rows = [replica("r0", WIDE, since=0.0), replica("r1", WIDE, slot=1, since=NOW - 0.5)]
    assert decide(fleet(*rows, waiting_since=0.0), {"r0": FULL}).start == ()


@pytest.mark.parametrize(("maximum", "starts"), [(1, 0), (2, 1), (0, 1)])
def test_it_grows_up_to_its_maximum_and_without_one_as_far_as_there_is_room(maximum: int, starts: int) -> None:
    of = spec(max_replicas=maximum)
    assert len(decide(fleet(replica("r0", of), of=of), {"r0": FULL}).start) == starts


def test_l9_it_does_not_grow_while_its_loads_fail() -> None:
    failures = {MODEL: LoadFailure("exit 3", 1, NOW + 5)}
    seen = fleet(replica("r0", WIDE), waiting_since=0.0, failures=failures)
    assert decide(seen, {"r0": FULL}).start == ()


def test_of_several_idle_ones_the_longest_idle_goes_and_only_one_at_a_time() -> None:
    usage = {"r0": Usage(0, 400.0, 0.0), "r1": Usage(0, 500.0, 0.0), "r2": Usage(0, 10.0, 0.0)}
    first = decide(fleet(*several(3)), usage)
    assert ends(first) == [("r1", Desired.DRAIN)]
    r0, r1, r2 = several(3)
    assert ends(decide(fleet(r0, replace(r1, desired=Desired.DRAIN), r2), usage)) == []
    assert ends(decide(fleet(r0, r2), usage)) == [("r0", Desired.DRAIN)]


def test_without_a_floor_the_last_idle_one_goes_too() -> None:
    assert ends(decide(fleet(*several(1)), {"r0": Usage(0, 300.0, 0.0)})) == [("r0", Desired.DRAIN)]


PINNED = spec(max_replicas=3, pinned=True)


def test_what_is_pinned_never_goes_because_it_is_idle() -> None:
    limits = WatchdogLimits(idle_seconds=100, scale_down_seconds=300)
    usage = {f"r{slot}": Usage(0, 900.0, 0.0) for slot in range(2)}
    decided = decide(fleet(*several(2, PINNED), of=PINNED), usage, limits)
    assert (ends(decided), decided.replan_at) == ([], None)


def test_what_is_pinned_still_ends_above_its_maximum_and_when_it_is_stuck() -> None:
    narrow = spec(max_replicas=1, pinned=True)
    assert len(ends(decide(fleet(*several(2, narrow), of=narrow)))) == 1
    stuck = decide(fleet(*several(1, PINNED), of=PINNED), {"r0": Usage(1, 0.0, 60.0)}, WatchdogLimits(busy_seconds=60))
    assert ends(stuck) == [("r0", Desired.STOP)]


def test_a_load_of_what_is_pinned_goes_on_although_nobody_waits_any_more() -> None:
    loading = replica("r", PINNED, observed=Observed.LOADING, since=NOW - 900)
    assert ends(plan_for(fleet(loading, of=PINNED), NOW, history=PlanningHistory({MODEL: 0.0}))) == []


def test_nothing_goes_while_requests_wait_for_the_model() -> None:
    assert ends(decide(fleet(*several(2), waiting_since=NOW))) == []


@pytest.mark.parametrize(
    "limits", [WatchdogLimits(idle_seconds=100, scale_down_seconds=300), WatchdogLimits(scale_down_seconds=100)]
)
def test_the_stricter_of_the_two_limits_counts(limits: WatchdogLimits) -> None:
    decided = decide(fleet(*several(1)), {"r0": Usage(0, 99.0, 0.0)}, limits)
    assert (ends(decided), decided.replan_at) == ([], NOW + 1)
    assert ends(decide(fleet(*several(1)), {"r0": Usage(0, 100.0, 0.0)}, limits)) == [("r0", Desired.DRAIN)]


EVERYWHERE = spec(on_every_node=True)


def test_all_means_one_on_each_node_that_the_selector_allows() -> None:
    picky = spec(on_every_node=True, selector={"tier": "gpu"})
    nodes = [node("n1", labels={"tier": "gpu"}), node("n2"), node("n3", labels={"tier": "gpu"})]
    decided = decide(state([replica("r", picky)], specs=[picky], nodes=nodes))
    assert [start.replica.node_id for start in decided.start] == ["n3"]


def test_all_counts_neither_against_the_maximum_nor_as_idle() -> None:
    rows = [replica("r1", EVERYWHERE), replica("r2", EVERYWHERE, node_id=NodeId("n2"))]
    assert decide(state(rows, specs=[EVERYWHERE], nodes=[node("n1"), node("n2")])) == Plan()


def test_all_is_one_on_each_node_and_no_second_one() -> None:
    rows = [replica("old", EVERYWHERE, slot=0, since=1.0), replica("young", EVERYWHERE, slot=1, since=2.0)]
    assert ends(decide(fleet(*rows, of=EVERYWHERE))) == [("young", Desired.DRAIN)]


def test_p5_all_on_nodes_of_which_one_has_no_room() -> None:
    nodes = [node("n1", max_replicas_per_model=0), node("n2"), node("n3", condition=NodeStatus.UNHEALTHY)]
    decided = decide(state(specs=[EVERYWHERE], nodes=nodes))
    assert [start.replica.node_id for start in decided.start] == ["n2"]
    [reason] = decided.unsatisfiable.values()
    assert "name-n1: 0 of 0 slots taken" in reason


@pytest.mark.parametrize("observed", sorted(COMING_UP))
def test_a_load_that_nobody_waits_for_any_more_is_given_up(observed: Observed) -> None:
    seen = fleet(replica("r", WIDE, observed=observed, since=NOW - 900))
    asked = PlanningHistory({MODEL: NOW - ABANDON_AFTER_SECONDS})
    decided = plan_for(seen, NOW, history=asked)
    assert [(*entry,) for entry in ends(decided)] == [("r", Desired.STOP)]
    assert decided.set_desired[0].because == "nobody has waited for it for 30 s"
    assert decided.start == ()


def test_l12_not_before_its_time_and_not_what_is_wanted() -> None:
    loading = replica("r", WIDE, observed=Observed.LOADING, since=NOW - 900)
    recently = PlanningHistory({MODEL: NOW - ABANDON_AFTER_SECONDS + 1})
    decided = plan_for(fleet(loading), NOW, history=recently)
    assert (ends(decided), decided.replan_at) == ([], NOW + 1)
    long_ago = PlanningHistory({MODEL: 0.0})
    assert ends(plan_for(fleet(loading, waiting_since=0.0), NOW, history=long_ago)) == []
    floor = spec(min_replicas=1)
    kept = fleet(replica("r", floor, observed=Observed.LOADING), of=floor)
    assert ends(plan_for(kept, NOW, history=long_ago)) == []


def test_demand_is_kept_in_the_history_and_a_new_leader_takes_every_load_as_wanted() -> None:
    loading = fleet(replica("r", observed=Observed.LOADING))
    taken_over = record_demand(NO_HISTORY, loading, 10.0)
    assert record_demand(taken_over, loading, 20.0).last_demand_at == {MODEL: 10.0}
    asked = record_demand(taken_over, fleet(waiting_since=1.0), 20.0)
    assert asked.last_demand_at == {MODEL: 20.0}
    ended = record_demand(asked, loading, 30.0)
    assert (ended.last_demand_at, record_demand(ended, loading, 40.0).last_demand_at) == ({MODEL: 30.0}, {MODEL: 30.0})
    assert record_demand(taken_over, state(specs=[]), 20.0).last_demand_at == {}


@pytest.mark.parametrize("observed", [Observed.READY, Observed.LOADING])
def test_what_is_older_than_an_unload_is_drained_and_what_is_younger_stays(observed: Observed) -> None:
    rows = [replica("old", WIDE, since=500.0, observed=observed), replica("new", WIDE, slot=1, since=500.1)]
    decided = decide(fleet(*rows, unloads={MODEL: 500.0}), limits=WatchdogLimits())
    assert [(entry.replica_id, entry.desired, entry.because) for entry in decided.set_desired] == [
        ("old", Desired.DRAIN, "it was unloaded")
    ]


def test_an_unload_in_this_very_moment_meets_no_replica_that_is_placed_in_it() -> None:
    floor = spec(min_replicas=1)
    seen = fleet(of=floor, unloads={MODEL: NOW})
    held = decide(seen)
    assert (held.start, held.replan_at) == ((), NOW + UNLOAD_PAUSE_SECONDS)
    assert len(plan_for(seen, NOW + UNLOAD_PAUSE_SECONDS).start) == 1


def test_the_idle_one_beside_which_all_others_are_full_stays() -> None:
    """It would come back at once, and for ever so."""
    usage = {"r0": FULL, "r1": Usage(0, 900.0, 0.0)}
    assert ends(decide(fleet(*several(2)), usage)) == []
    assert ends(decide(fleet(*several(2)), usage | {"r0": Usage(3, 0.0, 0.0)})) == [("r1", Desired.DRAIN)]
