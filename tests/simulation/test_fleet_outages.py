"""Single faults of a fleet with two gateways, on the virtual clock, and what has to go on all the same."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Final

import pytest
import trio

from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.lifecycle import Desired, Observed
from tests.simulation.clients import Request
from tests.simulation.fleet import TTL_SECONDS, Fleet, Post, open_fleet
from tests.simulation.fleet_invariants import FleetWatch
from tests.simulation.test_fleet_simulation import CUT_OFF
from tests.simulation.world import Violation, World, run_seeded

WARM: Final = ModelName("steady")
"""Two replicas of two slots each, always."""
FOREIGN_MODEL: Final = ModelName("foreign")
"""Two replicas of one slot each."""
OUTAGE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.1


@asynccontextmanager
async def _fleet_at_work(world: World, folder: Path) -> AsyncIterator[Fleet]:
    """All models that are to be loaded are, the clock runs by itself. Leaving it raises `Violation`."""
    async with open_fleet(world, folder, 2, FleetWatch) as fleet:
        world.clock.autojump_threshold = 0
        await _wait(lambda: len(fleet.posts) == 2 and _leader(fleet) is not None and _is_loaded(fleet))
        yield fleet
        world.raise_violations()


def _run(folder: Path, scene: Callable[[Fleet], Awaitable[None]]) -> None:
    world = World(1, expected_alarms=frozenset({CUT_OFF}))

    async def main() -> None:
        async with _fleet_at_work(world, folder) as fleet:
            await scene(fleet)

    run_seeded(world, main)


async def _wait(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Raises `TooSlowError` if it takes longer than that."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - any condition, on a virtual clock
            await trio.sleep(PAUSE_SECONDS)


def _is_loaded(fleet: Fleet) -> bool:
    ready = [len(post.gateway.shared.views.current.candidates.get(WARM, ())) for post in fleet.posts.values()]
    return min(ready) == 2


def _leader(fleet: Fleet) -> Post | None:
    return next((post for post in fleet.posts.values() if post.gateway.shared.election.epoch is not None), None)


def _follower(fleet: Fleet) -> Post:
    return next(post for post in fleet.posts.values() if post.gateway.shared.election.epoch is None)


def _the_leader(fleet: Fleet) -> Post:
    leader = _leader(fleet)
    assert leader is not None
    return leader


async def _ask_for(fleet: Fleet, seconds: float) -> None:
    """Every gateway gets a request each second. Raises `Violation` unless all are answered."""
    until, numbers = trio.current_time() + seconds, count(1)
    requests = list[Request]()
    async with trio.open_nursery() as nursery:
        while trio.current_time() < until:
            for post in fleet.posts.values():
                name = RequestId(f"warm{next(numbers)}")
                requests.append(Request(name, WARM, "ann", "stream", 4, timeout_seconds=3600, pause_seconds=0))
                nursery.start_soon(post.installation.send, requests[-1])
            await trio.sleep(1.0)
    for request in requests:
        if request.outcome != "answered":
            raise Violation(f"{request} ended as {request.outcome}: {request.error}")
    assert len(requests) >= 2 * int(seconds)


def _links(fleet: Fleet) -> list[str]:
    """What has become of nodes' links, by the audit trail."""
    return [event.detail for event in fleet.registry._events if event.kind == "node.link"]


def test_l13_another_gateway_leads_within_gateway_ttl_after_the_leader_was_killed(tmp_path: Path) -> None:
    async def scene(fleet: Fleet) -> None:
        leader, other = _the_leader(fleet), _follower(fleet)
        epoch = leader.gateway.shared.election.epoch
        leader.kill()
        await _wait(lambda: other.gateway.shared.election.epoch is not None, TTL_SECONDS)
        assert epoch is not None
        assert other.gateway.shared.election.epoch == epoch + 1

    _run(tmp_path, scene)


def test_another_gateway_leads_at_once_after_the_leader_has_left(tmp_path: Path) -> None:
    async def scene(fleet: Fleet) -> None:
        leader, other = _the_leader(fleet), _follower(fleet)
        leader.ends.set()
        await _wait(
            lambda: other.gateway.shared.election.epoch is not None, other.gateway.shared.election.term_seconds / 4
        )

    _run(tmp_path, scene)


def test_h9_while_the_registry_is_away_warm_models_are_served_and_no_node_is_given_up(tmp_path: Path) -> None:
    async def scene(fleet: Fleet) -> None:
        before = _links(fleet)
        fleet.take_registry_away(OUTAGE_SECONDS)
        await _ask_for(fleet, OUTAGE_SECONDS)
        assert _leader(fleet) is None
        await _wait(lambda: _leader(fleet) is not None, TTL_SECONDS)
        await _ask_for(fleet, OUTAGE_SECONDS)
        assert _links(fleet) == before

    _run(tmp_path, scene)


def test_h9_a_gateway_that_is_cut_off_serves_on_and_its_workers_move(tmp_path: Path) -> None:
    async def scene(fleet: Fleet) -> None:
        before, starts = _links(fleet), _starts(fleet)
        cut = next(post for post in fleet.posts.values() if post.gateway.control.sessions.open)
        others = [post for post in fleet.posts.values() if post is not cut]
        cut.faulty_registry.cut(2 * OUTAGE_SECONDS)
        await _ask_for(fleet, OUTAGE_SECONDS)
        assert not cut.gateway.control.sessions.open
        assert sum(len(post.gateway.control.sessions.open) for post in others) == len(fleet.machines)
        await _ask_for(fleet, 2 * OUTAGE_SECONDS)
        assert _links(fleet) == before
        assert _starts(fleet) == starts

    _run(tmp_path, scene)


def _starts(fleet: Fleet) -> int:
    return sum(event.kind == "replica.placed" for event in fleet.registry._events)


