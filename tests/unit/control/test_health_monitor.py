"""Nodes that die, fall silent, come back or leave, as a gateway sees them; on the virtual clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from gateway.control.failure_reporter import FailureReporter
from gateway.domain.cluster import NodeStatus, ProbeOutcome
from gateway.domain.ids import GatewayId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.peers import PeerState
from gateway.domain.plan_write import ControlWrite
from gateway.domain.session import Hello
from tests.contract.samples import lead
from tests.fakes.fleet import GATEWAY, MODEL, NODE, demand
from tests.fakes.health_harness import BOOT, OTHER_NODE, SETTINGS, HealthHarness, open_health_harness

A, B = ReplicaId("a"), ReplicaId("b")
SUSPECT_AFTER, STALE_AFTER, OFFLINE_AFTER = 15, 45, 180


@asynccontextmanager
async def open_node(*replicas: ReplicaId, observed: Observed = Observed.READY) -> AsyncIterator[HealthHarness]:
    """One that has joined, with replicas, and sends its heartbeats for as long as its session lasts."""
    async with open_health_harness() as harness, trio.open_nursery() as nursery:
        await harness.join()
        await harness.place(*(replicas or (A,)), observed=observed)
        nursery.start_soon(harness.run_heartbeats)
        await trio.sleep(60)
        assert (harness.marks, harness.probe.asked) == ([], [])
        yield harness
        nursery.cancel_scope.cancel()


async def test_h1_a_killed_workers_replicas_are_out_within_a_second(autojump_clock: MockClock) -> None:
    async with open_node(A, B) as harness:
        killed_at = trio.current_time()
        harness.probe.outcomes = {A: ProbeOutcome.GONE, B: ProbeOutcome.GONE}
        harness.break_session()
        await trio.sleep(1)
        assert harness.broken.keys() == {A, B}
        assert all(at - killed_at < 1 for at, _ in harness.broken.values())
        assert harness.broken[A][1] == "its worker does not answer and nothing listens at 127.0.0.1:a any more"
        assert harness.marks == []


async def test_l3_within_a_second_routing_has_lost_them_and_another_node_has_their_work(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as harness, trio.open_nursery() as nursery:
        reporter = FailureReporter(harness.registry)
        harness.monitor.report_broken = reporter.report_lost
        await harness.join(OTHER_NODE)
        nursery.start_soon(harness.run_heartbeats, OTHER_NODE)
        nursery.start_soon(reporter.run)
        nursery.start_soon(harness.run_planner)
        await harness.registry.sync_peers(PeerState(GATEWAY, demand=(demand(),)), inf)
        assert [each.replica_id for each in harness.views.current.candidates[MODEL]] == [A]
        harness.probe.outcomes = {A: ProbeOutcome.GONE}
        harness.break_session()
        await trio.sleep(1)
        assert harness.views.current.candidates == {}
        [substitute] = [each for each in harness.views.current.state.replicas.values() if each.id != A]
        assert (substitute.node_id, substitute.desired) == (OTHER_NODE, Desired.RUN)
        nursery.cancel_scope.cancel()


async def test_h1_a_process_that_dies_a_moment_after_its_worker_is_found_out_as_soon(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as harness:
        harness.break_session()
        await trio.sleep(0.3)
        harness.probe.outcomes = {A: ProbeOutcome.GONE}
        await trio.sleep(0.7)
        assert harness.broken.keys() == {A}


async def test_h1_a_later_death_is_found_out_as_soon_as_the_first(autojump_clock: MockClock) -> None:
    async with open_node() as harness, trio.open_nursery() as nursery:
        harness.break_session()
        await trio.sleep(SETTINGS.heartbeat_seconds - 1)
        await harness.join()
        nursery.start_soon(harness.run_heartbeats)
        await trio.sleep(60)
        harness.break_session()
        await trio.sleep(0.3)
        harness.probe.outcomes = {A: ProbeOutcome.GONE}
        await trio.sleep(0.7)
        assert harness.broken.keys() == {A}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("outcome", [each for each in ProbeOutcome if each is not ProbeOutcome.GONE])
async def test_h1_no_other_answer_says_anything_of_a_process(autojump_clock: MockClock, outcome: ProbeOutcome) -> None:
    async with open_node() as harness:
        harness.probe.outcomes = {A: outcome}
        harness.break_session()
        await trio.sleep(STALE_AFTER - 1)
        assert len(harness.probe.asked) > 5
        assert (harness.broken, harness.marks) == ({}, [])


async def test_one_that_is_found_again_is_not_gone(autojump_clock: MockClock) -> None:
    async with open_node() as harness:
        answers = iter([ProbeOutcome.GONE, ProbeOutcome.GONE])

        async def answer() -> None:
            harness.probe.outcomes = {A: next(answers, ProbeOutcome.ALIVE)}

        harness.probe.wait = answer
        harness.break_session()
        await trio.sleep(STALE_AFTER - 1)
        assert harness.broken == {}


async def test_one_slow_probe_delays_nobody(autojump_clock: MockClock) -> None:
    async with open_node(A, B) as harness:
        harness.probe.outcomes = {B: ProbeOutcome.GONE}

        async def hang_first() -> None:
            if harness.probe.asked[-1] == A:
                await trio.sleep_forever()

        harness.probe.wait = hang_first
        harness.break_session()
        await trio.sleep(1)
        assert harness.broken.keys() == {B}
        await trio.sleep(STALE_AFTER)
        assert harness.marks == [NodeStatus.UNHEALTHY]
        assert harness.probe.asked.count(A) == 1


async def test_the_rest_of_the_fleet_is_left_alone(autojump_clock: MockClock) -> None:
    async with open_node() as harness, trio.open_nursery() as nursery:
        await harness.join(OTHER_NODE)
        nursery.start_soon(harness.run_heartbeats, OTHER_NODE)
        await harness.place(B, node_id=OTHER_NODE)
        harness.break_session()
        await trio.sleep(OFFLINE_AFTER + 60)
        assert B not in harness.probe.asked
        assert harness.registry.marks == [(NODE, NodeStatus.UNHEALTHY), (NODE, NodeStatus.OFFLINE)]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("observed", [Observed.FETCHING, Observed.STARTING, Observed.DRAINING])
async def test_r13_what_need_not_listen_is_not_probed(autojump_clock: MockClock, observed: Observed) -> None:
    async with open_node(observed=observed) as harness:
        harness.break_session()
        await trio.sleep(30)
        assert harness.probe.asked == []


async def test_r13_what_is_to_drain_is_not_probed(autojump_clock: MockClock) -> None:
    async with open_node() as harness:
        drain = ControlWrite(set_desired=((A, Desired.DRAIN),))
        await harness.registry.apply(await lead(harness.registry), drain)
        await trio.testing.wait_all_tasks_blocked()
        harness.break_session()
        await trio.sleep(30)
        assert harness.probe.asked == []


async def test_r13_what_a_leaving_worker_still_runs_is_not_probed(autojump_clock: MockClock) -> None:
    async with open_node() as harness:
        harness.sessions[NODE].leaving = True
        harness.monitor.wake.set()
        await trio.testing.wait_all_tasks_blocked()
        harness.break_session()
        await trio.sleep(30)
        assert harness.probe.asked == []


async def test_h8_a_half_open_session_makes_suspect_then_unhealthy_until_the_next_message(
    autojump_clock: MockClock,
) -> None:
    async with open_health_harness() as harness:
        await harness.join()
        await harness.place(A)
        await trio.sleep(SUSPECT_AFTER - 0.1)
        assert harness.probe.asked == []
        await trio.sleep(0.2)
        assert harness.probe.asked == [A]
        assert harness.marks == []
        await trio.sleep(STALE_AFTER - SUSPECT_AFTER - 0.2)
        assert harness.marks == []
        assert len(harness.probe.asked) == 7  # at 15 s, 15.5, 20.5, 25.5 ...
        await trio.sleep(0.2)
        assert harness.status() is NodeStatus.UNHEALTHY
        harness.hear()
        await trio.testing.wait_all_tasks_blocked()
        assert harness.status() is NodeStatus.HEALTHY
        assert harness.marks == [NodeStatus.UNHEALTHY, NodeStatus.HEALTHY]
        assert harness.registry.ended == [False, False]
        assert harness.broken == {}


async def test_h12_a_blip_of_the_network_writes_nothing(autojump_clock: MockClock) -> None:
    async with open_node() as harness, trio.open_nursery() as nursery:
        harness.probe.outcomes = {A: ProbeOutcome.UNREACHABLE}
        harness.break_session()
        await trio.sleep(10)
        await harness.join()
        nursery.start_soon(harness.run_heartbeats)
        await trio.sleep(600)
        assert (harness.marks, harness.broken) == ([], {})
        assert harness.status() is NodeStatus.HEALTHY
        nursery.cancel_scope.cancel()


async def test_h12_silence_is_written_down_once_at_each_edge(autojump_clock: MockClock) -> None:
    async with open_node() as harness:
        harness.break_session()
        await trio.sleep(OFFLINE_AFTER - 0.1)
        assert harness.marks == [NodeStatus.UNHEALTHY]
        await trio.sleep(3600)
        assert harness.marks == [NodeStatus.UNHEALTHY, NodeStatus.OFFLINE]
        assert harness.registry.ended == [True, True]
        probes = len(harness.probe.asked)
        await trio.sleep(3600)
        assert len(harness.probe.asked) == probes  # it is not asked for ever


async def test_h9_a_node_that_has_left_stays_offline(autojump_clock: MockClock) -> None:
    async with open_node() as harness:
        session = harness.sessions[NODE]
        session.leaving = True
        harness.monitor.wake.set()
        await trio.testing.wait_all_tasks_blocked()
        assert harness.status() is NodeStatus.DRAINING
        await harness.registry.mark_node(NODE, session.number, NodeStatus.OFFLINE, ended=True)
        await trio.sleep(SETTINGS.heartbeat_seconds)
        harness.break_session()
        await trio.sleep(3600)
        assert harness.status() is NodeStatus.OFFLINE
        assert harness.marks == [NodeStatus.DRAINING, NodeStatus.OFFLINE]  # the latter by its session
        assert harness.probe.asked == []


async def test_h9_a_node_whose_newest_session_is_at_a_peer_is_not_judged_by_an_older_one(
    autojump_clock: MockClock,
) -> None:
    async with open_health_harness() as harness:
        await harness.join()
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(STALE_AFTER - 1)
        await harness.registry.join_node(Hello(NODE, NODE, BOOT), GatewayId("other"))
        await trio.sleep(10)
        assert harness.marks == []


async def test_h9_a_session_that_was_lost_as_it_began_has_its_own_time(autojump_clock: MockClock) -> None:
    async with open_node() as harness:
        harness.break_session()
        await trio.sleep(STALE_AFTER - 5)
        await harness.join(connect=False)
        await trio.sleep(STALE_AFTER - 0.1)
        assert harness.status() is NodeStatus.HEALTHY
        await trio.sleep(SETTINGS.heartbeat_seconds)
        assert harness.status() is NodeStatus.UNHEALTHY


async def test_h9_a_node_is_judged_by_one_gateway_and_has_its_full_time_when_that_changes(
    autojump_clock: MockClock,
) -> None:
    """As when its gateway dies and another one has to judge, or when the registry was away for everybody."""
    async with open_node() as harness:
        harness.judges = False
        harness.break_session()
        await trio.sleep(OFFLINE_AFTER)
        assert (harness.marks, harness.probe.asked) == ([], [])
        harness.judges = True
        await trio.sleep(SETTINGS.heartbeat_seconds + 0.1)
        assert harness.probe.asked != []
        await trio.sleep(STALE_AFTER - 2 * SETTINGS.heartbeat_seconds)
        assert harness.marks == []
        harness.judges = False
        await trio.sleep(SETTINGS.heartbeat_seconds)
        harness.judges = True
        await trio.sleep(STALE_AFTER - 0.1)
        assert harness.marks == []
        await trio.sleep(2 * SETTINGS.heartbeat_seconds)
        assert harness.marks == [NodeStatus.UNHEALTHY]


async def test_h9_while_the_registry_is_away_nobody_is_judged_and_a_short_absence_makes_nobody_younger(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as harness:
        harness.break_session()
        await trio.sleep(STALE_AFTER - 10)
        harness.is_paused = True
        await trio.sleep(8)
        harness.is_paused = False
        await trio.sleep(2 + SETTINGS.heartbeat_seconds)
        assert harness.marks == [NodeStatus.UNHEALTHY]


async def test_h9_after_a_long_absence_of_the_registry_a_node_has_its_full_time_to_return(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as harness:
        harness.break_session()
        await trio.sleep(20)
        harness.is_paused = True
        await trio.sleep(OFFLINE_AFTER)
        harness.monitor.restart()
        harness.is_paused = False
        await trio.sleep(STALE_AFTER - 0.1)
        assert harness.marks == []
        await trio.sleep(2 * SETTINGS.heartbeat_seconds)
        assert harness.marks == [NodeStatus.UNHEALTHY]


async def test_a_change_that_could_not_be_written_is_written_when_it_can_be(autojump_clock: MockClock) -> None:
    async with open_node() as harness:
        harness.registry.down = True
        harness.break_session()
        await trio.sleep(STALE_AFTER + 30)
        assert harness.status() is NodeStatus.HEALTHY
        harness.registry.down = False
        await trio.sleep(1)
        assert harness.status() is NodeStatus.UNHEALTHY


async def test_h11_after_a_restart_of_the_gateway_a_node_has_its_full_time_to_return(
    autojump_clock: MockClock,
) -> None:
    async with open_health_harness(run=False) as harness, trio.open_nursery() as nursery:
        await harness.join(connect=False)
        await harness.place(A)
        await trio.sleep(3600)
        await nursery.start(harness.monitor.run)
        await trio.sleep(STALE_AFTER - 0.1)
        assert harness.marks == []
        assert A in harness.probe.asked
        await trio.sleep(0.2)
        assert harness.marks == [NodeStatus.UNHEALTHY]
        assert harness.status() is NodeStatus.UNHEALTHY
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("skew_seconds", [120, -7200])
async def test_h11_a_wall_clock_that_jumps_changes_nothing(autojump_clock: MockClock, skew_seconds: float) -> None:
    async with open_node() as harness:
        harness.registry.skew_seconds = skew_seconds
        await harness.place(B, node_id=NODE)  # something is written with the new time
        await trio.sleep(600)
        assert (harness.marks, harness.probe.asked) == ([], [])
