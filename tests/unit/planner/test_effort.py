"""What a plan costs: it is made on the event loop that serves requests, so a full fleet must not make it dear.

Calls are counted, not seconds. Full is the worst: every model wants one replica more, so every node is asked for every
model, twice, and then what would have to leave it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState
from gateway.domain.ids import NodeId
from gateway.domain.resources import Capacity, Requirement
from gateway.planner.plan import Plan
from tests.fakes.fleet import demand, node, replica, spec, state
from tests.fakes.planning import plan_for

NOW = 1e6
NEED_BYTES = 10**10
CALLS_PER_QUESTION_MAX = 150
"""Of Python functions, for one model and one node. When all was counted anew for each it took 700 to 2700."""


@dataclass(frozen=True)
class Fleet:
    models: int
    nodes: int
    rows_per_node: int

    def state(self, **changes: object) -> ClusterState:
        """Each model waits for one more replica than there is memory for."""
        specs = [spec(f"m{index}", max_replicas=9, **changes) for index in range(self.models)]
        rows = [
            replica(f"r{index}", specs[index % self.models], node_id=NodeId(f"n{index % self.nodes}"), slot=index)
            for index in range(self.nodes * self.rows_per_node)
        ]
        memory = Capacity(ram_bytes=self.rows_per_node * NEED_BYTES, ram_free_bytes=10**6)
        return state(
            rows,
            specs=specs,
            nodes=[node(f"n{index}", max_replicas_per_model=10**6, capacity=memory) for index in range(self.nodes)],
            demand=[demand(each.name, since=NOW - 100 - index) for index, each in enumerate(specs)],
            requirements={each.name: Requirement(ram_bytes=NEED_BYTES) for each in specs},
        )


def busy(seen: ClusterState) -> Plan:
    return plan_for(seen, NOW, usage={row.id: Usage(row.parallel, 0.0, 1.0) for row in seen.replicas.values()})


def calls_of(work: Callable[[], object]) -> int:
    calls = 0

    def note(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("floor", [0, 1, 2, 5], ids=lambda floor: f"min_replicas={floor}")
def test_a_full_and_busy_fleet_is_counted_once_and_not_for_every_model(floor: int) -> None:
    fleet = Fleet(models=30, nodes=6, rows_per_node=10)
    seen = fleet.state(min_replicas=floor)
    assert len(busy(seen).pending) == fleet.models
    assert calls_of(lambda: busy(seen)) <= CALLS_PER_QUESTION_MAX * fleet.models * fleet.nodes


def test_more_replicas_on_a_node_hardly_make_a_question_dearer() -> None:
    few, many = (Fleet(models=40, nodes=4, rows_per_node=rows).state() for rows in (10, 40))
    assert calls_of(lambda: busy(many)) <= 2 * calls_of(lambda: busy(few))


def test_nor_does_a_fleet_that_evicts_count_more_than_what_it_changes() -> None:
    """Nobody is busy, so models swap places."""
    fleet = Fleet(models=40, nodes=4, rows_per_node=5)
    seen = fleet.state()
    decided = plan_for(seen, NOW)
    assert decided.set_desired
    assert calls_of(lambda: plan_for(seen, NOW)) <= CALLS_PER_QUESTION_MAX * fleet.models * fleet.nodes