def test_l13_what_a_stopped_leader_had_under_way_is_void_when_it_goes_on(tmp_path: Path) -> None:
    """It is stopped just before its plan arrives; the plan arrives once the other one has planned the same."""

    async def scene(fleet: Fleet) -> None:
        leader, other, registry = _the_leader(fleet), _follower(fleet), fleet.registry
        leader.faulty_registry.trap("apply", lambda: leader.faulty_registry.stop(2 * TTL_SECONDS))
        fleet.processes()[0].end(-9)
        await _wait(lambda: leader.faulty_registry.is_stopped)
        await _wait(lambda: other.gateway.shared.election.epoch is not None, TTL_SECONDS)
        await _wait(lambda: registry.refused > 0, 3 * TTL_SECONDS)
        await _wait(lambda: _is_loaded(fleet))
        rows = [row for row in registry._tables.replicas.values() if row.model == WARM]
        assert [(row.desired, row.observed) for row in rows] == [(Desired.RUN, Observed.READY)] * 2
        assert all(row.node.status is NodeStatus.HEALTHY for row in registry._tables.nodes.values())

    _run(tmp_path, scene)


def test_r4_a_killed_gateways_leases_count_no_longer_than_gateway_ttl(tmp_path: Path) -> None:
    async def scene(fleet: Fleet) -> None:
        dying, other = _the_leader(fleet), _follower(fleet)
        request = Request(RequestId("long"), WARM, "ann", "stream", 400, timeout_seconds=3600, pause_seconds=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dying.installation.send, request)
            await _wait(lambda: _at_peers(other) == 1)
            dying.kill()
            await _wait(lambda: _at_peers(other) == 0, TTL_SECONDS + PAUSE_SECONDS + 1.0)

    _run(tmp_path, scene)


def _at_peers(post: Post) -> int:
    """Leases that this gateway counts for the others."""
    return sum(use.at_peers for use in post.gateway.routing.admission.loads._loads.values())


def test_l17_a_fleet_whose_gateways_all_died_serves_again_with_what_its_machines_run(tmp_path: Path) -> None:
    async def scene(fleet: Fleet) -> None:
        running = {process.backend.token for process in fleet.processes()}
        for post in list(fleet.posts.values()):
            post.kill()
        await _wait(lambda: not fleet.posts)
        await _wait(lambda: len(fleet.posts) == 2 and _leader(fleet) is not None)
        await _wait(lambda: _is_loaded(fleet) and not any(map(_at_peers, fleet.posts.values())))
        await _ask_for(fleet, 10.0)
        assert {process.backend.token for process in fleet.processes()} == running

    _run(tmp_path, scene)


def test_w11_a_gateway_that_is_cut_off_for_a_moment_is_waited_for_before_a_replica_ends(tmp_path: Path) -> None:
    """It can't know that replicas of a backend that does not refuse calls are to go, and goes on using them."""

    async def scene(fleet: Fleet) -> None:
        leader, other = _the_leader(fleet), _follower(fleet)
        await _wait(lambda: len(other.gateway.shared.views.current.candidates.get(FOREIGN_MODEL, ())) == 2)
        other.faulty_registry.cut(TTL_SECONDS / 2)
        await fleet.registry.unload_model(FOREIGN_MODEL)
        await _wait(lambda: not leader.gateway.shared.views.current.candidates.get(FOREIGN_MODEL))
        requests = list[Request]()
        async with trio.open_nursery() as nursery:
            while trio.current_time() < other.faulty_registry.disturbed_until:
                name = RequestId(f"q{len(requests)}")
                requests.append(Request(name, FOREIGN_MODEL, "ann", "unary", 8, timeout_seconds=3600, pause_seconds=0))
                nursery.start_soon(other.installation.send, requests[-1])
                await trio.sleep(0.7)
        assert [request.outcome for request in requests] == ["answered"] * len(requests)
        assert len({visit.token for visits in fleet.call_ledger.visits.values() for visit in visits[:1]}) == 2
        await _wait(lambda: len(other.gateway.shared.views.current.candidates.get(FOREIGN_MODEL, ())) == 2)

    _run(tmp_path, scene)


@pytest.mark.parametrize(("model", "also_later"), [(WARM, False), (FOREIGN_MODEL, True)])
def test_w11_a_gateway_that_is_cut_off_for_long_loses_no_stream_to_the_drains_of_the_others(
    tmp_path: Path, model: ModelName, also_later: bool
) -> None:
    """It is dead for the leader, which can't hear of its requests: of that which it has when the drain begins, and of
    one that it begins with a replica of which it does not know that it drains (ours would refuse that one)."""

    async def scene(fleet: Fleet) -> None:
        leader, cut = _the_leader(fleet), _follower(fleet)
        await _wait(lambda: len(cut.gateway.shared.views.current.candidates.get(model, ())) == 2)
        cut.faulty_registry.cut(2 * OUTAGE_SECONDS)
        await _wait(lambda: cut.gateway.shared.id not in leader.gateway.shared.peers.peer_states.peers)
        requests = [
            Request(RequestId(f"q{number}"), model, "ann", "stream", 200, timeout_seconds=3600, pause_seconds=0)
            for number in range(1 + also_later)
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut.installation.send, requests[0])
            await _wait(lambda: bool(cut.gateway.routing.admission.loads.published()))
            await fleet.registry.unload_model(model)
            await _wait(lambda: not leader.gateway.shared.views.current.candidates.get(model))
            for later in requests[1:]:
                nursery.start_soon(cut.installation.send, later)
        assert [each.outcome for each in requests] == ["answered"] * len(requests)
        assert [len(fleet.call_ledger.visits[each.id]) for each in requests] == [1] * len(requests)

    _run(tmp_path, scene)
