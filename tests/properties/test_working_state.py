"""What the planner has counted once is what it would count now, whatever the plan has changed in between."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, Replica
from gateway.domain.ids import NodeId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Capacity, Requirement
from gateway.planner.feasibility import check_current, check_projected, memory_after, missing_resources
from gateway.planner.node_resources import settles_at
from gateway.planner.placement import pick_place
from gateway.planner.preemption import victims
from gateway.planner.working_state import WorkingState
from tests.fakes.fleet import demand, node, replica, spec, state

NOW = 1000.0
NODES = tuple(NodeId(name) for name in ("n1", "n2"))
TIMES = st.sampled_from([0.0, NOW - 20, NOW - 1])
MODELS = ("a", "b", "c")


@st.composite
def workings(draw: st.DrawFn) -> WorkingState:
    groups, floors = st.sampled_from([None, None, "big"]), st.integers(0, 1)
    specs = [spec(name, min_replicas=draw(floors), exclusive_group=draw(groups)) for name in MODELS]
    seen = state(
        [draw(rows(at, of, slot)) for of in specs for at in NODES for slot in range(draw(st.integers(0, 2)))],
        specs=specs,
        nodes=[node(name, capacity=draw(capacities()), max_replicas_per_model=3) for name in NODES],
        demand=[demand(name, since=draw(TIMES)) for name in draw(st.lists(st.sampled_from(MODELS), unique=True))],
        requirements={of.name: Requirement(ram_bytes=draw(st.integers(1, 5)), disk_bytes=2**30) for of in specs},
    )
    uses = st.sampled_from([Usage(1, 0.0, 0.0), Usage(0, 50.0, 0.0)])
    return WorkingState(seen, NOW, {row: draw(uses) for row in seen.replicas})


@st.composite
def rows(draw: st.DrawFn, at: NodeId, of: ModelSpec, slot: int) -> Replica:
    observed = st.sampled_from([Observed.READY, Observed.READY, Observed.LOADING, Observed.PLACED, Observed.GONE])
    return replica(f"{of.name}-{at}-{slot}", of, node_id=at, slot=slot, observed=draw(observed), since=draw(TIMES))


def capacities() -> st.SearchStrategy[Capacity]:
    disk = st.sampled_from([None, 3 * 2**30, 5 * 2**30])
    return st.builds(Capacity, ram_bytes=st.just(12), ram_free_bytes=st.integers(0, 12), disk_free_bytes=disk)


def change(data: st.DataObject, working: WorkingState, number: int) -> None:
    """As a plan does: a replica is to end, has gone, is to start, or a model gets what others leave."""
    kind = data.draw(st.sampled_from(["end", "drop", "start", "claim"]))
    of, at = (
        working.state.models[data.draw(st.sampled_from(list(working.state.models)))],
        data.draw(st.sampled_from(NODES)),
    )
    if kind == "claim":
        working.reserve(of, working.state.nodes[at])
    elif kind == "start":
        new = replica(f"new-{number}", of, node_id=at, slot=2 + number, observed=Observed.PLACED, since=NOW)
        working.put(new)
    elif working.replicas:
        row = working.replicas[data.draw(st.sampled_from(list(working.replicas)))]
        working.delete(row) if kind == "drop" else working.put(replace(row, desired=Desired.DRAIN))


def answers(working: WorkingState) -> list[object]:
    """All that placing a replica asks for."""
    found: list[object] = []
    for of in working.state.models.values():
        for at in working.state.nodes.values():
            now, soon = check_current(working, at, of), check_projected(working, at, of)
            found += [missing_resources(now), missing_resources(soon), memory_after(now), memory_after(soon)]
            found += [victims(soon), victims(soon, later=True), working.cached(settles_at, at)]
        found += [working.live(of), working.beyond_floor(of), pick_place(working, of)]
    return found


def anew(working: WorkingState) -> WorkingState:
    """One that has counted nothing yet."""
    seen: ClusterState = replace(working.state, replicas=working.replicas)
    return WorkingState(seen, working.now, working.usage, working.history, reservations=list(working.reservations))


@settings(deadline=None)
@given(workings(), st.data())
def test_what_was_counted_once_is_forgotten_with_whatever_changes_it(
    working: WorkingState, data: st.DataObject
) -> None:
    assert answers(working) == answers(anew(working))
    for number in range(data.draw(st.integers(1, 5))):
        change(data, working, number)
        assert answers(working) == answers(anew(working))


def test_a_replica_is_no_victim_any_more_once_its_model_has_only_that_one() -> None:
    """Although what has changed is on another node."""
    loaded, other = spec("a", min_replicas=1), spec("b")
    full = [node(at, capacity=Capacity(ram_bytes=5, ram_free_bytes=0)) for at in NODES]
    rows_of_a = [replica(f"a-{at}", loaded, node_id=at) for at in NODES]
    needs = {of.name: Requirement(ram_bytes=5) for of in (loaded, other)}
    working = WorkingState(state(rows_of_a, specs=[loaded, other], nodes=full, requirements=needs), NOW)
    assert victims(check_projected(working, full[0], other)) == (rows_of_a[0],)
    working.put(replace(rows_of_a[1], desired=Desired.DRAIN))
    assert victims(check_projected(working, full[0], other)) is None
