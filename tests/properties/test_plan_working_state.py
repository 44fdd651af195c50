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
from gateway.planner.feasibility import FitCheck
from gateway.planner.placement import Placer
from gateway.planner.planning_input import PlanningInput
from gateway.planner.preemption import Preemption
from gateway.planner.working_state import WorkingState
from tests.fakes.fleet import demand, node, replica, spec, state

NOW = 1000.0
NODES = tuple(NodeId(name) for name in ("n1", "n2"))
TIMES = st.sampled_from([0.0, NOW - 20, NOW - 1])
MODELS = ("a", "b", "c")


@st.composite
def working_states(draw: st.DrawFn) -> WorkingState:
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
    usage = {row: draw(uses) for row in seen.replicas}
    return WorkingState(PlanningInput(snapshot=seen, now=NOW, usage=usage))


@st.composite
def rows(draw: st.DrawFn, at: NodeId, of: ModelSpec, slot: int) -> Replica:
    observed = st.sampled_from([Observed.READY, Observed.READY, Observed.LOADING, Observed.PLACED, Observed.GONE])
    return replica(f"{of.name}-{at}-{slot}", of, node_id=at, slot=slot, observed=draw(observed), since=draw(TIMES))


def capacities() -> st.SearchStrategy[Capacity]:
    disk = st.sampled_from([None, 3 * 2**30, 5 * 2**30])
    return st.builds(Capacity, ram_bytes=st.just(12), ram_free_bytes=st.integers(0, 12), disk_free_bytes=disk)


def change(data: st.DataObject, working: WorkingState, number: int) -> None:
    """As a plan does: a replica is to end, has gone, is to start, or a model gets what others leave."""
    kind = data.draw(st.sampled_from(["end", "remove", "start", "reserve"]))
    of, at = (
        working.snapshot.models[data.draw(st.sampled_from(list(working.snapshot.models)))],
        data.draw(st.sampled_from(NODES)),
    )
    if kind == "reserve":
        working.reserve(of.name, working.snapshot.nodes[at])
    elif kind == "start":
        new = replica(f"new-{number}", of, node_id=at, slot=2 + number, observed=Observed.PLACED, since=NOW)
        working.put(new)
    elif working.replicas:
        row = working.replicas[data.draw(st.sampled_from(list(working.replicas)))]
        working.remove(row) if kind == "remove" else working.put(replace(row, desired=Desired.DRAIN))


class Planner:
    """What keeps what it has counted while a plan grows."""

    def __init__(self, working: WorkingState) -> None:
        self.working = working
        self.placer = Placer(working)
        self.preemption = Preemption(working)

    def answers(self) -> list[object]:
        """All that placing a replica asks for."""
        working, found = self.working, list[object]()
        for of in working.snapshot.models.values():
            for at in working.snapshot.nodes.values():
                now, soon = FitCheck.current(working, at, of), FitCheck.projected(working, at, of)
                found += [now.missing(), soon.missing(), now.free_bytes_after, soon.free_bytes_after]
                found += [self.preemption.victims(soon), self.preemption.victims(soon, later=True)]
                found += [working.node_info(at).settles_at]
            found += [working.live_replicas(of), working.replicas_above_minimum(of), self.placer.place(of)]
        return found


def anew(working: WorkingState) -> Planner:
    """One that has counted nothing yet."""
    seen: ClusterState = replace(working.snapshot, replicas=working.replicas)
    fresh = WorkingState(replace(working.inputs, snapshot=seen, history=working.history))
    for node_id, models in working.reservations.items():
        for model in models:
            fresh.reserve(model, seen.nodes[node_id])
    return Planner(fresh)


@settings(deadline=None)
@given(working_states(), st.data())
def test_what_was_counted_once_is_forgotten_with_whatever_changes_it(
    working: WorkingState, data: st.DataObject
) -> None:
    planner = Planner(working)
    assert planner.answers() == anew(working).answers()
    for number in range(data.draw(st.integers(1, 5))):
        change(data, working, number)
        assert planner.answers() == anew(working).answers()


def test_a_replica_is_no_victim_any_more_once_its_model_has_only_that_one() -> None:
    """Although what has changed is on another node."""
    loaded, other = spec("a", min_replicas=1), spec("b")
    full = [node(at, capacity=Capacity(ram_bytes=5, ram_free_bytes=0)) for at in NODES]
    rows_of_a = [replica(f"a-{at}", loaded, node_id=at) for at in NODES]
    needs = {of.name: Requirement(ram_bytes=5) for of in (loaded, other)}
    snapshot = state(rows_of_a, specs=[loaded, other], nodes=full, requirements=needs)
    working = WorkingState(PlanningInput(snapshot=snapshot, now=NOW))
    preemption = Preemption(working)
    assert preemption.victims(FitCheck.projected(working, full[0], other)) == (rows_of_a[0],)
    working.put(replace(rows_of_a[1], desired=Desired.DRAIN))
    assert preemption.victims(FitCheck.projected(working, full[0], other)) is None
