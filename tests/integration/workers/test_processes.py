"""The worker with real processes, real signals and real gRPC to them."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import open_bridge
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.worker.process.journal import ProcessRecord, start_mark
from gateway.worker.process.spawn import BackendProcess, SpawnProcess, spawn_process, wait_exit
from tests.fakes.worker_harness import REPOSITORY, WorkerHarness, desired_replica, open_worker, scripted, settings_in

PATIENCE_SECONDS = 60
"""A watchdog, far above what anything here takes: reaching it means "never"."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd, PR_SET_PDEATHSIG and /proc")


@asynccontextmanager
async def open_real_worker(
    folder: Path,
    script: Mapping[str, object],
    *,
    stop_timeout_seconds: float = 5.0,
    spawn: SpawnProcess = spawn_process,
) -> AsyncIterator[WorkerHarness]:
    settings = replace(
        settings_in(folder, scripted(script, folder / "events.jsonl")), stop_timeout_seconds=stop_timeout_seconds
    )
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_bridge() as bridge,
            open_worker(settings, spawn, GrpcBackendControl(bridge)) as worker,
        ):
            yield worker


class PortTaker:
    """A program that listens at the address of the first process to be started, just before that does."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None

    def spawn(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> BackendProcess:
        if self.socket is None:
            host, port = command[-1].split(":")
            self.socket = socket.create_server((host, int(port)))
        return spawn_process(command, env=env, cwd=cwd)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


async def wait_event(folder: Path, name: str) -> dict[str, Any]:
    while not (found := events(folder, name)):  # noqa: ASYNC110 - another process writes the file
        await trio.sleep(0.01)
    return found[0]


async def test_a_replica_comes_up_with_its_token_and_stops(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {}) as worker:
        await worker.want(desired_replica("a"))
        ready = await worker.wait_report("a", Observed.READY)
        assert ready.pid is not None
        assert "token-of-a" not in " ".join(psutil.Process(ready.pid).cmdline())
        assert psutil.Process(ready.pid).environ()["LOCALAI_GRPC_AUTH_TOKEN"] == "token-of-a"
        await worker.want(desired_replica("a", Desired.STOP))
        gone = await worker.wait_report("a", Observed.GONE)
    assert (gone.exit_code, gone.error) == (0, None)
    assert [event["model"] for event in events(tmp_path, "LoadModel")] == ["a"]
    assert not psutil.pid_exists(ready.pid)


@pytest.mark.parametrize(("backend", "artifact"), [("fake", ""), ("llama-cpp", "builtin:tiny")])
async def test_a_port_that_another_program_has_taken_meanwhile_is_given_up_for_another(
    tmp_path: Path, backend: str, artifact: str
) -> None:
    with closing(PortTaker()) as taker:
        async with open_real_worker(tmp_path, {}, spawn=taker.spawn) as worker:
            await worker.want(desired_replica("a", backend=backend, artifact=artifact))
            ready = await worker.wait_report("a", Observed.READY)
            first = next(report for report in worker.history if report.observed is Observed.STARTING)
        assert ready.address != first.address
        assert ready.pid != first.pid
        assert taker.socket is not None
        assert first.address == f"127.0.0.1:{taker.socket.getsockname()[1]}"


async def test_w7_a_killed_replica_is_reported_gone_and_its_successor_runs(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {}) as worker:
        await worker.want(desired_replica("a"))
        ready = await worker.wait_report("a", Observed.READY)
        assert ready.pid is not None
        os.kill(ready.pid, signal.SIGKILL)
        gone = await worker.wait_report("a", Observed.GONE)
        assert gone.exit_code == -signal.SIGKILL
        assert gone.error == "the backend process was killed by SIGKILL while ready"
        await worker.want(desired_replica("b"))
        await worker.wait_report("b", Observed.READY)


async def test_a_process_that_ignores_term_is_killed_after_the_bound(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {"ignore_term": True}, stop_timeout_seconds=0.2) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        await worker.want()
        gone = await worker.wait_report("a", Observed.GONE)
    assert (gone.exit_code, gone.error) == (-signal.SIGKILL, None)


async def test_l22_a_failing_start_shows_exit_code_and_stderr(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {"stderr": "no such device: cuda:7", "exit_at_start": 3}) as worker:
        await worker.want(desired_replica("a"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.exit_code == 3
    assert failed.error == (
        "the backend process exited with code 3 while starting; its last output:\nno such device: cuda:7"
    )


async def test_l22_what_a_process_wrote_last_can_be_read_after_it_was_reaped(tmp_path: Path) -> None:
    said = b"so many words\n" * 1000  # less than the pipe takes: it ends without a reader
    say = f"import os; os.write(1, {said[:14]!r} * 999); os.write(2, {said[:14]!r}); os.abort()"
    with trio.fail_after(PATIENCE_SECONDS):
        process = spawn_process((sys.executable, "-c", say), env={}, cwd=tmp_path)
        assert await process.wait() == -signal.SIGABRT
        async with process.output:
            assert b"".join([bytes(chunk) async for chunk in process.output]) == said


async def test_l22_a_missing_program_is_named(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_bridge() as bridge,
            open_worker(settings, spawn_process, GrpcBackendControl(bridge)) as worker,
        ):
            await worker.want(desired_replica("a"))
            failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.error is not None
    assert "cannot start 'fake-backend': No such file or directory" in failed.error


@pytest.mark.parametrize("script", [{"load_fails": "bad magic"}, {"load_error": "bad magic"}])
async def test_l20_a_failing_load_shows_the_backends_message(tmp_path: Path, script: Mapping[str, object]) -> None:
    async with open_real_worker(tmp_path, script) as worker:
        await worker.want(desired_replica("a"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.error == "bad magic"


async def test_l22_a_crash_in_the_load_is_explained_by_its_exit(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {"load_exits": 9}) as worker:
        await worker.want(desired_replica("a"))
        failed = await worker.wait_report("a", Observed.FAILED)
    assert failed.exit_code == 9
    assert failed.error is not None
    assert failed.error.startswith("the backend process exited with code 9 while loading")


async def test_l8_a_replica_removed_during_its_load_leaves_no_process(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {"load_delay": 600}) as worker:
        await worker.want(desired_replica("a"))
        await wait_event(tmp_path, "LoadModel")
        await worker.want()
        gone = await worker.wait_report("a", Observed.GONE)
        assert gone.error is None
        assert gone.pid is not None
        assert not psutil.pid_exists(gone.pid)


async def test_a_stop_during_the_start_leaves_no_process(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {"listen_delay": 600}, stop_timeout_seconds=0.2) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.STARTING)
        await worker.want(desired_replica("a", Desired.STOP))
        gone = await worker.wait_report("a", Observed.GONE)
        assert gone.error is None
        assert gone.pid is not None
        assert not psutil.pid_exists(gone.pid)


async def test_what_a_backend_has_started_ends_with_it(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {"grandchild": True}) as worker:
        await worker.want(desired_replica("a"))
        ready = await worker.wait_report("a", Observed.READY)
        grandchild = events(tmp_path, "grandchild")[0]["child"]
        assert ready.pid is not None
        os.kill(ready.pid, signal.SIGKILL)
        await worker.wait_report("a", Observed.GONE)
        await wait_exit(grandchild)


async def test_w5_twenty_replicas_start_at_once(tmp_path: Path) -> None:
    names = [f"model-{number // 2}-{number % 2}" for number in range(20)]
    async with open_real_worker(tmp_path, {}) as worker:
        await worker.want(*map(desired_replica, names))
        ready = [await worker.wait_report(name, Observed.READY) for name in names]
        assert len({report.address for report in ready}) == 20
        assert len(events(tmp_path, "LoadModel")) == 20
        pids = [report.pid for report in ready]
    assert not [pid for pid in pids if pid is not None and psutil.pid_exists(pid)]


async def test_a_flood_of_output_holds_nothing_up(tmp_path: Path) -> None:
    async with open_real_worker(tmp_path, {"stderr": "loading layer", "stderr_repeat": 10_000}) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)


async def test_output_is_read_while_the_worker_shuts_down(tmp_path: Path) -> None:
    """A process whose last words fill the pipe would else wait for SIGKILL."""
    script = {"farewell": "bye", "farewell_repeat": 30_000}  # a pipe holds half of it
    async with open_real_worker(tmp_path, script, stop_timeout_seconds=PATIENCE_SECONDS) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
    assert worker.states_of("a")[-1] is Observed.GONE
    assert worker.history[-1].exit_code == 0


@pytest.mark.parametrize("script", [{}, {"ignore_stdin": True, "ignore_term": True}])
async def test_h13_no_backend_outlives_a_killed_worker(tmp_path: Path, script: Mapping[str, object]) -> None:
    """With `ignore_stdin` only the kernel's parent death signal is left, as for a foreign backend."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SCRIPT": json.dumps(script)}
    command = [sys.executable, "-m", "tests.fakes.worker_program", str(tmp_path)]
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, command, env=env, stdout=subprocess.PIPE, check=False)
            worker: trio.Process = await nursery.start(run)
            assert worker.stdout is not None
            backend_pid = await ready_pid(worker.stdout)
            worker.kill()
            await wait_exit(backend_pid)


async def ready_pid(lines: trio.abc.ReceiveStream) -> int:
    text = b""
    async for chunk in lines:
        text += chunk
        for line in text.splitlines():
            if line.endswith(b"}") and (report := json.loads(line))["observed"] == Observed.READY:
                pid: int = report["pid"]
                return pid
    raise AssertionError(f"the worker ended without a ready replica: {text!r}")


async def test_h13_the_next_worker_ends_what_was_left_behind(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as leftover:  # noqa: ASYNC220 - waited for by pidfd
        record = ProcessRecord(leftover.pid, start_mark(leftover.pid), ReplicaId("old"), 22000)
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "processes.json").write_text(json.dumps({"processes": [vars(record)]}))
        async with open_real_worker(tmp_path, {}):
            assert leftover.poll() == -signal.SIGKILL


@pytest.mark.slow
async def test_h13_an_idle_backend_is_still_alive_after_trios_threads_have_ended(tmp_path: Path) -> None:
    """Pitfall 29: a child of a pooled thread is killed when that thread ends, after 10 s without work."""
    async with open_real_worker(tmp_path, {}) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
        await trio.sleep(13)
        assert worker.states_of("a")[-1] is Observed.READY
