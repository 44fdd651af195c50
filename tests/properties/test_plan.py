"""Safety and liveness of the planner on random states, and its convergence when plans are carried out."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from math import inf
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, LoadFailure, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, FINAL, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Capacity, Requirement
from gateway.planner.node_resources import SETTLE_SECONDS
from gateway.planner.plan import Plan, reasons
from gateway.planner.planning_input import NO_USAGE, NOTHING_BROKEN, WatchdogLimits
from gateway.planner.preemption import MIN_RESIDENCE_SECONDS
from gateway.planner.reconcile import OFFLINE_SECONDS_MAX
from gateway.planner.watchdog import DRAINED_SECONDS
from gateway.planner.working_state import NEVER_USED
from tests.fakes.fleet import demand, node, replica, spec, state
from tests.fakes.planning import plan_for

NOW = 1000.0
MODELS = ("m1", "m2")
NODES = ("n1", "n2", "n3")
REMOVED_NODE = "n4"
LINKS = [status for status in NodeStatus if status is not NodeStatus.PENDING]
AMOUNTS = st.sampled_from([None, 0, 3, 6, 12])
"""Bytes that a node has; a model needs up to five."""
TIMES = st.sampled_from([0.0, NOW - OFFLINE_SECONDS_MAX, NOW - 100, NOW - 1, NOW])


@st.composite
def specs(draw: st.DrawFn) -> list[ModelSpec]:
    minimum = st.integers(0, 3)
    return [
        spec(
            name,
            min_replicas=(floor := draw(minimum)),
            max_replicas=draw(st.sampled_from([0, max(1, floor), max(1, floor) + 1])),
            context_size=draw(st.sampled_from([None, 8])),
            selector=draw(st.sampled_from([{}, {"tier": "gpu"}])),
            exclusive_group=draw(st.sampled_from([None, "big"])),
            pinned=draw(st.booleans()),
            on_every_node=draw(st.sampled_from([False, False, True])),
            rollout=draw(st.sampled_from(["replace", "surge"])),
        )
        for name in MODELS
    ]


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    return [
        node(
            name,
            condition=draw(st.sampled_from(LINKS)),
            approved=draw(st.sampled_from([True, True, False])),
            draining=draw(st.sampled_from([False, False, True])),
            since=draw(TIMES),
            max_replicas_per_model=draw(st.integers(1, 2)),
            labels=draw(st.sampled_from([{}, {"tier": "gpu"}])),
            capacity=Capacity(ram_bytes=draw(AMOUNTS), ram_free_bytes=draw(AMOUNTS)),
        )
        for name in NODES
    ]


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    known, places = draw(specs()), [(m, n, s) for m in MODELS for n in (*NODES, REMOVED_NODE) for s in (0, 1)]
    rows = [
        replica(
            f"{model}-{at}-{slot}",
            spec(model, context_size=draw(st.sampled_from([None, 8]))),
            node_id=NodeId(at),
            slot=slot,
            desired=draw(st.sampled_from(Desired)),
            observed=draw(st.sampled_from(Observed)),
            since=draw(TIMES),
        )
        for model, at, slot in draw(st.lists(st.sampled_from(places), unique=True))
    ]
    waiting = draw(st.lists(st.sampled_from(MODELS), unique=True))
    failures = {
        ModelName(model): LoadFailure("x", 1, draw(st.sampled_from([NOW - 1, NOW, NOW + 5])))
        for model in draw(st.lists(st.sampled_from(MODELS), unique=True))
    }
    needs = draw(st.dictionaries(st.sampled_from(MODELS), st.integers(0, 5)))
    return state(
        rows,
        specs=known,
        nodes=draw(nodes()),
        demand=[demand(model, since=draw(TIMES)) for model in waiting],
        failures=failures,
        requirements={ModelName(model): Requirement(ram_bytes=need) for model, need in needs.items()},
        unloads=draw(st.dictionaries(st.sampled_from(list(map(ModelName, MODELS))), TIMES)),
    )


def apply(before: ClusterState, decided: Plan) -> ClusterState:
    """As a registry would."""
    write = decided.as_write()
    rows = {key: row for key, row in before.replicas.items() if key not in write.delete}
    rows |= {key: replace(rows[key], desired=desired) for key, desired in write.set_desired}
    rows |= {row.id: row for row in write.create}
    failures = {**before.failures, **dict(write.set_failures)}
    kept = {model: failure for model, failure in failures.items() if failure is not None}
    return replace(before, replicas=rows, failures=kept)


@st.composite
def broken_states(draw: st.DrawFn) -> tuple[ClusterState, Mapping[ReplicaId, str]]:
    """With replicas that are of no use, and one that is not there any more."""
    seen = draw(states())
    chosen = draw(st.lists(st.sampled_from([*seen.replicas, ReplicaId("long gone")]), unique=True))
    return seen, dict.fromkeys(chosen, "it is broken")


@st.composite
def crowded_states(draw: st.DrawFn) -> ClusterState:
    """Healthy nodes of which all is known, and models that hardly fit beside each other: most tell something."""
    groups, waiting = st.sampled_from([None, None, "big"]), draw(st.sampled_from([MODELS, MODELS[1:], ()]))
    known = [
        spec(name, min_replicas=draw(st.sampled_from([0, 0, 1])), max_replicas=3, exclusive_group=draw(groups))
        for name in MODELS
    ]
    memory = Capacity(ram_bytes=6, ram_free_bytes=draw(st.integers(0, 6)))
    rows = [
        replica(
            f"{of.name}-{at}-{slot}",
            of,
            node_id=NodeId(at),
            slot=slot,
            desired=draw(st.sampled_from([Desired.RUN, Desired.RUN, Desired.RUN, Desired.DRAIN])),
            observed=draw(st.sampled_from([Observed.READY, Observed.READY, Observed.LOADING])),
            since=draw(TIMES),
        )
        for of in known
        for at in NODES[:2]
        for slot in range(draw(st.sampled_from([0, 1, 2] if of is known[0] else [0, 0, 0, 1])))
    ]
    return state(
        rows,
        specs=known,
        nodes=[node(name, capacity=memory, max_replicas_per_model=3) for name in NODES[:2]],
        demand=[demand(model, since=draw(TIMES)) for model in waiting],
        requirements={of.name: Requirement(ram_bytes=draw(st.integers(1, 5))) for of in known},
    )


@st.composite
def used_states(draw: st.DrawFn) -> tuple[ClusterState, Mapping[ReplicaId, Usage]]:
    """With requests on some of the replicas."""
    seen = draw(st.one_of(states(), crowded_states(), crowded_states()))
    uses = st.sampled_from([Usage(1, 0.0, 0.0), Usage(4, 0.0, 0.0), Usage(0, 0.0, 0.0), Usage(0, 50.0, 0.0)])
    return seen, draw(st.dictionaries(st.sampled_from([*seen.replicas, ReplicaId("long gone")]), uses))


NUMBERS = count()
unhurried = settings(deadline=None)
LIMITS = WatchdogLimits(scale_down_seconds=30)


def decide(
    seen: ClusterState,
    broken: Mapping[ReplicaId, str] = NOTHING_BROKEN,
    usage: Mapping[ReplicaId, Usage] = NO_USAGE,
    now: float = NOW,
) -> Plan:
    return plan_for(seen, now, lambda: ReplicaId(f"new-{next(NUMBERS)}"), broken=broken, usage=usage, limits=LIMITS)


LATER: Final = ("makes room for", "nobody has waited", "its last request has ended")
"""Why a second plan may want something that the first one did not."""


def settle(
    seen: ClusterState, broken: Mapping[ReplicaId, str] = NOTHING_BROKEN, usage: Mapping[ReplicaId, Usage] = NO_USAGE
) -> ClusterState:
    """The state in which nothing more is planned. One plan is enough, but for room that has to be made, for loads that
    are of no use beside nothing that serves, and for what has drained, which ends only after its drain was written."""
    seen = apply(seen, decide(seen, broken, usage))
    for _ in range(len(seen.replicas) + 1):
        decided = decide(seen, broken, usage)
        if not decided.as_write():
            return seen
        assert all(entry.because.startswith(LATER) for entry in decided.set_desired), decided
        assert not any((decided.start, decided.delete, decided.set_load_failure)), decided
        seen = apply(seen, decided)
    raise AssertionError("it does not come to rest")


def most(seen: ClusterState, of: ModelSpec) -> float:
    """How many replicas of the model there may be."""
    if of.on_every_node:
        return sum(
            at.status is NodeStatus.HEALTHY and of.selector.items() <= at.labels.items() for at in seen.nodes.values()
        )
    return of.max_replicas or inf


def superseded(seen: ClusterState, of: ModelSpec) -> list[Replica]:
    return [
        row
        for row in seen.replicas.values()
        if row.model == of.name
        and row.revision != of.revision
        and row.desired is Desired.RUN
        and status_of(seen, row) is NodeStatus.HEALTHY
    ]


def status_of(seen: ClusterState, row: Replica) -> NodeStatus | None:
    at = seen.nodes.get(row.node_id)
    return None if at is None else at.status


def given_up(seen: ClusterState, row: Replica) -> bool:
    at = seen.nodes.get(row.node_id)
    return at is None or (at.condition is NodeStatus.OFFLINE and at.since <= NOW - OFFLINE_SECONDS_MAX)


def counted(seen: ClusterState, of: ModelSpec) -> list[Replica]:
    """On healthy nodes only."""
    return [
        row
        for row in seen.replicas.values()
        if row.model == of.name
        and row.revision == of.revision
        and row.desired is Desired.RUN
        and row.observed not in FINAL
        and status_of(seen, row) is NodeStatus.HEALTHY
    ]


@unhurried
@given(broken_states())
def test_safety(given_state: tuple[ClusterState, Mapping[ReplicaId, str]]) -> None:
    before, broken = given_state
    decided = decide(before, broken)
    after = apply(before, decided)
    slots = [(row.node_id, row.model, row.slot) for row in after.replicas.values()]
    assert len(slots) == len(set(slots)), "two rows for one slot"
    for start in decided.start:
        row, of, at = start.replica, after.models[start.replica.model], after.nodes[start.replica.node_id]
        assert at.status is NodeStatus.HEALTHY
        assert all(at.labels.get(key) == value for key, value in of.selector.items())
        assert row.slot < at.max_replicas_per_model
        assert row.revision == of.revision
        failure = after.failures.get(of.name)
        assert failure is None or failure.retry_at <= NOW, "started inside its backoff"
    for of in after.models.values():
        assert len(counted(after, of)) <= most(after, of), "more than max"
    assert all(because for _verb, _subject, because in reasons(decided))
    over = {key for key, row in before.replicas.items() if row.observed in FINAL or given_up(before, row)}
    assert {entry.replica_id for entry in decided.delete} == over


@unhurried
@given(used_states())
def test_p3_what_is_started_fits_with_everything_that_is_reserved(
    given_state: tuple[ClusterState, Mapping[ReplicaId, Usage]],
) -> None:
    before, usage = given_state
    after = apply(before, decide(before, usage=usage))
    new = [row for row in after.replicas.values() if row.id not in before.replicas]
    for at in {row.node_id: after.nodes[row.node_id] for row in new}.values():

        def need(rows: Iterable[Replica]) -> int:
            known = (after.requirements.get(row.model) for row in rows if row.node_id == at.id)  # noqa: B023
            return sum(each.ram_bytes or 0 for each in known if each is not None)

        unseen = [row for row in after.replicas.values() if row.observed in COMING_UP or is_fresh(row)]
        given_back = [row for row in before.replicas.values() if row.observed is Observed.GONE]
        total, free = at.capacity.ram_bytes, at.capacity.ram_free_bytes
        assert total is None or need(after.replicas.values()) <= total or not need(new)
        assert free is None or need(unseen) <= free + need(given_back) or not need(new)


def is_fresh(row: Replica) -> bool:
    return row.observed is Observed.READY and row.since > NOW - SETTLE_SECONDS


@unhurried
@given(used_states())
def test_r17_exclusive_groups_hold(given_state: tuple[ClusterState, Mapping[ReplicaId, Usage]]) -> None:
    """Nothing is started beside a rival, and rivals do not both stay."""
    before, usage = given_state
    after = apply(before, decide(before, usage=usage))
    for row in after.replicas.values():
        group = after.models[row.model].exclusive_group
        if group is None or status_of(after, row) is not NodeStatus.HEALTHY or row.desired is not Desired.RUN:
            continue
        others_of_group = [
            other
            for other in after.replicas.values()
            if other.node_id == row.node_id
            and other.model != row.model
            and after.models[other.model].exclusive_group == group
        ]
        assert row.id in before.replicas or not others_of_group
        assert not any(other.desired is Desired.RUN for other in others_of_group)


@unhurried
@given(used_states())
def test_p4_who_is_evicted_may_be(given_state: tuple[ClusterState, Mapping[ReplicaId, Usage]]) -> None:
    """Never one with requests, none that has just come up, none of a floor; and none goes that would not be missed."""
    before, usage = given_state
    decided = decide(before, usage=usage)
    after = apply(before, decided)
    evicted = [entry for entry in decided.set_desired if entry.because.startswith("makes room for '")]
    for entry in evicted:
        row = before.replicas[entry.replica_id]
        of = after.models[row.model]
        assert usage.get(row.id, NEVER_USED).idle_seconds > 0
        assert row.since <= NOW - MIN_RESIDENCE_SECONDS
        assert not of.on_every_node
        assert len(counted(after, of)) >= min(of.min_replicas, most(after, of))
        for_whom = ModelName(entry.because.split("'")[1])
        assert since(before, for_whom) < since(before, of.name) or since(before, of.name) == inf


def since(seen: ClusterState, model: ModelName) -> float:
    return min((each.since for each in seen.demand if each.model == model), default=inf)


@unhurried
@given(used_states())
def test_scaling_goes_by_one_and_never_below_the_floor(
    given_state: tuple[ClusterState, Mapping[ReplicaId, Usage]],
) -> None:
    before, usage = given_state
    decided = decide(before, usage=usage)
    after = apply(before, decided)
    for of in before.models.values():
        idle = [
            entry
            for entry in decided.set_desired
            if entry.because.startswith("no request for") and before.replicas[entry.replica_id].model == of.name
        ]
        assert len(idle) <= 1
        assert not idle or len(counted(after, of)) >= of.min_replicas
        grown = [entry for entry in decided.start if entry.replica.model == of.name and "slots are" in entry.because]
        assert len(grown) <= 1


@unhurried
@given(broken_states())
def test_what_is_wanted_of_replicas(given_state: tuple[ClusterState, Mapping[ReplicaId, str]]) -> None:
    """Nothing that is to end is wanted again; what waits for its node to come back stays; no other place keeps any."""
    before, broken = given_state
    after = apply(before, decide(before, broken))
    for key, row in after.replicas.items():
        old, of, status = before.replicas.get(key), after.models[row.model], status_of(after, row)
        if old is None:
            continue
        assert list(Desired).index(row.desired) >= list(Desired).index(old.desired)
        if key in broken:
            assert row.desired is Desired.STOP
        elif row.observed is Observed.DRAINING and NOW - row.since >= DRAINED_SECONDS:
            assert row.desired is Desired.STOP  # drained long ago, as far as anybody has told
        elif status in (NodeStatus.UNHEALTHY, NodeStatus.OFFLINE) and row.revision == of.revision:
            assert row.desired is old.desired or row.since <= before.unloads.get(of.name, -inf)
        elif status in (NodeStatus.DRAINING, NodeStatus.PENDING):
            assert row.desired is not Desired.RUN


@unhurried
@given(states())
def test_w13_time_alone_ends_the_wait_for_a_node(before: ClusterState) -> None:
    waiting = [
        at.since + OFFLINE_SECONDS_MAX
        for at in before.nodes.values()
        if at.condition is NodeStatus.OFFLINE
        and any(row.node_id == at.id and row.observed not in FINAL for row in before.replicas.values())
        and at.since > NOW - OFFLINE_SECONDS_MAX
    ]
    again_at = decide(before).replan_at
    assert not waiting or (again_at is not None and again_at <= min(waiting))


@unhurried
@given(states())
def test_liveness(before: ClusterState) -> None:
    """What is wanted and feasible is started; what is not says why."""
    decided = decide(before)
    after = apply(before, decided)
    wanted: float
    for of in after.models.values():
        if superseded(after, of):
            wanted = 1
        elif of.on_every_node:
            wanted = most(after, of)
        else:
            wanted = min(most(after, of), max(of.min_replicas, any(each.model == of.name for each in after.demand)))
        if len(counted(after, of)) < wanted:
            assert any(wait.model == of.name for wait in decided.pending)


@unhurried
@given(broken_states())
def test_a_plan_carried_out_leaves_nothing_to_plan(
    given_state: tuple[ClusterState, Mapping[ReplicaId, str]],
) -> None:
    before, broken = given_state
    settle(before, broken)


@unhurried
@given(used_states())
def test_so_does_one_that_knows_what_is_used(given_state: tuple[ClusterState, Mapping[ReplicaId, Usage]]) -> None:
    before, usage = given_state
    settle(before, usage=usage)


@unhurried
@given(states(), st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(LINKS)), max_size=6))
def test_nodes_that_come_and_go_leave_no_oscillation(seen: ClusterState, turns: list[tuple[str, NodeStatus]]) -> None:
    """After each turn one plan is enough, and never is there more than the maximum on healthy nodes."""
    for name, link in turns:
        turned = {**seen.nodes, NodeId(name): replace(seen.nodes[NodeId(name)], condition=link, since=NOW)}
        seen = replace(seen, nodes=turned)
        seen = settle(seen)
        for of in seen.models.values():
            assert len(counted(seen, of)) <= most(seen, of)


def test_the_registry_and_this_test_apply_alike() -> None:
    """A reminder that `apply` above is a model: a place and a forget of one slot in one write both happen."""
    gone = replica("r", observed=Observed.GONE)
    after = apply(state([gone], demand=[demand()]), decide(state([gone], demand=[demand()])))
    [row] = after.replicas.values()
    assert row.id.startswith("new-")
