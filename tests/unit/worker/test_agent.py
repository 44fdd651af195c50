"""The agent and its replicas on Trio's virtual clock: no process, no socket but the ports' bind test."""

import json
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MemoryReceiveStream, MockClock, wait_all_tasks_blocked

from gateway.backends.protocol import BackendNotReady, LoadFailed
from gateway.domain.ids import Address
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.session import DesiredSet
from gateway.worker.process.command import BackendProgram
from gateway.worker.replica import LAST_OUTPUT_SECONDS_MAX, PORT_ATTEMPTS_MAX
from tests.fakes.worker_harness import desired_replica, open_worker, settings_in
from tests.fakes.worker_parts import FakeControl, FakeProcess, FakeSpawn

DRAINING_ITSELF = {"fake": BackendProgram(("fake-backend",), drains_on_term=True)}


@pytest.fixture
def spawn() -> FakeSpawn:
    return FakeSpawn()


@pytest.fixture
def control(spawn: FakeSpawn) -> FakeControl:
    return FakeControl(spawn)


def failing(error: Exception) -> Callable[[Address], Awaitable[None]]:
    async def fail(address: Address) -> None:
        raise error

    return fail


async def never(address: Address) -> None:
    await trio.sleep_forever()


def signals_of(process: FakeProcess) -> list[str]:
    return [name for _, name in process.signals]


