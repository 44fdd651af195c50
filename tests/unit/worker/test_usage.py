"""What a replica holds when it is ready, and how far its file is while it is fetched."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pynvml
import pytest
import trio
from trio.testing import MockClock

from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.session import Report
from gateway.worker.artifacts.download import SILENCE_SECONDS
from gateway.worker.artifacts.reference import ArtifactError
from gateway.worker.artifacts.source import GatewaySource
from gateway.worker.artifacts.store import ArtifactStore
from gateway.worker.hostinfo.nvidia import read_process_memory
from gateway.worker.process import resource_usage as usage
from gateway.worker.process.journal import ProcessJournal
from gateway.worker.process.ports import PortAllocator
from gateway.worker.process.resource_usage import UNKNOWN_USAGE, ResourceUsage, measure_usage
from gateway.worker.replica import ReplicaContext, ReplicaTask
from gateway.worker.settings import WorkerSettings
from tests.fakes.fetching import patient_clock, sha256_of
from tests.fakes.file_server import Turn, open_file_server
from tests.fakes.nvml import GIB, FakeDevice, FakeNvml, FakeUser
from tests.fakes.worker_harness import desired_replica, open_worker, settings_in
from tests.fakes.worker_parts import FakeControl, FakeSpawn

Measure = Callable[[int], Awaitable[ResourceUsage]]
FILE: Final = b"weights" * 1000


@pytest.fixture
def clock() -> MockClock:
    return patient_clock()


def test_gpu_memory_is_that_of_the_processes_on_all_gpus() -> None:
    here = FakeDevice(running=(FakeUser(1, GIB), FakeUser(2, GIB), FakeUser(9, 50 * GIB)))
    nvml = FakeNvml([here, FakeDevice(running=(FakeUser(1, 2 * GIB),)), FakeDevice()])
    assert read_process_memory((1, 2), nvml) == 4 * GIB
    assert read_process_memory((3,), nvml) is None
    assert nvml.opened == 0


def test_gpu_memory_of_parts_is_found() -> None:
    parts = (FakeDevice(running=(FakeUser(1, GIB),)), pynvml.NVMLError_NotFound())
    assert read_process_memory((1,), FakeNvml([FakeDevice(parts=parts)])) == GIB


@pytest.mark.parametrize("running", [(FakeUser(1, None),), pynvml.NVMLError_NotSupported()])
def test_a_driver_that_does_not_say_leaves_it_unknown(running: tuple[FakeUser, ...] | Exception) -> None:
    nvml = FakeNvml([FakeDevice(running=running)])
    assert read_process_memory((1,), nvml) is None
    assert nvml.opened == 0


def test_a_gpu_that_fails_hides_no_other() -> None:
    nvml = FakeNvml([pynvml.NVMLError_GpuIsLost(), FakeDevice(running=(FakeUser(1, GIB),))])
    assert read_process_memory((1,), nvml) == GIB
    assert read_process_memory((1,), FakeNvml(driver=pynvml.NVMLError_LibraryNotFound())) is None


async def test_usage_is_of_the_whole_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def read(pids: tuple[int, ...]) -> int:
        asked.append(pids)
        return GIB

    monkeypatch.setattr(usage, "read_process_memory", read)
    measured = await measure_usage(os.getpgid(0))
    assert measured.vram_bytes == GIB
    assert measured.ram_bytes is not None
    assert os.getpid() in asked[0]


async def test_a_driver_that_hangs_keeps_nobody_from_serving(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def hang(*_: object, **__: object) -> ResourceUsage:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(trio.to_thread, "run_sync", hang)
    assert await measure_usage(1) == UNKNOWN_USAGE


def context_in(settings: WorkerSettings, spawn: FakeSpawn, measure: Measure = measure_usage) -> ReplicaContext:
    return ReplicaContext(
        settings=settings,
        ports=PortAllocator(settings.port_range, settings.bind_host, settings.state_folder.parent),
        journal=ProcessJournal(settings.state_folder),
        artifacts=ArtifactStore(
            settings.models_dir, gateway=settings.gateway, cache_bytes_max=settings.cache_bytes_max
        ),
        spawn=spawn,
        control=FakeControl(spawn),
        measure_usage=measure,
    )


async def test_a_ready_replica_says_what_it_holds(tmp_path: Path, autojump_clock: MockClock) -> None:
    async def measure(pid: int) -> ResourceUsage:
        assert pid == spawn.started[0].pid
        await trio.lowlevel.checkpoint()
        return ResourceUsage(3 * GIB, 2 * GIB)

    def note(report: Report) -> None:
        reports.append(report)
        if report.observed is Observed.READY:
            states.append(repr(task))
            task.desire(Desired.STOP)
            states.append(repr(task))

    spawn, reports, states = FakeSpawn(), list[Report](), list[str]()
    task = ReplicaTask(desired_replica("a"), context_in(settings_in(tmp_path), spawn, measure), note)
    await task.run()
    pid, model = spawn.started[0].pid, desired_replica("a").spec.name
    assert states == [f"<ReplicaTask {model} a ready desired={wanted} pid={pid}>" for wanted in ("run", "stop")]
    (ready,) = (report for report in reports if report.observed is Observed.READY)
    assert (ready.ram_bytes, ready.vram_bytes) == (3 * GIB, 2 * GIB)


async def test_l5_a_replica_says_how_far_its_file_is(tmp_path: Path, clock: MockClock) -> None:
    gateway = GatewaySource()
    settings = replace(settings_in(tmp_path), gateway=gateway)
    spawn = FakeSpawn()
    async with open_file_server(FILE, Turn(stall_after=1000)) as server:
        gateway.point_at(server.origin, {})
        async with open_worker(settings, spawn, FakeControl(spawn)) as worker:
            await worker.want(desired_replica("a", artifact="file:w", sha256=sha256_of(FILE)))
            await worker.wait_report("a", Observed.READY)
    reported = [(each.done_bytes, each.total_bytes) for each in worker.history if each.observed is Observed.FETCHING]
    assert reported[0] == (None, None)
    assert (1000, len(FILE)) in reported
    assert all(report.done_bytes is None for report in worker.history if report.observed is not Observed.FETCHING)


async def test_l8_a_stop_ends_a_download_and_keeps_its_part(tmp_path: Path, clock: MockClock) -> None:
    gateway, spawn, reports = GatewaySource(), FakeSpawn(), list[Report]()
    settings = replace(settings_in(tmp_path), gateway=gateway)
    async with open_file_server(FILE, Turn(stall_after=1000)) as server:
        gateway.point_at(server.origin, {})
        wanted = desired_replica("a", artifact="file:w", sha256=sha256_of(FILE))
        task = ReplicaTask(wanted, context_in(settings, spawn), reports.append)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run)
            while not list((settings.models_dir / "cache").glob("*.part")):  # noqa: ASYNC110 - the thread that makes it takes real time
                await trio.sleep(0.1)
            await trio.sleep(0.1)  # ends once nothing else can run, so all that the server has sent is read
            task.desire(Desired.STOP)
        assert trio.current_time() - began < SILENCE_SECONDS  # virtual: it did not wait for the server
    assert (reports[-1].observed, reports[-1].error) == (Observed.GONE, None)
    assert spawn.started == []
    (part,) = (settings.models_dir / "cache").glob("*.part")
    assert part.read_bytes() == FILE[:1000]


async def test_p1_the_file_of_a_running_replica_is_not_removed_for_another(tmp_path: Path, clock: MockClock) -> None:
    gateway, spawn, is_ready = GatewaySource(), FakeSpawn(), trio.Event()
    settings = replace(settings_in(tmp_path), gateway=gateway, cache_bytes_max=len(FILE))
    context = context_in(settings, spawn)
    first, other = (desired_replica("a", artifact=f"file:{name}", sha256=sha256_of(FILE)) for name in ("one", "two"))

    def note(report: Report) -> None:
        if report.observed is Observed.READY:
            is_ready.set()

    async with open_file_server(FILE) as server:
        gateway.point_at(server.origin, {})
        task = ReplicaTask(first, context, note)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run)
            await is_ready.wait()
            with pytest.raises(ArtifactError, match=r"worker\.cache_size"):
                await context.artifacts.fetch(other.spec)
            task.desire(Desired.STOP)
        await context.artifacts.fetch(other.spec)
