"""Safety and liveness of the planner on random states, and its convergence when plans are carried out."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from gateway.control.plan import NONE_BROKEN, Plan, plan, reasons
from gateway.control.retire import DRAINED_SECONDS, FORGET_AFTER_SECONDS
from gateway.domain.cluster import ClusterState, LoadFailure, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import FINAL, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from tests.fakes.fleet import demand, node, replica, spec, state

NOW = 1000.0
MODELS = ("m1", "m2")
NODES = ("n1", "n2", "n3")
REMOVED_NODE = "n4"
LINKS = [status for status in NodeStatus if status is not NodeStatus.PENDING]
TIMES = st.sampled_from([0.0, NOW - FORGET_AFTER_SECONDS, NOW - 100, NOW - 1, NOW])


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
        )
        for name in MODELS
    ]


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    return [
        node(
            name,
            link=draw(st.sampled_from(LINKS)),
            approved=draw(st.sampled_from([True, True, False])),
            draining=draw(st.sampled_from([False, False, True])),
            since=draw(TIMES),
            max_replicas_per_model=draw(st.integers(1, 2)),
            labels=draw(st.sampled_from([{}, {"tier": "gpu"}])),
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
    return state(rows, specs=known, nodes=draw(nodes()), demand=map(demand, waiting), failures=failures)


def apply(before: ClusterState, decided: Plan) -> ClusterState:
    """As a registry would."""
    write = decided.as_write()
    rows = {key: row for key, row in before.replicas.items() if key not in write.forget}
    rows |= {key: replace(rows[key], desired=desired) for key, desired in write.desire}
    rows |= {row.id: row for row in write.place}
    failures = {**before.failures, **dict(write.failures)}
    kept = {model: failure for model, failure in failures.items() if failure is not None}
    return replace(before, replicas=rows, failures=kept)


@st.composite
def broken_states(draw: st.DrawFn) -> tuple[ClusterState, Mapping[ReplicaId, str]]:
    """With replicas that are of no use, and one that is not there any more."""
    seen = draw(states())
    chosen = draw(st.lists(st.sampled_from([*seen.replicas, ReplicaId("long gone")]), unique=True))
    return seen, dict.fromkeys(chosen, "it is broken")


NUMBERS = count()


def decide(seen: ClusterState, broken: Mapping[ReplicaId, str] = NONE_BROKEN) -> Plan:
    return plan(seen, NOW, lambda: ReplicaId(f"new-{next(NUMBERS)}"), broken)


def status_of(seen: ClusterState, row: Replica) -> NodeStatus | None:
    at = seen.nodes.get(row.node_id)
    return None if at is None else at.status


def given_up(seen: ClusterState, row: Replica) -> bool:
    at = seen.nodes.get(row.node_id)
    return at is None or (at.link is NodeStatus.OFFLINE and at.since <= NOW - FORGET_AFTER_SECONDS)


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
        assert not of.max_replicas or len(counted(after, of)) <= of.max_replicas, "more than max"
    assert all(because for _verb, _subject, because in reasons(decided))
    over = {key for key, row in before.replicas.items() if row.observed in FINAL or given_up(before, row)}
    assert {entry.replica_id for entry in decided.forget} == over


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
            assert row.desired is old.desired
        elif status in (NodeStatus.DRAINING, NodeStatus.PENDING):
            assert row.desired is not Desired.RUN


@given(states())
def test_w13_time_alone_ends_the_wait_for_a_node(before: ClusterState) -> None:
    waiting = [
        at.since + FORGET_AFTER_SECONDS
        for at in before.nodes.values()
        if at.link is NodeStatus.OFFLINE
        and any(row.node_id == at.id and row.observed not in FINAL for row in before.replicas.values())
        and at.since > NOW - FORGET_AFTER_SECONDS
    ]
    again_at = decide(before).again_at
    assert not waiting or (again_at is not None and again_at <= min(waiting))


@given(states())
def test_liveness(before: ClusterState) -> None:
    """What is wanted and feasible is started; what is not says why."""
    decided = decide(before)
    after = apply(before, decided)
    for of in after.models.values():
        floor = max(of.min_replicas, 1 if any(each.model == of.name for each in after.demand) else 0)
        wanted = min(floor, of.max_replicas) if of.max_replicas else floor
        if len(counted(after, of)) < wanted:
            assert any(wait.model == of.name for wait in decided.wait)


@given(broken_states())
def test_a_plan_carried_out_leaves_nothing_to_plan(
    given_state: tuple[ClusterState, Mapping[ReplicaId, str]],
) -> None:
    before, broken = given_state
    after = apply(before, decide(before, broken))
    assert not decide(after, broken).as_write()


@given(states(), st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(LINKS)), max_size=6))
def test_nodes_that_come_and_go_leave_no_oscillation(seen: ClusterState, turns: list[tuple[str, NodeStatus]]) -> None:
    """After each turn one plan is enough, and never is there more than the maximum on healthy nodes."""
    for name, link in turns:
        turned = {**seen.nodes, NodeId(name): replace(seen.nodes[NodeId(name)], link=link, since=NOW)}
        seen = replace(seen, nodes=turned)
        seen = apply(seen, decide(seen))
        assert not decide(seen).as_write()
        for of in seen.models.values():
            assert not of.max_replicas or len(counted(seen, of)) <= of.max_replicas


def test_the_registry_and_this_test_apply_alike() -> None:
    """A reminder that `apply` above is a model: a place and a forget of one slot in one write both happen."""
    gone = replica("r", observed=Observed.GONE)
    after = apply(state([gone], demand=[demand()]), decide(state([gone], demand=[demand()])))
    [row] = after.replicas.values()
    assert row.id.startswith("new-")
