"""A view that is built from the one before is the view that is built from the state alone."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.cluster import ClusterState, Node, NodeStatus, Replica
from gateway.domain.ids import Address, ModelName, NodeId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import ViewBuilder, build_view
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
        assert builder.build(present) == build_view(present)
        present = _next(present, rng)


def test_what_has_not_changed_is_taken_over() -> None:
    """The index of a model whose candidates are the same object has nothing to do."""
    other, builder = spec("other"), ViewBuilder()
    first = state([replica("r1"), replica("r2"), replica("o", other)], specs=[spec(), other])
    changed = replica("r2", observed=Observed.LOADING)
    before = builder.build(first)
    after = builder.build(replace(first, replicas={**first.replicas, changed.id: changed}))
    assert after.candidates[other.name] is before.candidates[other.name]
    assert after.candidates[ModelName("m")] == before.candidates[ModelName("m")][:1]
    assert after.candidates[ModelName("m")][0] is before.candidates[ModelName("m")][0]
