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
from tests.fakes.health_bench import BOOT, OTHER_NODE, SETTINGS, HealthBench, open_health_bench

A, B = ReplicaId("a"), ReplicaId("b")
SUSPECT_AFTER, STALE_AFTER, OFFLINE_AFTER = 15, 45, 180


@asynccontextmanager
async def open_node(*replicas: ReplicaId, observed: Observed = Observed.READY) -> AsyncIterator[HealthBench]:
    """One that has joined, with replicas, and sends its heartbeats for as long as its session lasts."""
    async with open_health_bench() as bench, trio.open_nursery() as nursery:
        await bench.join()
        await bench.place(*(replicas or (A,)), observed=observed)
        nursery.start_soon(bench.run_heartbeats)
        await trio.sleep(60)
        assert (bench.marks, bench.probe.asked) == ([], [])
        yield bench
        nursery.cancel_scope.cancel()


async def test_h1_a_killed_workers_replicas_are_out_within_a_second(autojump_clock: MockClock) -> None:
    async with open_node(A, B) as bench:
        killed_at = trio.current_time()
        bench.probe.outcomes = {A: ProbeOutcome.GONE, B: ProbeOutcome.GONE}
        bench.break_session()
        await trio.sleep(1)
        assert bench.broken.keys() == {A, B}
        assert all(at - killed_at < 1 for at, _ in bench.broken.values())
        assert bench.broken[A][1] == "its worker does not answer and nothing listens at 127.0.0.1:a any more"
        assert bench.marks == []


