"""How a replica's process is ended, on the virtual clock: asked to let go, then TERM, then KILL, whatever hangs."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from gateway.domain.ids import Address
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.session import Report
from gateway.worker.artifacts.store import ArtifactStore
from gateway.worker.process.command import BackendProgram
from gateway.worker.process.journal import ProcessJournal
from gateway.worker.process.memory_watch import describe_excess
from gateway.worker.process.ports import PortAllocator
from gateway.worker.replica import ReplicaContext, ReplicaTask
from tests.fakes.worker_harness import desired_replica, open_worker, settings_in
from tests.fakes.worker_parts import FakeControl, FakeSpawn

LIMIT_BYTES: Final = 512 * 2**20
USED_BYTES: Final = 600 * 2**20


class SilentControl(FakeControl):
    """Its Free keeps no time."""

    async def free(self, address: Address, token: str, timeout_seconds: float) -> None:
        self.freed.append((trio.current_time(), address))
        await self.unload(address)


class Harness:
    """A worker whose replica becomes ready and is ended; times are seconds after the order to end it."""

    def __init__(self, folder: Path, control: type[FakeControl] = FakeControl, *, drains_on_term: bool = False) -> None:
        self.spawn = FakeSpawn(ignores_term=True)
        self.control = control(self.spawn)
        program = BackendProgram(("fake-backend",), drains_on_term=drains_on_term)
        self._settings = settings_in(folder, {"fake": program})
        self._begin = 0.0

    async def stop(self) -> Report:
        """By wish of the gateway; returns the last report."""
        async with open_worker(self._settings, self.spawn, self.control) as worker:
            await worker.want(desired_replica("a"))
            await worker.wait_report("a", Observed.READY)
            self._begin = trio.current_time()
            await worker.want(desired_replica("a", Desired.STOP))
            return await worker.wait_report("a", Observed.GONE)

    async def shut_down(self) -> Report:
        """With the whole worker; returns the last report."""
        async with open_worker(self._settings, self.spawn, self.control) as worker:
            await worker.want(desired_replica("a"))
            await worker.wait_report("a", Observed.READY)
            self._begin = trio.current_time()
        return await worker.wait_report("a", Observed.GONE)

    def happened(self) -> list[tuple[int, str]]:
        """What was done to the process, in order."""
        done = [(time, "Free") for time, _ in self.control.freed] + self.spawn.started[0].signals
        return [(round(time - self._begin), what) for time, what in sorted(done, key=lambda each: each[0])]


End = Callable[[Harness], Awaitable[Report]]
both_ends = pytest.mark.parametrize("end", [Harness.stop, Harness.shut_down])


async def never(address: Address) -> None:
    await trio.sleep_forever()


@both_ends
async def test_w8_a_backend_is_asked_to_let_go_then_terminated_then_killed(
    tmp_path: Path, autojump_clock: MockClock, end: End
) -> None:
    harness = Harness(tmp_path)
    gone = await end(harness)
    assert harness.happened() == [(0, "Free"), (0, "SIGTERM"), (5, "SIGKILL")]
    assert (gone.exit_code, gone.error) == (-9, None)


@both_ends
@pytest.mark.parametrize("control", [FakeControl, SilentControl])
async def test_w8_a_free_that_hangs_holds_the_signals_up_for_five_seconds(
    tmp_path: Path, autojump_clock: MockClock, control: type[FakeControl], end: End
) -> None:
    harness = Harness(tmp_path, control)
    harness.control.unload = never
    gone = await end(harness)
    assert harness.happened() == [(0, "Free"), (5, "SIGTERM"), (10, "SIGKILL")]
    assert (gone.exit_code, gone.error) == (-9, None)


@both_ends
async def test_w8_a_bug_in_free_keeps_no_process_alive(tmp_path: Path, autojump_clock: MockClock, end: End) -> None:
    async def crash(address: Address) -> None:
        raise ZeroDivisionError("a bug")

    harness = Harness(tmp_path)
    harness.control.unload = crash
    with capture_logs() as logs:
        gone = await end(harness)
    assert harness.happened() == [(0, "Free"), (0, "SIGTERM"), (5, "SIGKILL")]
    assert gone.error is None
    assert [entry["event"] for entry in logs if entry.get("exc_info")] == ["worker.free_failed"]


@both_ends
async def test_h14_a_backend_that_ends_when_it_is_freed_has_not_crashed(
    tmp_path: Path, autojump_clock: MockClock, end: End
) -> None:
    harness = Harness(tmp_path)

    async def leave(address: Address) -> None:
        harness.spawn.at(address).end(0)
        await trio.sleep_forever()

    harness.control.unload = leave
    gone = await end(harness)
    assert harness.happened() == [(0, "Free")]
    assert (gone.exit_code, gone.error) == (0, None)


@both_ends
async def test_a_backend_that_drains_by_itself_is_not_asked_to_let_go(
    tmp_path: Path, autojump_clock: MockClock, end: End
) -> None:
    harness = Harness(tmp_path, drains_on_term=True)
    await end(harness)
    assert harness.happened() == [(0, "SIGTERM"), (5, "SIGKILL")]


@pytest.mark.parametrize("stage", [Observed.STARTING, Observed.LOADING])
@pytest.mark.parametrize("is_shutdown", [False, True])
async def test_a_backend_that_is_not_ready_is_not_asked_to_let_go(
    tmp_path: Path, autojump_clock: MockClock, stage: Observed, is_shutdown: bool
) -> None:
    spawn = FakeSpawn()
    control = FakeControl(spawn, load=never)
    if stage is Observed.STARTING:
        control.healthy = never
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", stage)
        if not is_shutdown:
            await worker.want()
            await worker.wait_report("a", Observed.GONE)
    assert control.freed == []
    assert [name for _, name in spawn.started[0].signals] == ["SIGTERM"]


async def test_w8_a_drained_backend_is_asked_after_its_drain(tmp_path: Path, autojump_clock: MockClock) -> None:
    spawn = FakeSpawn()
    control = FakeControl(spawn)
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        begin = trio.current_time()
        await worker.want(desired_replica("a", Desired.DRAIN))
        assert (await worker.wait_report("a", Observed.GONE)).error is None
    assert [round(time - begin) for time, _ in control.freed] == [30]


async def test_w8_a_shutdown_amid_a_stop_does_not_ask_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    spawn = FakeSpawn(ignores_term=True)
    control = FakeControl(spawn, unload=never)
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        await worker.want()
        await trio.sleep(2)
        begin = trio.current_time()
    assert len(control.freed) == 1
    assert [(round(time - begin), name) for time, name in spawn.started[0].signals] == [(0, "SIGTERM"), (5, "SIGKILL")]


@pytest.mark.parametrize(("stage", "final"), [(Observed.LOADING, Observed.FAILED), (Observed.READY, Observed.GONE)])
async def test_a_replica_above_its_memory_limit_ends_and_says_why(
    tmp_path: Path, autojump_clock: MockClock, stage: Observed, final: Observed
) -> None:
    spawn = FakeSpawn()
    watched: list[tuple[int, int]] = []

    async def outgrow(pid: int, limit_bytes: int) -> int:
        watched.append((pid, limit_bytes))
        await trio.sleep(100)
        return USED_BYTES

    async def load(address: Address) -> None:
        await trio.sleep(1000 if stage is Observed.LOADING else 1)

    settings = replace(settings_in(tmp_path), memory_limit_bytes=LIMIT_BYTES)
    context = ReplicaContext(
        settings=settings,
        ports=PortAllocator(settings.port_range, settings.bind_host, tmp_path),
        journal=ProcessJournal(settings.state_folder),
        artifacts=ArtifactStore(settings.models_dir),
        spawn=spawn,
        control=FakeControl(spawn, load=load),
        wait_memory_above=outgrow,
    )
    reports: list[Report] = []
    await ReplicaTask(desired_replica("a"), context, reports.append).run()
    assert watched == [(spawn.started[0].pid, LIMIT_BYTES)]
    assert [report.observed for report in reports[-2:]] == [stage, final]
    assert reports[-1].error == describe_excess(USED_BYTES, LIMIT_BYTES)
    assert [(round(time), name) for time, name in spawn.started[0].signals] == [(100, "SIGTERM")]
