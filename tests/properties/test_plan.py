"""Safety and liveness of the planner on random states, and its convergence when plans are carried out."""

from dataclasses import replace
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from gateway.control.plan import Plan, plan
from gateway.domain.cluster import ClusterState, LoadFailure, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import FINAL, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from tests.fakes.fleet import demand, node, replica, spec, state

NOW = 1000.0
MODELS = ("m1", "m2")
NODES = ("n1", "n2", "n3")


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
            status=draw(st.sampled_from(NodeStatus)),
            max_replicas_per_model=draw(st.integers(1, 2)),
            labels=draw(st.sampled_from([{}, {"tier": "gpu"}])),
        )
        for name in NODES
    ]


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    known, places = draw(specs()), [(m, n, s) for m in MODELS for n in NODES for s in (0, 1)]
    rows = [
        replica(
            f"{model}-{at}-{slot}",
            spec(model, context_size=draw(st.sampled_from([None, 8]))),
            node_id=NodeId(at),
            slot=slot,
            desired=draw(st.sampled_from(Desired)),
            observed=draw(st.sampled_from(Observed)),
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


def decide(seen: ClusterState) -> Plan:
    numbers = count()
    return plan(seen, NOW, lambda: ReplicaId(f"new-{next(numbers)}"))


def counted(seen: ClusterState, of: ModelSpec) -> list[Replica]:
    return [
        row
        for row in seen.replicas.values()
        if row.model == of.name
        and row.revision == of.revision
        and row.desired is Desired.RUN
        and row.observed not in FINAL
    ]


@given(states())
def test_safety(before: ClusterState) -> None:
    decided = decide(before)
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
        assert not of.max_replicas or len(counted(after, of)) <= of.max_replicas, "more than max"
    assert all(start.because for start in decided.start)
    ended = {key for key, row in before.replicas.items() if row.observed in FINAL}
    assert {entry.replica_id for entry in decided.forget} == ended


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


@given(states())
def test_a_plan_carried_out_leaves_nothing_to_plan(before: ClusterState) -> None:
    after = apply(before, decide(before))
    assert not decide(after).as_write()


def test_the_registry_and_this_test_apply_alike() -> None:
    """A reminder that `apply` above is a model: a place and a forget of one slot in one write both happen."""
    gone = replica("r", observed=Observed.GONE)
    after = apply(state([gone], demand=[demand()]), decide(state([gone], demand=[demand()])))
    assert [row.id for row in after.replicas.values()] == ["new-0"]