async def test_l3_within_a_second_routing_has_lost_them_and_another_node_has_their_work(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as bench, trio.open_nursery() as nursery:
        complaints = FailureReporter(bench.registry)
        bench.monitor.report_broken = complaints.report_lost
        await bench.join(OTHER_NODE)
        nursery.start_soon(bench.run_heartbeats, OTHER_NODE)
        nursery.start_soon(complaints.run)
        nursery.start_soon(bench.run_planner)
        await bench.registry.sync_peers(PeerState(GATEWAY, demand=(demand(),)), inf)
        assert [each.replica_id for each in bench.views.current.candidates[MODEL]] == [A]
        bench.probe.outcomes = {A: ProbeOutcome.GONE}
        bench.break_session()
        await trio.sleep(1)
        assert bench.views.current.candidates == {}
        [substitute] = [each for each in bench.views.current.state.replicas.values() if each.id != A]
        assert (substitute.node_id, substitute.desired) == (OTHER_NODE, Desired.RUN)
        nursery.cancel_scope.cancel()


async def test_h1_a_process_that_dies_a_moment_after_its_worker_is_found_out_as_soon(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as bench:
        bench.break_session()
        await trio.sleep(0.3)
        bench.probe.outcomes = {A: ProbeOutcome.GONE}
        await trio.sleep(0.7)
        assert bench.broken.keys() == {A}


async def test_h1_a_later_death_is_found_out_as_soon_as_the_first(autojump_clock: MockClock) -> None:
    async with open_node() as bench, trio.open_nursery() as nursery:
        bench.break_session()
        await trio.sleep(SETTINGS.heartbeat_seconds - 1)
        await bench.join()
        nursery.start_soon(bench.run_heartbeats)
        await trio.sleep(60)
        bench.break_session()
        await trio.sleep(0.3)
        bench.probe.outcomes = {A: ProbeOutcome.GONE}
        await trio.sleep(0.7)
        assert bench.broken.keys() == {A}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("outcome", [each for each in ProbeOutcome if each is not ProbeOutcome.GONE])
async def test_h1_no_other_answer_says_anything_of_a_process(autojump_clock: MockClock, outcome: ProbeOutcome) -> None:
    async with open_node() as bench:
        bench.probe.outcomes = {A: outcome}
        bench.break_session()
        await trio.sleep(STALE_AFTER - 1)
        assert len(bench.probe.asked) > 5
        assert (bench.broken, bench.marks) == ({}, [])


async def test_one_that_is_found_again_is_not_gone(autojump_clock: MockClock) -> None:
    async with open_node() as bench:
        answers = iter([ProbeOutcome.GONE, ProbeOutcome.GONE])

        async def answer() -> None:
            bench.probe.outcomes = {A: next(answers, ProbeOutcome.ALIVE)}

        bench.probe.wait = answer
        bench.break_session()
        await trio.sleep(STALE_AFTER - 1)
        assert bench.broken == {}


async def test_one_slow_probe_delays_nobody(autojump_clock: MockClock) -> None:
    async with open_node(A, B) as bench:
        bench.probe.outcomes = {B: ProbeOutcome.GONE}

        async def hang_first() -> None:
            if bench.probe.asked[-1] == A:
                await trio.sleep_forever()

        bench.probe.wait = hang_first
        bench.break_session()
        await trio.sleep(1)
        assert bench.broken.keys() == {B}
        await trio.sleep(STALE_AFTER)
        assert bench.marks == [NodeStatus.UNHEALTHY]
        assert bench.probe.asked.count(A) == 1


async def test_the_rest_of_the_fleet_is_left_alone(autojump_clock: MockClock) -> None:
    async with open_node() as bench, trio.open_nursery() as nursery:
        await bench.join(OTHER_NODE)
        nursery.start_soon(bench.run_heartbeats, OTHER_NODE)
        await bench.place(B, node_id=OTHER_NODE)
        bench.break_session()
        await trio.sleep(OFFLINE_AFTER + 60)
        assert B not in bench.probe.asked
        assert bench.registry.marks == [(NODE, NodeStatus.UNHEALTHY), (NODE, NodeStatus.OFFLINE)]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("observed", [Observed.FETCHING, Observed.STARTING, Observed.DRAINING])
async def test_r13_what_need_not_listen_is_not_probed(autojump_clock: MockClock, observed: Observed) -> None:
    async with open_node(observed=observed) as bench:
        bench.break_session()
        await trio.sleep(30)
        assert bench.probe.asked == []


async def test_r13_what_is_to_drain_is_not_probed(autojump_clock: MockClock) -> None:
    async with open_node() as bench:
        drain = ControlWrite(set_desired=((A, Desired.DRAIN),))
        await bench.registry.apply(await lead(bench.registry), drain)
        await trio.testing.wait_all_tasks_blocked()
        bench.break_session()
        await trio.sleep(30)
        assert bench.probe.asked == []


async def test_r13_what_a_leaving_worker_still_runs_is_not_probed(autojump_clock: MockClock) -> None:
    async with open_node() as bench:
        bench.sessions[NODE].leaving = True
        bench.monitor.wake.set()
        await trio.testing.wait_all_tasks_blocked()
        bench.break_session()
        await trio.sleep(30)
        assert bench.probe.asked == []


async def test_h8_a_half_open_session_makes_suspect_then_unhealthy_until_the_next_message(
    autojump_clock: MockClock,
) -> None:
    async with open_health_bench() as bench:
        await bench.join()
        await bench.place(A)
        await trio.sleep(SUSPECT_AFTER - 0.1)
        assert bench.probe.asked == []
        await trio.sleep(0.2)
        assert bench.probe.asked == [A]
        assert bench.marks == []
        await trio.sleep(STALE_AFTER - SUSPECT_AFTER - 0.2)
        assert bench.marks == []
        assert len(bench.probe.asked) == 7  # at 15 s, 15.5, 20.5, 25.5 ...
        await trio.sleep(0.2)
        assert bench.status() is NodeStatus.UNHEALTHY
        bench.hear()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.status() is NodeStatus.HEALTHY
        assert bench.marks == [NodeStatus.UNHEALTHY, NodeStatus.HEALTHY]
        assert bench.registry.ended == [False, False]
        assert bench.broken == {}


async def test_h12_a_blip_of_the_network_writes_nothing(autojump_clock: MockClock) -> None:
    async with open_node() as bench, trio.open_nursery() as nursery:
        bench.probe.outcomes = {A: ProbeOutcome.UNREACHABLE}
        bench.break_session()
        await trio.sleep(10)
        await bench.join()
        nursery.start_soon(bench.run_heartbeats)
        await trio.sleep(600)
        assert (bench.marks, bench.broken) == ([], {})
        assert bench.status() is NodeStatus.HEALTHY
        nursery.cancel_scope.cancel()


async def test_h12_silence_is_written_down_once_at_each_edge(autojump_clock: MockClock) -> None:
    async with open_node() as bench:
        bench.break_session()
        await trio.sleep(OFFLINE_AFTER - 0.1)
        assert bench.marks == [NodeStatus.UNHEALTHY]
        await trio.sleep(3600)
        assert bench.marks == [NodeStatus.UNHEALTHY, NodeStatus.OFFLINE]
        assert bench.registry.ended == [True, True]
        probes = len(bench.probe.asked)
        await trio.sleep(3600)
        assert len(bench.probe.asked) == probes  # it is not asked for ever


async def test_h9_a_node_that_has_left_stays_offline(autojump_clock: MockClock) -> None:
    async with open_node() as bench:
        session = bench.sessions[NODE]
        session.leaving = True
        bench.monitor.wake.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.status() is NodeStatus.DRAINING
        await bench.registry.mark_node(NODE, session.number, NodeStatus.OFFLINE, ended=True)
        await trio.sleep(SETTINGS.heartbeat_seconds)
        bench.break_session()
        await trio.sleep(3600)
        assert bench.status() is NodeStatus.OFFLINE
        assert bench.marks == [NodeStatus.DRAINING, NodeStatus.OFFLINE]  # the latter by its session
        assert bench.probe.asked == []


async def test_h9_a_node_whose_newest_session_is_elsewhere_is_not_judged_by_an_older_one(
    autojump_clock: MockClock,
) -> None:
    async with open_health_bench() as bench:
        await bench.join()
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(STALE_AFTER - 1)
        await bench.registry.join_node(Hello(NODE, NODE, BOOT), GatewayId("other"))
        await trio.sleep(10)
        assert bench.marks == []


async def test_h9_a_session_that_was_lost_as_it_began_has_its_own_time(autojump_clock: MockClock) -> None:
    async with open_node() as bench:
        bench.break_session()
        await trio.sleep(STALE_AFTER - 5)
        await bench.join(connect=False)
        await trio.sleep(STALE_AFTER - 0.1)
        assert bench.status() is NodeStatus.HEALTHY
        await trio.sleep(SETTINGS.heartbeat_seconds)
        assert bench.status() is NodeStatus.UNHEALTHY


async def test_h9_a_node_is_judged_by_one_gateway_and_has_its_full_time_when_that_changes(
    autojump_clock: MockClock,
) -> None:
    """As when its gateway dies and another one has to judge, or when the registry was away for everybody."""
    async with open_node() as bench:
        bench.judges = False
        bench.break_session()
        await trio.sleep(OFFLINE_AFTER)
        assert (bench.marks, bench.probe.asked) == ([], [])
        bench.judges = True
        await trio.sleep(SETTINGS.heartbeat_seconds + 0.1)
        assert bench.probe.asked != []
        await trio.sleep(STALE_AFTER - 2 * SETTINGS.heartbeat_seconds)
        assert bench.marks == []
        bench.judges = False
        await trio.sleep(SETTINGS.heartbeat_seconds)
        bench.judges = True
        await trio.sleep(STALE_AFTER - 0.1)
        assert bench.marks == []
        await trio.sleep(2 * SETTINGS.heartbeat_seconds)
        assert bench.marks == [NodeStatus.UNHEALTHY]


async def test_h9_while_the_registry_is_away_nobody_is_judged_and_a_short_absence_makes_nobody_younger(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as bench:
        bench.break_session()
        await trio.sleep(STALE_AFTER - 10)
        bench.is_paused = True
        await trio.sleep(8)
        bench.is_paused = False
        await trio.sleep(2 + SETTINGS.heartbeat_seconds)
        assert bench.marks == [NodeStatus.UNHEALTHY]


async def test_h9_after_a_long_absence_of_the_registry_a_node_has_its_full_time_to_return(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as bench:
        bench.break_session()
        await trio.sleep(20)
        bench.is_paused = True
        await trio.sleep(OFFLINE_AFTER)
        bench.monitor.restart()
        bench.is_paused = False
        await trio.sleep(STALE_AFTER - 0.1)
        assert bench.marks == []
        await trio.sleep(2 * SETTINGS.heartbeat_seconds)
        assert bench.marks == [NodeStatus.UNHEALTHY]


async def test_a_change_that_could_not_be_written_is_written_when_it_can_be(autojump_clock: MockClock) -> None:
    async with open_node() as bench:
        bench.registry.down = True
        bench.break_session()
        await trio.sleep(STALE_AFTER + 30)
        assert bench.status() is NodeStatus.HEALTHY
        bench.registry.down = False
        await trio.sleep(1)
        assert bench.status() is NodeStatus.UNHEALTHY


async def test_h11_after_a_restart_of_the_gateway_a_node_has_its_full_time_to_return(
    autojump_clock: MockClock,
) -> None:
    async with open_health_bench(run=False) as bench, trio.open_nursery() as nursery:
        await bench.join(connect=False)
        await bench.place(A)
        await trio.sleep(3600)
        await nursery.start(bench.monitor.run)
        await trio.sleep(STALE_AFTER - 0.1)
        assert bench.marks == []
        assert A in bench.probe.asked
        await trio.sleep(0.2)
        assert bench.marks == [NodeStatus.UNHEALTHY]
        assert bench.status() is NodeStatus.UNHEALTHY
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("skew_seconds", [120, -7200])
async def test_h11_a_wall_clock_that_jumps_changes_nothing(autojump_clock: MockClock, skew_seconds: float) -> None:
    async with open_node() as bench:
        bench.registry.skew_seconds = skew_seconds
        await bench.place(B, node_id=NODE)  # something is written with the new time
        await trio.sleep(600)
        assert (bench.marks, bench.probe.asked) == ([], [])