async def test_a_replica_comes_up_and_says_where_it_is(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    settings = replace(settings_in(tmp_path), advertise_host="box-7")
    async with open_worker(settings, spawn, control) as worker:
        await worker.want(desired_replica("a", context_size=2048))
        ready = await worker.wait_report("a", Observed.READY)
        (replica,) = worker.agent.statistics().replicas
        assert ready.address == f"box-7:{replica.port}"
        assert ready.pid == replica.pid == spawn.started[0].pid
        assert spawn.started[0].command == ("fake-backend", "--addr", f"127.0.0.1:{replica.port}")
        assert [(options.Model, options.ContextSize) for options in control.loads] == [("a", 2048)]


async def test_the_same_set_again_changes_nothing(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        for _ in range(3):
            await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        await worker.want(desired_replica("a"))
        await wait_all_tasks_blocked()
        assert len(spawn.started) == len(control.loads) == 1


async def test_w4_a_slow_load_holds_up_nothing_else(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async def load(address: Address) -> None:
        if spawn.started[0].command[-1] == address:
            await trio.sleep_forever()

    control.load = load
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("slow"))
        await worker.wait_report("slow", Observed.LOADING)
        await worker.want(desired_replica("slow"), desired_replica("quick"))
        await worker.wait_report("quick", Observed.READY)
        assert worker.states_of("slow")[-1] is Observed.LOADING


async def test_h14_a_stop_on_request_is_no_error(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        with capture_logs() as logs:
            await worker.want(desired_replica("a", Desired.STOP))
            gone = await worker.wait_report("a", Observed.GONE)
    assert gone.error is None
    assert gone.exit_code == -15
    assert not [entry for entry in logs if entry["log_level"] in {"warning", "error"}]


async def test_h14_an_exit_nobody_asked_for_is_one(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        with capture_logs() as logs:
            spawn.started[0].write("out of memory\n")
            spawn.started[0].end(-9)
            gone = await worker.wait_report("a", Observed.GONE)
    assert gone.exit_code == -9
    assert gone.error == "the backend process was killed by SIGKILL while ready; its last output:\nout of memory"
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["worker.replica_broke"]


async def test_w12_a_replica_missing_from_the_set_is_stopped(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"), desired_replica("b"))
        await worker.wait_report("a", Observed.READY)
        await worker.wait_report("b", Observed.READY)
        await worker.want(desired_replica("b"))
        await worker.wait_report("a", Observed.GONE)
        assert [replica.replica_id for replica in worker.agent.statistics().replicas] == ["b"]


async def test_w12_stopping_what_never_ran_here_ends_its_row(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a", Desired.STOP), desired_replica("b", Desired.DRAIN))
        assert (await worker.wait_report("a", Observed.GONE)).error is None
        assert (await worker.wait_report("b", Observed.GONE)).error is None
        assert not spawn.started


async def test_l13_a_set_of_an_older_leader_is_refused(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"), epoch=5)
        await worker.wait_report("a", Observed.READY)
        with capture_logs() as logs:
            await worker.want(desired_replica("b"), epoch=4)
            await wait_all_tasks_blocked()
        assert worker.agent.statistics().epoch == 5
        worker.agent.all_reports()  # a session with a registry that begins anew, or was restored
        await worker.want(desired_replica("a"), epoch=1)
        await trio.testing.wait_all_tasks_blocked()
        assert worker.agent.statistics().epoch == 1
        assert [replica.replica_id for replica in worker.agent.statistics().replicas] == ["a"]
        assert [entry["event"] for entry in logs] == ["worker.stale_desired_set"]


async def test_an_ended_replica_is_never_started_again_and_its_end_is_said_again(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    control.load = failing(LoadFailed("no such tensor"))
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        first = await worker.wait_report("a", Observed.FAILED)
        await worker.want(desired_replica("a"))
        await wait_all_tasks_blocked()
        assert worker.states_of("a")[-2:] == [Observed.FAILED, Observed.FAILED]
        assert worker.history[-1] == first
        assert len(spawn.started) == 1


async def test_an_ended_replica_that_an_older_view_lists_again_is_not_started(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    control.load = failing(LoadFailed("no such tensor"))
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.FAILED)
        await worker.want()
        await worker.want(desired_replica("a"))
        await wait_all_tasks_blocked()
        assert worker.states_of("a")[-2:] == [Observed.FAILED, Observed.FAILED]
        assert len(spawn.started) == 1


async def test_l20_a_failed_load_carries_the_backends_message(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    control.load = failing(LoadFailed("no such tensor"))
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.error == "no such tensor"
    assert signals_of(spawn.started[0]) == ["SIGTERM"]


async def test_l21_a_backend_that_is_never_ready_fails_in_time(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    control.healthy = failing(BackendNotReady("connection refused"))
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.error == "the backend was not ready within 60 s of its start (connection refused)"
    assert Observed.LOADING not in worker.states_of("a")


async def test_l21_a_health_call_without_an_answer_is_asked_again(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    asked = 0

    async def hang_once(address: Address) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await trio.sleep_forever()

    control.healthy = hang_once
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
    assert asked == 2


async def test_l22_an_exit_before_ready_shows_code_and_output(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async def crash(address: Address) -> None:
        spawn.at(address).write("CUDA not found\n")
        spawn.at(address).end(3)
        raise LoadFailed("connection lost")

    control.load = crash
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.exit_code == 3
    assert failed.error == (
        "the backend process exited with code 3 while loading (connection lost); its last output:\nCUDA not found"
    )


async def test_l22_what_a_process_wrote_just_before_its_end_is_read_after_it(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    """The worker gets to it only a while after it has seen the end."""

    async def come_late() -> None:
        await trio.sleep(LAST_OUTPUT_SECONDS_MAX / 2)

    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        process = spawn.started[0]
        assert isinstance(process.output, MemoryReceiveStream)
        process.output.receive_some_hook = come_late
        process.write("still up\n")  # for the read that has begun already
        await wait_all_tasks_blocked()
        process.write("out of memory\nabort")
        process.end(-6)
        gone = await worker.wait_report("a", Observed.GONE)
    assert gone.error == (
        "the backend process was killed by SIGABRT while ready; its last output:\nstill up\nout of memory\nabort"
    )


async def test_l7_l8_a_load_without_end_is_ended_with_its_process(tmp_path: Path, autojump_clock: MockClock) -> None:
    spawn = FakeSpawn(ignores_term=True)  # as an engine that is deaf while it loads
    control = FakeControl(spawn, load=never)
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a", load_timeout_seconds=1000.0))
        begin = trio.current_time()
        failed = await worker.wait_report("a", Observed.FAILED)
        assert trio.current_time() - begin >= 1000
    assert failed.error is not None
    assert failed.error.startswith("loading timed out after 1000 s")
    assert signals_of(spawn.started[0]) == ["SIGTERM", "SIGKILL"]


@pytest.mark.parametrize("stage", [Observed.STARTING, Observed.LOADING])
async def test_a_stop_while_it_comes_up_is_no_failure(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl, stage: Observed
) -> None:
    control.healthy = never if stage is Observed.STARTING else control.healthy
    control.load = never
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", stage)
        await worker.want()
        gone = await worker.wait_report("a", Observed.GONE)
    assert gone.error is None
    assert signals_of(spawn.started[0]) == ["SIGTERM"]


async def test_a_load_that_breaks_because_of_the_stop_is_no_failure(tmp_path: Path, autojump_clock: MockClock) -> None:
    spawn = FakeSpawn(ignores_term=True)

    async def break_at_term(address: Address) -> None:
        while not spawn.at(address).signals:  # noqa: ASYNC110 - virtual time, and the fake has no event for it
            await trio.sleep(0.1)
        raise LoadFailed("connection lost")

    async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn, load=break_at_term)) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.LOADING)
        await worker.want()
        assert (await worker.wait_report("a", Observed.GONE)).error is None


async def test_a_load_that_completes_after_the_stop_does_not_make_it_ready(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    spawn = FakeSpawn(ignores_term=True)

    async def complete_late(address: Address) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)

    async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn, load=complete_late)) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.LOADING)
        await worker.want()
        await worker.wait_report("a", Observed.GONE)
        assert Observed.READY not in worker.states_of("a")


async def test_l6_a_stop_ends_the_verification_of_a_large_artifact(tmp_path: Path, spawn: FakeSpawn) -> None:
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / "large").open("wb") as file:
        file.truncate(2**40)
    async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn)) as worker:
        await worker.want(desired_replica("a", artifact="file:large", sha256="0" * 64))
        await worker.wait_report("a", Observed.FETCHING)
        await worker.want()
        assert (await worker.wait_report("a", Observed.GONE)).error is None
    assert not spawn.started


async def test_a_stop_before_the_process_starts_none(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        worker.to_worker.send_nowait(DesiredSet(1, (desired_replica("a"),)))
        worker.to_worker.send_nowait(DesiredSet(1, ()))
        await worker.wait_report("a", Observed.GONE)
        assert not spawn.started


async def test_a_drain_of_a_backend_that_drains_on_term_begins_with_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    spawn = FakeSpawn(ignores_term=True)
    async with open_worker(settings_in(tmp_path, DRAINING_ITSELF), spawn, FakeControl(spawn)) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        begin = trio.current_time()
        await worker.want(desired_replica("a", Desired.DRAIN))
        await worker.wait_report("a", Observed.DRAINING)
        gone = await worker.wait_report("a", Observed.GONE)
    assert gone.error is None
    times = [(round(time - begin), name) for time, name in spawn.started[0].signals]
    assert times == [(0, "SIGTERM"), (30, "SIGTERM"), (35, "SIGKILL")]


async def test_w11_a_drain_of_any_other_backend_leaves_it_alone_until_the_stop(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        await worker.want(desired_replica("a", Desired.DRAIN))
        await worker.wait_report("a", Observed.DRAINING)
        begin = trio.current_time()
        await trio.sleep(20)
        assert not spawn.started[0].signals
        await worker.want(desired_replica("a", Desired.STOP))
        assert (await worker.wait_report("a", Observed.GONE)).error is None
        assert trio.current_time() - begin < 30


async def test_a_drain_is_not_taken_back(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        await worker.want(desired_replica("a", Desired.DRAIN))
        await worker.want(desired_replica("a", Desired.RUN))
        await worker.wait_report("a", Observed.GONE)


async def test_w10_a_port_stays_taken_until_its_process_was_reaped(tmp_path: Path, autojump_clock: MockClock) -> None:
    spawn = FakeSpawn(ignores_term=True)
    async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn)) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        (replica,) = worker.agent.statistics().replicas
        await worker.want()
        await wait_all_tasks_blocked()
        allocator = worker.agent._context.ports
        assert replica.port is not None
        assert allocator._try_lock(replica.port) is None
        await worker.wait_report("a", Observed.GONE)
        with allocator.reserve():
            release = allocator._try_lock(replica.port)
            assert release is not None
            release()


async def test_l23_a_missing_artifact_fails_before_any_process(tmp_path: Path, spawn: FakeSpawn) -> None:
    async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn)) as worker:
        await worker.want(desired_replica("a", artifact="file:nowhere.gguf"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.error == f"artifact file {tmp_path / 'models' / 'nowhere.gguf'} does not exist"
    assert not spawn.started


async def test_an_unknown_backend_is_named(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a", backend="whisper"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.error == "this worker has no backend 'whisper'; it has fake, llama-cpp"


async def test_a_machine_that_cannot_start_processes_says_so(tmp_path: Path, autojump_clock: MockClock) -> None:
    spawn = FakeSpawn(error=BlockingIOError(11, "Resource temporarily unavailable"))
    async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn)) as worker:
        await worker.want(desired_replica("a"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.error is not None
    assert "Resource temporarily unavailable" in failed.error


async def test_a_bug_in_one_replica_leaves_the_others_and_is_logged(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("good"))
        await worker.wait_report("good", Observed.READY)
        control.load = failing(ZeroDivisionError("a bug"))
        with capture_logs() as logs:
            await worker.want(desired_replica("good"), desired_replica("bad"))
            failed = await worker.wait_report("bad", Observed.FAILED)
        assert worker.states_of("good")[-1] is Observed.READY
    assert failed.error is not None
    assert "a bug" in failed.error
    assert signals_of(spawn.started[1]) == ["SIGTERM"]
    assert [entry["event"] for entry in logs if entry.get("exc_info")] == ["worker.replica_task_failed"]


async def test_shutdown_ends_all_at_once_within_the_bound_and_says_so(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    spawn = FakeSpawn(ignores_term=True)
    settings = settings_in(tmp_path)
    async with open_worker(settings, spawn, FakeControl(spawn)) as worker:
        await worker.want(desired_replica("a"), desired_replica("b"), desired_replica("c"))
        for name in "abc":
            await worker.wait_report(name, Observed.READY)
        assert len(json.loads((settings.state_folder / "processes.json").read_text())["processes"]) == 3
        begin = trio.current_time()
    assert round(trio.current_time() - begin) == 5
    assert [signals_of(process) for process in spawn.started] == [["SIGTERM", "SIGKILL"]] * 3
    assert [worker.states_of(name)[-1] for name in "abc"] == [Observed.GONE] * 3
    assert json.loads((settings.state_folder / "processes.json").read_text()) == {"processes": []}


class PortTakingSpawn(FakeSpawn):
    """Another program listens at the address before the process does, at most `taken_ports_max` times."""

    def __init__(self, taken_ports_max: int) -> None:
        super().__init__()
        self.taken_ports_max = taken_ports_max
        self.sockets: list[socket.socket] = []

    def __call__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> FakeProcess:
        process = super().__call__(command, env=env, cwd=cwd)
        if len(self.sockets) < self.taken_ports_max:
            host, port = command[-1].split(":")
            self.sockets.append(socket.create_server((host, int(port))))
            process.end(1)
        return process

    def close(self) -> None:
        for taken in self.sockets:
            taken.close()


async def test_another_port_is_tried_when_somebody_was_faster(tmp_path: Path, autojump_clock: MockClock) -> None:
    spawn = PortTakingSpawn(2)
    with closing(spawn), capture_logs() as logs:
        async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn)) as worker:
            await worker.want(desired_replica("a"))
            ready = await worker.wait_report("a", Observed.READY)
    addresses = [process.command[-1] for process in spawn.started]
    assert len(set(addresses)) == len(addresses) == 3
    assert (ready.address, ready.pid, ready.error) == (addresses[-1], spawn.started[-1].pid, None)
    assert [entry["attempt"] for entry in logs if entry["event"] == "worker.port_taken"] == [1, 2]
    assert json.loads((tmp_path / "state" / "processes.json").read_text()) == {"processes": []}


async def test_a_backend_that_says_its_address_is_in_use_is_believed(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async def lose(address: Address) -> None:
        if len(spawn.started) == 1:
            spawn.started[0].write("RuntimeError: Failed to bind to address")
            spawn.started[0].end(1)
            await trio.sleep_forever()

    control.healthy = lose
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        assert (await worker.wait_report("a", Observed.READY)).pid == spawn.started[1].pid


async def test_ports_that_are_taken_every_time_end_the_start_with_the_cause(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    spawn = PortTakingSpawn(100)
    with closing(spawn):
        async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn)) as worker:
            await worker.want(desired_replica("a"))
            failed = await worker.wait_report("a", Observed.FAILED)
    assert len(spawn.started) == PORT_ATTEMPTS_MAX
    assert failed.exit_code == 1
    assert "exited with code 1 while starting (another program took port" in (failed.error or "")


async def test_a_process_that_ends_at_its_start_for_another_reason_is_started_once(
    tmp_path: Path, autojump_clock: MockClock, spawn: FakeSpawn, control: FakeControl
) -> None:
    async def crash(address: Address) -> None:
        spawn.started[0].write("no such device")
        spawn.started[0].end(3)
        await trio.sleep_forever()

    control.healthy = crash
    async with open_worker(settings_in(tmp_path), spawn, control) as worker:
        await worker.want(desired_replica("a"))
        assert (await worker.wait_report("a", Observed.FAILED)).exit_code == 3
    assert len(spawn.started) == 1


async def test_a_replica_that_is_not_wanted_any_more_tries_no_other_port(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    spawn = PortTakingSpawn(100)
    with closing(spawn):
        async with open_worker(settings_in(tmp_path), spawn, FakeControl(spawn)) as worker:
            await worker.want(desired_replica("a"))
            await worker.wait_report("a", Observed.STARTING)
            await worker.want()
            await worker.wait_report("a", Observed.GONE, Observed.FAILED)
    assert len(spawn.started) <= 2
