"""A view that is built from the one before is the view that is built from the state alone."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain import routability
from gateway.domain.cluster import ClusterState, Node, NodeStatus, Replica
from gateway.domain.ids import Address, ModelName, NodeId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import ROWS_AT_ONCE, FleetView, ViewBuilder, build_view
from tests.amounts import examples_to_run
from tests.fakes.fleet import node, replica, spec, state

MODELS, NODES, REPLICAS = ["a", "b", "c"], ["n1", "n2"], [f"r{number}" for number in range(8)]


def _spec(name: str, rng: Random) -> ModelSpec:
    selector = rng.choice([{}, {}, {"gpu": "yes"}])
    size, backend = rng.choice([8, 16]), rng.choice(["llama-cpp", "foreign"])
    rollout = rng.choice(["replace", "surge"])
    return spec(name, context_size=size, rollout=rollout, selector=selector, backend=backend)


def _node(name: str, rng: Random) -> Node:
    status = rng.choice([NodeStatus.HEALTHY, NodeStatus.HEALTHY, NodeStatus.UNHEALTHY])
    return node(name, status, labels=rng.choice([{}, {"gpu": "yes"}]), free_vram_bytes=rng.choice([None, 1]))


def _replica(replica_id: str, rng: Random) -> Replica:
    return replica(
        replica_id,
        _spec(rng.choice(MODELS), rng),
        node_id=NodeId(rng.choice(NODES)),
        desired=rng.choice([Desired.RUN, Desired.RUN, Desired.DRAIN]),
        observed=rng.choice([Observed.READY, Observed.READY, Observed.LOADING]),
        address=rng.choice([Address("a:1"), Address("a:1"), None]),
    )


def _next(before: ClusterState, rng: Random) -> ClusterState:
    models, nodes, replicas = dict(before.models), dict(before.nodes), dict(before.replicas)
    for _ in range(rng.randrange(3)):
        changed, removed = _replica(rng.choice(REPLICAS), rng), rng.choice(REPLICAS)
        replicas[changed.id] = changed
        if rng.random() < 0.3:
            replicas.pop(replica(removed).id, None)
    if rng.random() < 0.2:
        name = ModelName(rng.choice(MODELS))
        models[name] = _spec(name, rng)
    if rng.random() < 0.2:
        models.pop(ModelName(rng.choice(MODELS)), None)
    if rng.random() < 0.2:
        changed_node = _node(rng.choice(NODES), rng)
        nodes[changed_node.id] = changed_node
    if rng.random() < 0.1:
        nodes.pop(NodeId(rng.choice(NODES)), None)
    order = rng.sample(sorted(replicas), len(replicas)) if rng.random() < 0.3 else sorted(replicas)
    return replace(before, models=models, nodes=nodes, replicas={each: replicas[each] for each in order})


def built(builder: ViewBuilder, present: ClusterState) -> FleetView:
    parts = builder.build(present)
    while True:
        try:
            next(parts)
        except StopIteration as end:
            view: FleetView = end.value
            return view


@given(st.integers(0, 100_000))
@settings(max_examples=examples_to_run(100), deadline=None)
def test_each_view_is_that_of_its_state(seed: int) -> None:
    rng, builder = Random(seed), ViewBuilder()
    present = state(
        [_replica(each, rng) for each in REPLICAS],
        specs=[_spec(each, rng) for each in MODELS],
        nodes=[_node(each, rng) for each in NODES],
    )
    for _ in range(12):
        assert built(builder, present) == build_view(present)
        present = _next(present, rng)


def test_what_has_not_changed_is_taken_over() -> None:
    """The index of a model whose candidates are the same object has nothing to do."""
    other, builder = spec("other"), ViewBuilder()
    first = state([replica("r1"), replica("r2"), replica("o", other)], specs=[spec(), other])
    changed = replica("r2", observed=Observed.LOADING)
    before = built(builder, first)
    after = built(builder, replace(first, replicas={**first.replicas, changed.id: changed}))
    assert after.candidates[other.name] is before.candidates[other.name]
    assert after.candidates[ModelName("m")] == before.candidates[ModelName("m")][:1]
    assert after.candidates[ModelName("m")][0] is before.candidates[ModelName("m")][0]


def test_a_large_view_is_built_in_parts_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at, routable = 0, routability._routable

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal looked_at
        for each in routable(*arguments):
            looked_at += 1
            yield each

    monkeypatch.setattr(routability, "_routable", counted)
    of, in_parts = spec(), []
    for _ in ViewBuilder().build(state([replica(f"r{number:04}", of) for number in range(1000)], specs=[of])):
        in_parts.append(looked_at)
        looked_at = 0
    assert sum(in_parts) + looked_at == 1000
    assert max(*in_parts, looked_at) == ROWS_AT_ONCE


def test_each_view_is_that_of_its_state_however_many_change_at_once() -> None:
    of, builder, names = spec(), ViewBuilder(), [f"r{number:04}" for number in range(1000)]
    present = state([replica(each, of) for each in names], specs=[of])
    built(builder, present)
    loading = {each.id: each for each in (replica(each, of, observed=Observed.LOADING) for each in names[::3])}
    moved = {each.id: each for each in (replica(each, of, address=Address("b:1")) for each in names[1::3])}
    present = replace(present, replicas={**present.replicas, **loading, **moved})
    assert built(builder, present) == build_view(present)
