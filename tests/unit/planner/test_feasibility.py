"""Where the planner puts a replica by what it needs and what nodes have, and who has to make room for it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf

import pytest

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, Demand, Node, Replica
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Capacity, Gpu, Requirement
from gateway.planner.history import NO_HISTORY, PlanningHistory, record_released
from gateway.planner.node_resources import SETTLE_SECONDS
from gateway.planner.plan import Plan
from gateway.planner.preemption import MIN_RESIDENCE_SECONDS, RECHECK_SECONDS
from gateway.worker.artifacts.disk_space import Disk, plan_disk_space
from tests.fakes.fleet import MODEL, demand, node, replica, spec, state
from tests.fakes.planning import plan_for

NOW = 1000.0
GIB = 2**30
A, B = ModelName("a"), ModelName("b")
BUSY = Usage(1, 0.0, 0.0)


def box(name: str = "n1", *, free: int | None = 24, total: int | None = 24) -> Node:
    """A machine without a GPU, its memory in GiB."""
    memory = Capacity(ram_bytes=in_bytes(total), ram_free_bytes=in_bytes(free))
    return node(name, capacity=memory, max_replicas_per_model=4)


def gpu_box(*, free: int | None, total: int = 24) -> Node:
    """With main memory in abundance."""
    gpu = Gpu("nvidia", "G", "1", vram_bytes=total * GIB)
    return node(
        capacity=Capacity((gpu,), ram_bytes=999 * GIB, ram_free_bytes=999 * GIB), free_vram_bytes=in_bytes(free)
    )


def in_bytes(gibs: int | None) -> int | None:
    return None if gibs is None else gibs * GIB


def fleet(
    *rows: Replica,
    needs: Mapping[str, int | None],
    nodes: list[Node] | None = None,
    waiting: list[Demand] | None = None,
    of: Iterable[ModelSpec] = (),
) -> ClusterState:
    """Models that take so many GiB, of whatever memory the node has; demand for `m` unless said otherwise."""
    known = {name: spec(name) for name in needs} | {each.name: each for each in of}
    requirements = {ModelName(name): Requirement(in_bytes(need), in_bytes(need)) for name, need in needs.items()}
    return state(
        rows,
        specs=known.values(),
        nodes=nodes or [box()],
        demand=[demand()] if waiting is None else waiting,
        requirements=requirements,
    )


def loaded(of: str, *, on: str = "n1", since: float = 0.0, **changes: object) -> Replica:
    return replica(f"{of}1", spec(of), node_id=NodeId(on), since=since, **changes)


def decide(seen: ClusterState, usage: Mapping[str, Usage] | None = None, history: PlanningHistory = NO_HISTORY) -> Plan:
    used = {ReplicaId(who): use for who, use in (usage or {}).items()}
    return plan_for(seen, NOW, usage=used, history=history)


def places(decided: Plan) -> list[tuple[str, str]]:
    return [(entry.replica.model, entry.replica.node_id) for entry in decided.start]


def evicted(decided: Plan) -> list[str]:
    return [entry.replica_id for entry in decided.set_desired if entry.desired is Desired.DRAIN]


def why(decided: Plan) -> list[tuple[str, bool]]:
    return [(wait.because, wait.is_shortage) for wait in decided.pending]


def test_p3_a_node_with_too_little_memory_is_not_chosen_and_the_numbers_are_shown() -> None:
    assert places(decide(fleet(needs={MODEL: 8}, nodes=[box("n1", free=7), box("n2", free=8)]))) == [(MODEL, "n2")]
    decided = decide(fleet(needs={MODEL: 8}, nodes=[box(free=7)]))
    assert places(decided) == []
    reason = "no healthy node has room for it (name-n1: needs 8 GiB of memory, 7 GiB free)"
    assert why(decided) == [(reason, True)]


def test_p3_what_is_unknown_is_no_constraint_and_a_known_zero_is() -> None:
    assert len(decide(fleet(needs={MODEL: 8}, nodes=[box(free=None, total=None)])).start) == 1
    assert len(decide(fleet(needs={MODEL: None}, nodes=[box(free=1)])).start) == 1
    assert decide(fleet(needs={MODEL: None}, nodes=[box(free=0)])).start == ()
    assert len(decide(fleet(needs={MODEL: 0}, nodes=[box(free=0)])).start) == 1


def test_on_a_node_with_gpus_their_memory_counts_within_its_budget() -> None:
    assert decide(fleet(needs={MODEL: 8}, nodes=[gpu_box(free=7)])).start == ()
    assert len(decide(fleet(needs={MODEL: 8}, nodes=[gpu_box(free=8)])).start) == 1


@pytest.mark.parametrize("observed", sorted(COMING_UP))
def test_p3_a_load_reserves_what_it_needs_until_it_is_seen(observed: Observed) -> None:
    """For the whole load, however long it takes: nothing of it shows in what is free."""
    rows = [loaded(A, observed=observed)]
    assert places(decide(fleet(*rows, needs={A: 14, MODEL: 11}))) == []
    assert places(decide(fleet(*rows, needs={A: 14, MODEL: 10}))) == [(MODEL, "n1")]


def test_p3_what_has_just_become_ready_is_not_seen_yet_and_nobody_is_evicted_for_that() -> None:
    rows = [loaded(A, since=NOW - SETTLE_SECONDS + 1), loaded(B, since=0.0)]
    seen = fleet(*rows, needs={A: 10, B: 1, MODEL: 12}, nodes=[box(free=13)])
    decided = decide(seen)
    assert (places(decided), evicted(decided)) == ([], [])
    assert why(decided) == [("waiting for its room on name-n1", False)]
    assert decided.replan_at == NOW + 1
    later = plan_for(seen, NOW + 1)
    assert places(later) == [(MODEL, "n1")]


def test_p3_readings_that_hide_what_is_there_do_not_count_against_the_sum() -> None:
    """A worker that tells too much to be free does not make its memory larger."""
    assert places(decide(fleet(loaded(A), needs={A: 20, MODEL: 5}, nodes=[box(free=24)]), {"a1": BUSY})) == []


def test_p2_two_placements_of_one_plan_see_each_other() -> None:
    both = [demand(A), demand(B)]
    decided = decide(fleet(needs={A: 14, B: 14}, waiting=both))
    assert places(decided) == [(A, "n1")]
    decided = decide(fleet(needs={A: 14, B: 14}, waiting=both, nodes=[box("n1"), box("n2")]))
    assert sorted(places(decided)) == [(A, "n1"), (B, "n2")]


def test_who_has_waited_longest_is_placed_first() -> None:
    decided = decide(fleet(needs={A: 14, B: 14}, waiting=[demand(A, since=2), demand(B, since=1)]))
    assert places(decided) == [(B, "n1")]


def test_p1_the_artifact_has_to_fit_on_the_disk_beside_its_headroom() -> None:
    roomy = Capacity(disk_bytes=100 * GIB, disk_free_bytes=15 * GIB)
    needs = {MODEL: Requirement(disk_bytes=10 * GIB)}
    seen = state(nodes=[node(capacity=roomy)], demand=[demand()], requirements=needs)
    assert len(decide(seen).start) == 1
    full = node(capacity=replace(roomy, disk_free_bytes=15 * GIB - 1))
    decided = decide(replace(seen, nodes={full.id: full}))
    reason = "no healthy node has room for it (name-n1: needs 15 GiB of disk, 14.9 GiB free)"
    assert why(decided) == [(reason, True)]


@pytest.mark.parametrize(("free_gib", "fits"), [(80, False), (119, False), (120, True), (500, True)])
def test_p1_what_the_planner_puts_on_a_disk_its_worker_has_room_for(free_gib: int, *, fits: bool) -> None:
    """One rule for both: a large disk that is nearly full is not chosen and then refused, again and again."""
    disk = Disk(2000 * GIB, free_gib * GIB)
    at = node(capacity=Capacity(disk_bytes=disk.total_bytes, disk_free_bytes=disk.free_bytes))
    seen = state(nodes=[at], demand=[demand()], requirements={MODEL: Requirement(disk_bytes=20 * GIB)})
    assert bool(decide(seen).start) is fits
    worker = plan_disk_space(20 * GIB, (), disk, promised_bytes=0, cache_bytes_max=None)
    assert (worker.shortage is None) is fits


def test_p1_a_fetch_under_way_holds_its_part_of_the_disk_and_a_finished_one_needs_none() -> None:
    at = node(capacity=Capacity(disk_free_bytes=20 * GIB), max_replicas_per_model=2)
    needs = {MODEL: Requirement(disk_bytes=10 * GIB), A: Requirement(disk_bytes=10 * GIB)}
    parts = {"specs": [spec(), spec(A)], "nodes": [at], "demand": [demand()], "requirements": needs}
    assert decide(state([loaded(A, observed=Observed.FETCHING)], **parts)).start == ()  # type: ignore[arg-type]
    assert len(decide(state([loaded(A, observed=Observed.STARTING)], **parts)).start) == 1  # type: ignore[arg-type]


def test_the_scores_of_a_start_say_why_there() -> None:
    [start] = decide(fleet(needs={MODEL: 8}, nodes=[box("n1", free=10), box("n2", free=12)])).start
    assert start.replica.node_id == "n2"
    assert [(score.name, score.value) for score in start.scores] == [
        ("has a broken replica", 0.0),
        ("replicas of the model", 0.0),
        ("replicas", 0.0),
        ("free bytes after", -4.0 * GIB),
    ]


def test_p4_the_longest_unused_goes_and_the_newcomer_waits_until_it_is_gone() -> None:
    rows = [loaded(A), loaded(B)]
    seen = fleet(*rows, needs={A: 10, B: 10, MODEL: 10}, nodes=[box(free=4)])
    decided = decide(seen, {"a1": Usage(0, 50.0, 0.0), "b1": Usage(0, 20.0, 0.0)})
    assert [(entry.replica_id, entry.because) for entry in decided.set_desired] == [("a1", "makes room for 'm'")]
    assert (places(decided), why(decided)) == ([], [("evicting a on name-n1", False)])


def test_w11_nothing_more_is_evicted_while_the_victim_leaves() -> None:
    rows = [loaded(A, desired=Desired.DRAIN), loaded(B)]
    decided = decide(fleet(*rows, needs={A: 10, B: 10, MODEL: 10}, nodes=[box(free=4)]))
    assert (places(decided), evicted(decided)) == ([], [])
    assert why(decided) == [("evicting a on name-n1", False)]


def test_w11_the_room_counts_once_the_process_is_gone_although_the_reading_is_older() -> None:
    rows = [loaded(A, observed=Observed.GONE), loaded(B)]
    seen = fleet(*rows, needs={A: 10, B: 10, MODEL: 10}, nodes=[box(free=4)])
    assert places(decide(seen)) == [(MODEL, "n1")]


def test_released_memory_is_kept_until_the_node_reports_anew() -> None:
    gone = loaded(A, observed=Observed.GONE)
    seen = fleet(gone, needs={A: 10, MODEL: 10, B: 10}, nodes=[box(free=4)])
    history = record_released(NO_HISTORY, seen, [gone], NOW - 1)
    after = replace(seen, replicas={})
    assert places(decide(after, history=history)) == [(MODEL, "n1")]
    reread = box(free=5)
    assert places(decide(replace(after, nodes={reread.id: reread}), history=history)) == []
    assert places(plan_at(after, NOW + SETTLE_SECONDS, history)) == []


def plan_at(seen: ClusterState, now: float, history: PlanningHistory) -> Plan:
    return plan_for(seen, now, history=history)


def test_p4_an_innocent_is_not_evicted_for_a_reading_that_is_known_to_be_outdated() -> None:
    """Nothing is known of what was given back, so only the next reading can tell."""
    gone = loaded(A, observed=Observed.GONE)
    seen = fleet(gone, loaded(B), needs={A: None, B: 10, MODEL: 10}, nodes=[box(free=4)])
    decided = decide(seen)
    assert (places(decided), evicted(decided)) == ([], [])
    assert decided.replan_at == NOW + SETTLE_SECONDS


def test_p4_no_more_are_evicted_than_it_takes() -> None:
    """The least used is too small to matter, so it is spared."""
    rows = [loaded(A), loaded(B)]
    seen = fleet(*rows, needs={A: 2, B: 12, MODEL: 12}, nodes=[box(free=5)])
    decided = decide(seen, {"a1": Usage(0, 500.0, 0.0), "b1": Usage(0, 20.0, 0.0)})
    assert evicted(decided) == ["b1"]


def test_p4_nobody_is_evicted_where_it_would_not_help() -> None:
    decided = decide(fleet(loaded(A), needs={A: 10, MODEL: 20}, nodes=[box(free=4)]))
    assert evicted(decided) == []
    assert [short for _, short in why(decided)] == [True]


def test_r9_an_eviction_leaves_models_that_are_used_alone_and_looks_again_soon() -> None:
    seen = fleet(loaded(A), needs={A: 14, MODEL: 14}, nodes=[box(free=10)])
    decided = decide(seen, {"a1": BUSY})
    assert evicted(decided) == []
    reason = "no healthy node has room for it (name-n1: needs 14 GiB of memory, 10 GiB free; in use: a)"
    assert why(decided) == [(reason, True)]
    assert decided.replan_at == NOW + RECHECK_SECONDS


def test_a_lease_whose_call_has_not_begun_counts_as_use() -> None:
    seen = fleet(loaded(A), needs={A: 14, MODEL: 14}, nodes=[box(free=10)])
    assert evicted(decide(seen, {"a1": Usage(0, 0.0, 0.0)})) == []


def test_what_has_just_become_ready_stays_for_a_while() -> None:
    seen = fleet(loaded(A, since=NOW - 1), needs={A: 14, MODEL: 14}, nodes=[box(free=10)])
    decided = decide(seen)
    assert evicted(decided) == []
    assert decided.replan_at == NOW - 1 + MIN_RESIDENCE_SECONDS


def test_what_its_owner_wants_to_be_there_is_never_evicted() -> None:
    seen = fleet(loaded(A), needs={A: 14, MODEL: 14}, nodes=[box(free=10)], of=[spec(A, min_replicas=1)])
    assert evicted(decide(seen)) == []
    everywhere = fleet(loaded(A), needs={A: 14, MODEL: 14}, nodes=[box(free=10)], of=[spec(A, on_every_node=True)])
    assert evicted(decide(everywhere)) == []


def test_what_is_pinned_is_never_evicted_and_need_not_be_there() -> None:
    pinned = spec(A, pinned=True)
    seen = fleet(loaded(A), needs={A: 10, MODEL: 20}, nodes=[box(free=14)], of=[pinned])
    assert (places(decide(seen)), evicted(decide(seen))) == ([], [])
    assert [short for _, short in why(decide(seen))] == [True]
    assert places(decide(fleet(needs={A: 10}, waiting=[], of=[pinned]))) == []


def test_of_two_above_a_floor_of_one_only_one_is_evicted() -> None:
    two = spec(A, min_replicas=1, max_replicas=2)
    rows = [replica("a1", two), replica("a2", two, slot=1)]
    assert len(evicted(decide(fleet(*rows, needs={A: 8, MODEL: 12}, nodes=[box(free=8)], of=[two])))) == 1
    assert evicted(decide(fleet(*rows, needs={A: 8, MODEL: 20}, nodes=[box(free=8)], of=[two]))) == []


@pytest.mark.parametrize(("since", "goes"), [(5.0, True), (15.0, False), (10.0, False)])
def test_a_model_that_is_waited_for_gives_way_to_older_requests_only(since: float, goes: bool) -> None:
    waiting = [demand(MODEL, since=since), demand(A, since=10.0)]
    seen = fleet(loaded(A), needs={A: 14, MODEL: 14}, nodes=[box(free=10)], waiting=waiting)
    assert evicted(decide(seen)) == (["a1"] if goes else [])


@pytest.mark.parametrize("since_times", [(5.0, 15.0, 20.0), (20.0, 5.0, 15.0), (20.0, 15.0, 5.0)])
def test_of_several_gateways_demand_the_oldest_request_counts(since_times: tuple[float, ...]) -> None:
    """In whichever order they are read."""
    several = [replace(demand(MODEL, since=since), gateway_id=GatewayId(f"g{since}")) for since in since_times]
    waiting = [*several, demand(A, since=10.0)]
    seen = fleet(loaded(A), needs={A: 14, MODEL: 14}, nodes=[box(free=10)], waiting=waiting)
    assert evicted(decide(seen)) == ["a1"]


def test_a_floor_evicts_what_nobody_waits_for() -> None:
    floor = spec(min_replicas=1)
    seen = fleet(loaded(A), needs={A: 14, MODEL: 14}, nodes=[box(free=10)], waiting=[], of=[floor])
    assert evicted(decide(seen)) == ["a1"]
    assert evicted(decide(replace(seen, demand=(demand(A),)))) == []


def test_room_that_is_being_made_is_nobody_elses() -> None:
    """Else a large model would wait for ever while small ones take what is freed for it."""
    rows = [loaded(A, desired=Desired.DRAIN)]
    waiting = [demand(MODEL, since=1), demand(B, since=2)]
    seen = fleet(*rows, needs={A: 14, MODEL: 20, B: 6}, nodes=[box(free=10)], waiting=waiting)
    assert places(decide(seen)) == []
    assert places(decide(replace(seen, demand=(demand(B),)))) == [(B, "n1")]


def test_the_node_on_which_the_fewest_have_to_go_is_chosen() -> None:
    rows = [loaded(A), loaded(B), loaded("c", on="n2")]
    needs = {A: 7, B: 7, "c": 14, MODEL: 20}
    decided = decide(fleet(*rows, needs=needs, nodes=[box("n1", free=10), box("n2", free=10)]))
    assert evicted(decided) == ["c1"]


def test_growing_evicts_nobody() -> None:
    wide = spec(max_replicas=0)
    rows = [replica("m1", wide), loaded(A)]
    seen = fleet(*rows, needs={A: 10, MODEL: 10}, nodes=[box(free=4)], waiting=[], of=[wide])
    decided = decide(seen, {"m1": Usage(4, 0.0, 0.0)})
    assert (places(decided), evicted(decided)) == ([], [])
    assert decided.unsatisfiable == {}


GROUP = {"exclusive_group": "big"}


def test_r17_two_of_one_exclusive_group_go_to_different_nodes() -> None:
    pair = [spec(A, **GROUP), spec(B, **GROUP)]
    nodes = [box("n1"), box("n2")]
    decided = decide(fleet(needs={A: 1, B: 1}, nodes=nodes, waiting=[demand(A), demand(B)], of=pair))
    assert sorted(places(decided)) == [(A, "n1"), (B, "n2")]


def test_r17_on_the_only_node_the_idle_one_gives_way_and_the_used_one_does_not() -> None:
    pair = [spec(A, **GROUP), spec(**GROUP)]
    seen = fleet(loaded(A), needs={A: 1, MODEL: 1}, of=pair)
    assert evicted(decide(seen)) == ["a1"]
    decided = decide(seen, {"a1": BUSY})
    assert (places(decided), evicted(decided)) == ([], [])
    reason = "no healthy node has room for it (name-n1: 'a' of the exclusive group 'big' is there; in use: a)"
    assert why(decided) == [(reason, True)]


def test_r17_what_is_pinned_keeps_its_node_from_the_others_of_its_group() -> None:
    pair = [spec(A, pinned=True, **GROUP), spec(**GROUP)]
    decided = decide(fleet(loaded(A), needs={A: 1, MODEL: 1}, of=pair))
    assert (places(decided), evicted(decided)) == ([], [])
    assert [short for _, short in why(decided)] == [True]


def test_r17_not_even_while_the_other_one_leaves() -> None:
    pair = [spec(A, **GROUP), spec(**GROUP)]
    decided = decide(fleet(loaded(A, desired=Desired.STOP), needs={A: 1, MODEL: 1}, of=pair))
    assert (places(decided), why(decided)) == ([], [("evicting a on name-n1", False)])


def test_r17_models_that_become_exclusive_by_an_edit_part() -> None:
    pair = [spec(A, **GROUP), spec(**GROUP)]
    rows = [loaded(A, since=NOW - 20), loaded(MODEL, since=NOW - 10)]
    seen = fleet(*rows, needs={A: 1, MODEL: 1}, waiting=[], of=pair)
    assert evicted(decide(seen)) == ["m1"]
    assert evicted(decide(seen, {"m1": BUSY})) == ["a1"]
    pinned = fleet(*rows, needs={A: 1, MODEL: 1}, waiting=[], of=[spec(A, **GROUP), spec(pinned=True, **GROUP)])
    assert evicted(decide(pinned)) == ["a1"]


def test_p5_a_minimum_beyond_the_room_is_shown_and_nothing_moves() -> None:
    three = spec(min_replicas=3, max_replicas=3)
    rows = [replica("m1", three), replica("m2", three, slot=1)]
    decided = decide(fleet(*rows, needs={MODEL: 10}, nodes=[box(free=4)], waiting=[], of=[three]))
    assert not decided.as_write()
    reason = "no healthy node has room for it (name-n1: needs 10 GiB of memory, 4 GiB free)"
    assert decided.unsatisfiable == {MODEL: f"2 of 3 replicas: {reason}"}
    assert decided.replan_at is None


def test_p5_a_minimum_that_no_node_may_serve_is_shown() -> None:
    picky = spec(min_replicas=1, selector={"tier": "gpu"})
    decided = decide(fleet(needs={MODEL: 1}, waiting=[], of=[picky]))
    assert decided.unsatisfiable == {MODEL: "0 of 1 replicas: no healthy node matches its selector"}
    assert [short for _, short in why(decided)] == [False]


def test_used_never_and_used_long_ago_differ_by_their_age() -> None:
    rows = [loaded(A, since=NOW - 100), loaded(B, since=NOW - 50)]
    seen = fleet(*rows, needs={A: 10, B: 10, MODEL: 10}, nodes=[box(free=4)])
    assert evicted(decide(seen, {"a1": Usage(0, inf, 0.0)})) == ["a1"]


def test_r17_room_that_is_being_made_for_one_of_a_group_keeps_the_others_of_it_away() -> None:
    pair = [spec(A, **GROUP), spec(**GROUP)]
    waiting = [demand(A, since=1), demand(MODEL, since=2)]
    leaving = loaded(B, desired=Desired.DRAIN)
    decided = decide(fleet(leaving, needs={A: 20, MODEL: 1, B: 10}, nodes=[box(free=14)], of=pair, waiting=waiting))
    assert places(decided) == []


def test_who_has_to_be_there_comes_before_who_is_asked_for() -> None:
    floor = spec(min_replicas=1)
    decided = decide(fleet(needs={A: 14, MODEL: 14}, of=[floor], waiting=[demand(A)]))
    assert places(decided) == [(MODEL, "n1")]
