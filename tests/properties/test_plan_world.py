"""The planner over time: a small fleet that does what it says, and requests that come as they like."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.ids import ModelName, NodeId
from gateway.domain.model_spec import ModelSpec
from gateway.planner.node_resources import SETTLE_SECONDS
from gateway.planner.planning_input import WatchdogLimits
from gateway.planner.preemption import MIN_RESIDENCE_SECONDS
from tests.amounts import examples_to_run
from tests.fakes.fleet import spec
from tests.fakes.planned_world import PlannedWorld

MEMORY = 12
A, B, C = ModelName("a"), ModelName("b"), ModelName("c")
N1, N2 = NodeId("n1"), NodeId("n2")
TURN_SECONDS = int(MIN_RESIDENCE_SECONDS + SETTLE_SECONDS) + 10
"""For one model to be loaded, to serve, and to make room for the next one."""


@st.composite
def worlds(draw: st.DrawFn, *, floors: bool = False) -> PlannedWorld:
    """Each model fits on a node; all together may not."""
    needs = {model: draw(st.integers(1, MEMORY)) for model in (A, B, C)}
    of = tuple(
        spec(
            model,
            parallel=draw(st.integers(1, 2)),
            min_replicas=draw(st.integers(0, 2)) if floors else 0,
            max_replicas=draw(st.sampled_from([0, 2, 3])),
            exclusive_group=draw(st.sampled_from([None, "big"])),
        )
        for model in needs
    )
    nodes = draw(st.sampled_from([(N1,), (N1, N2)]))
    limits = WatchdogLimits(scale_down_seconds=draw(st.sampled_from([5.0, 60.0])))
    return PlannedWorld(of, needs, dict.fromkeys(nodes, MEMORY), limits, lag=draw(st.integers(0, 5)))


ARRIVALS = st.lists(st.tuples(st.integers(0, 20), st.sampled_from([A, B, C]), st.integers(1, 5)), max_size=8)


def check(world: PlannedWorld) -> None:
    for node_id, memory in world.memory.items():
        assert world.used(node_id) <= memory, "more loaded than there is room for"
        there = {row.model for row in world.processes() if row.node_id == node_id}
        grouped = [of for of in world.specs if of.name in there and of.exclusive_group]
        assert len(grouped) <= 1, "two of one exclusive group"
    for of in world.specs:
        assert not of.max_replicas or running(world, of) <= of.max_replicas


def running(world: PlannedWorld, of: ModelSpec) -> int:
    return sum(row.model == of.name and row.desired == "run" for row in world.rows.values())


@settings(deadline=None, max_examples=examples_to_run(40))
@given(worlds(), ARRIVALS)
def test_liveness_every_request_for_what_fits_is_served_in_bounded_time(
    world: PlannedWorld, arrivals: list[tuple[int, ModelName, int]]
) -> None:
    for second in range(21 + TURN_SECONDS * (len(arrivals) + 1)):
        for at, model, seconds in arrivals:
            if at == second:
                world.ask(model, seconds)
        world.tick()
        check(world)
        if second > 20 and not world.requests:
            break
    assert len(world.served) == len(arrivals)


@settings(deadline=None, max_examples=examples_to_run(40))
@given(worlds(floors=True), st.lists(st.sampled_from([A, B, C]), max_size=3, unique=True))
def test_p5_with_fixed_demand_nothing_moves_after_a_while(world: PlannedWorld, asked: list[ModelName]) -> None:
    """Whatever can't be had is not tried again and again."""
    for model in asked:
        world.ask(model, seconds=10_000)
        world.ask(model, seconds=10_000)
        world.ask(model, seconds=10_000)
    for _ in range(200):
        world.tick()
        check(world)
    moved = [decided for decided in world.plans[-100:] if decided.as_write()]
    assert moved == []


@settings(deadline=None, max_examples=examples_to_run(40))
@given(worlds(floors=True), ARRIVALS)
def test_what_its_owner_wants_stays_whatever_comes(
    world: PlannedWorld, arrivals: list[tuple[int, ModelName, int]]
) -> None:
    """Once a floor is filled it is never left again."""
    filled: set[ModelName] = set()
    for second in range(120):
        for at, model, seconds in arrivals:
            if at == second:
                world.ask(model, seconds)
        world.tick()
        for of in world.specs:
            if running(world, of) >= of.min_replicas:
                filled.add(of.name)
            assert of.name not in filled or running(world, of) >= of.min_replicas


def test_two_models_that_share_one_place_take_turns_in_batches() -> None:
    """A B A B ..., all at once: one swap serves all of a kind."""
    pair = (spec(A, parallel=1), spec(B, parallel=1))
    world = PlannedWorld(pair, {A: MEMORY, B: MEMORY}, {N1: MEMORY})
    for _ in range(5):
        world.ask(A)
        world.ask(B)
    while world.requests:
        assert world.now < 2 * TURN_SECONDS
        world.tick()
    assert [request.model for request in world.served] == [A] * 5 + [B] * 5
    assert sum(len(decided.start) for decided in world.plans) == 2


def test_what_comes_later_for_the_loaded_model_stands_behind_the_other() -> None:
    pair = (spec(A, parallel=1), spec(B, parallel=1))
    world = PlannedWorld(pair, {A: MEMORY, B: MEMORY}, {N1: MEMORY})
    world.ask(A)
    world.tick()
    world.ask(B)
    waited_for_b: list[float] = []
    while len(world.served) < 6:
        world.tick()
        loaded = {row.model for row in world.processes()}
        for model, other in ((A, B), (B, A)):
            if model in loaded and not any(each.model == other for each in world.requests):
                world.ask(other)  # both are always wanted
        waited_for_b += [world.now - each.since for each in world.requests]
    assert max(waited_for_b) < 2 * TURN_SECONDS
