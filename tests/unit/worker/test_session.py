"""The worker's end of a session on the virtual clock: what it says by itself, what it does when asked."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.resources import Capacity
from gateway.domain.session import EndTail, FromWorker, Heartbeat, Leaving, LogChunk, TailLogs, ToWorker
from gateway.worker.process.command import BackendProgram
from gateway.worker.session import WorkerSession
from tests.fakes.worker_harness import HEARTBEAT_SECONDS, desired_replica, nothing_known, open_worker, settings_in
from tests.fakes.worker_parts import FakeControl, FakeSpawn

A = ReplicaId("a")


@pytest.fixture
def spawn() -> FakeSpawn:
    return FakeSpawn()


@pytest.fixture
def control(spawn: FakeSpawn) -> FakeControl:
    return FakeControl(spawn)


async def test_h8_it_says_regularly_that_it_lives(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        begin = trio.current_time()
        for _ in range(3):
            await worker.wait_other(Heartbeat)
        assert trio.current_time() - begin == pytest.approx(3 * HEARTBEAT_SECONDS)


async def test_what_the_machine_has_is_reported_when_it_has_changed(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    current = Capacity(ram_bytes=8)

    async def read() -> Capacity:
        await trio.lowlevel.checkpoint()
        return current

    async with open_worker(settings_in(tmp_path), spawn, control, read) as worker:
        assert await worker.wait_other(Capacity) == Capacity(ram_bytes=8)
        await trio.sleep(10 * HEARTBEAT_SECONDS)
        current = Capacity(ram_bytes=4)
        assert await worker.wait_other(Capacity) == Capacity(ram_bytes=4)


async def test_a_machine_that_does_not_answer_how_it_is_stays_alive(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async def hang() -> Capacity:
        await trio.sleep_forever()
        raise AssertionError

    async with open_worker(settings_in(tmp_path), spawn, control, hang) as worker:
        await worker.wait_other(Heartbeat)
        await worker.wait_other(Heartbeat)


async def test_output_is_followed_until_the_process_ends(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        spawn.started[0].write("one\ntwo\n")
        await wait_all_tasks_blocked()
        await worker.to_worker.send(TailLogs(1, A, lines=1, follow=True))
        assert await worker.wait_other(LogChunk) == LogChunk(1, ("two",))
        spawn.started[0].write("three\n")
        assert await worker.wait_other(LogChunk) == LogChunk(1, ("three",))
        await worker.want(desired_replica("a", Desired.STOP))
        assert await worker.wait_other(LogChunk) == LogChunk(1, (), ended=True)


async def test_a_tail_that_nobody_reads_any_more_ends(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        await worker.to_worker.send(TailLogs(1, A, lines=0, follow=True))
        await worker.wait_other(LogChunk)
        await worker.to_worker.send(EndTail(1))
        await wait_all_tasks_blocked()
        spawn.started[0].write("unread\n")
        await worker.to_worker.send(TailLogs(2, A, lines=9, follow=False))
        chunk = await worker.wait_other(LogChunk)
        assert (chunk.tail, chunk.lines, chunk.ended) == (2, ("unread",), True)
        assert not [message for message in worker.peers if isinstance(message, LogChunk)]


async def test_output_of_what_does_not_run_here_ends_at_once(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.to_worker.send(TailLogs(7, A, lines=5, follow=True))
        assert await worker.wait_other(LogChunk) == LogChunk(7, (), ended=True)


async def test_r13_a_worker_that_leaves_says_so_drains_and_begins_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    spawn = FakeSpawn(ignores_term=True)
    programs = {"fake": BackendProgram(("fake-backend",), drains_on_term=True)}
    async with open_worker(settings_in(tmp_path, programs), spawn, FakeControl(spawn)) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        worker.agent.leave()
        await worker.wait_other(Leaving)
        await worker.wait_report("a", Observed.DRAINING)
        await worker.want(desired_replica("a", Desired.DRAIN), desired_replica("b"))
        await wait_all_tasks_blocked()
        spawn.started[0].end(0)
        await worker.agent.wait_empty()
        await worker.wait_report("a", Observed.GONE)
        assert len(spawn.started) == 1


async def test_h10_a_new_session_begins_with_all_that_the_last_one_may_have_lost(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        await worker.want(desired_replica("a"), desired_replica("b"))
        await worker.wait_report("b", Observed.READY)
        await worker.from_worker.aclose()  # the gateway is gone
        spawn.started[0].end(-9)
        await wait_all_tasks_blocked()
        reported = {report.replica_id: report.observed for report in worker.agent.all_reports()}
        assert reported == {"a": Observed.GONE, "b": Observed.READY}
        assert [replica.replica_id for replica in worker.agent.statistics().replicas] == ["b"]


async def test_it_ends_with_the_gateways_end(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        to_worker, from_gateway = trio.open_memory_channel[ToWorker](1)
        to_gateway, _from_worker = trio.open_memory_channel[FromWorker](1)
        session = WorkerSession(worker.agent, to_gateway, from_gateway, 1.0, nothing_known, Capacity())
        await to_worker.aclose()
        await session.run()
