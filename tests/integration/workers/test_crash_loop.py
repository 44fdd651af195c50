"""Backends that end as soon as they start, again and again: nothing of the thousand that were is left, and the model is
left alone for a while."""

import gc
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Final

import psutil
import pytest
import trio
import trio.testing

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import open_bridge
from gateway.config.units import PortRange
from gateway.domain.lifecycle import FINAL, Observed
from gateway.domain.session import Report
from gateway.planner.builder import backoff_seconds
from gateway.worker.process.command import BackendProgram
from gateway.worker.process.output import OutputLog
from gateway.worker.process.spawn import spawn_process
from gateway.worker.replica import ReplicaTask
from tests.amounts import amounts_to_run
from tests.fakes.own_processes import own_children
from tests.fakes.worker_harness import WorkerHarness, desired_replica, open_worker, settings_in
from tests.integration.harness import events_in, loads_allowed, running_gateway, scripted_config, together

WARM_UP: Final = 100
AT_A_TIME: Final = 4
PATIENCE_SECONDS: Final = 500
"""A watchdog, far above what anything here takes: reaching it means "never"."""
PORTS: Final = PortRange(22600, 22619)
"""Few, so that each is used again and again."""
RSS_SLACK_BYTES: Final = 12 * 2**20
EXIT: Final = 3
LISTENS: Final = "0A"
"""The state of a listening socket in /proc/net/tcp."""
SHORT_LIVED: Final = f"""
import _socket, os, sys
listener = _socket.socket()
listener.bind(("127.0.0.1", int(sys.argv[-1].rpartition(":")[2])))
listener.listen()
os.write(2, b"no such device" * 20)
os._exit({EXIT})
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@dataclass(frozen=True)
class Footprint:
    """What the worker's process holds."""

    descriptors: int
    tasks: int
    threads: int
    replica_objects: int
    rss_bytes: int


def footprint() -> Footprint:
    gc.collect()
    return Footprint(
        len(list(Path("/proc/self/fd").iterdir())),
        trio.lowlevel.current_statistics().tasks_living,
        threading.active_count(),
        sum(type(each) in {ReplicaTask, OutputLog} for each in gc.get_objects()),
        psutil.Process().memory_info().rss,
    )


def locked_ports(folder: Path) -> set[int]:
    """Those whose lock file this process has open."""
    opened = (_target(each) for each in Path("/proc/self/fd").iterdir())
    return {int(path.stem) for path in opened if path is not None and path.parent == folder}


def _target(descriptor: Path) -> Path | None:
    try:
        return descriptor.readlink()
    except FileNotFoundError:  # it was the one that lists them
        return None


def ports_with_listeners() -> set[int]:
    """Returns the ports that any process listens on. The kernel's own table is read, since psutil would look for the
    process of each line."""
    with Path("/proc/net/tcp").open() as table:
        next(table)  # its heading
        # Listening sockets come first. What follows is not read: to find it the kernel looks through all that it has
        # room for, which takes ten milliseconds.
        listening = takewhile(lambda fields: fields[3] == LISTENS, map(str.split, table))
        return {int(fields[1].rpartition(":")[2], 16) for fields in listening}


def listening_ports() -> set[int]:
    return {port for port in ports_with_listeners() if PORTS.first <= port <= PORTS.last}


@linux_only
def test_a_listener_is_found_as_long_as_it_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stays, socket.create_server(("127.0.0.1", 0)) as goes:
        with socket.create_connection(stays.getsockname()) as connected:
            ports = {each.getsockname()[1] for each in (stays, goes, connected)}
            listening = {each.getsockname()[1] for each in (stays, goes)}
            assert ports & ports_with_listeners() == listening
        listening.remove(goes.getsockname()[1])
        goes.close()
        assert ports & ports_with_listeners() == listening


def recorded_pids(folder: Path) -> set[int]:
    text = (folder / "state" / "processes.json").read_text()
    return {record["pid"] for record in json.loads(text)["processes"]}


class CrashLoop:
    """Wants a few replicas at a time, each of a new id; looks at what is held whenever one has ended."""

    def __init__(self, worker: WorkerHarness, folder: Path) -> None:
        self._worker = worker
        self._folder = folder
        self._names = (f"r{number}" for number in count())
        self._wanted: list[str] = []

    async def run(self, crashes: int) -> Footprint:
        """Returns what is held when no replica is left."""
        self._wanted = [next(self._names) for _ in range(AT_A_TIME)]
        for _ in range(crashes):
            await self._worker.want(*map(desired_replica, self._wanted))
            report = await self._next_end()
            self._wanted.remove(report.replica_id)
            self._wanted.append(next(self._names))
            self._check_held()
        await self._worker.want()
        await self._worker.agent.wait_empty()
        await trio.testing.wait_all_tasks_blocked()
        return footprint()

    async def _next_end(self) -> Report:
        while True:
            message = await self._worker.from_worker.receive()
            if isinstance(message, Report) and message.observed in FINAL and message.replica_id in self._wanted:
                assert (message.observed, message.exit_code) == (Observed.FAILED, EXIT), message
                return message

    def _check_held(self) -> None:
        """In one go: nothing can end in between, as far as the worker is concerned."""
        listening = listening_ports()
        processes = [each for each in self._worker.agent.statistics().replicas if each.pid is not None]
        assert locked_ports(self._folder / "locks") == {each.port for each in processes}
        assert listening <= {each.port for each in processes}
        assert recorded_pids(self._folder) == {each.pid for each in processes}
        assert len(processes) <= AT_A_TIME


@linux_only
@pytest.mark.parametrize("crashes", amounts_to_run(1000, quick=40, variable="CRASHES"))
async def test_h6_crashes_hold_nothing(tmp_path: Path, crashes: int) -> None:
    (tmp_path / "locks").mkdir()
    program = BackendProgram((sys.executable, "-I", "-S", "-c", SHORT_LIVED))
    settings = replace(settings_in(tmp_path, {"fake": program}), port_range=PORTS, port_lock_folder=tmp_path / "locks")
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_bridge() as bridge,
            open_worker(settings, spawn_process, GrpcBackendControl(bridge)) as worker,
        ):
            loop = CrashLoop(worker, tmp_path)
            before = await loop.run(WARM_UP)
            after = await loop.run(crashes)
            assert locked_ports(tmp_path / "locks") == listening_ports() == recorded_pids(tmp_path) == set()
            assert not own_children()
    assert after.descriptors <= before.descriptors
    assert after.tasks <= before.tasks
    assert after.threads <= before.threads  # fewer, when idle ones of the warm-up have ended
    assert after.replica_objects == 0
    assert after.rss_bytes - before.rss_bytes < RSS_SLACK_BYTES


def test_l9_l22_a_crash_loop_is_few_starts_for_a_hundred_requests(tmp_path: Path) -> None:
    log = tmp_path / "events"
    config = scripted_config({"exit_at_start": EXIT, "stderr": "no such device: cuda:7"}, log=log)
    with running_gateway(tmp_path, config) as gateway:
        began = time.monotonic()
        answers = [answer for _ in range(5) for answer in together(20, lambda _: gateway.chat("scripted"))]
        allowed = loads_allowed(time.monotonic() - began)
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {
            (503, "model_load_failed")
        }
        for answer in answers:
            message = answer.json()["error"]["message"]
            assert f"exited with code {EXIT}" in message
            assert "no such device: cuda:7" in message
            assert 1 <= int(answer.headers["retry-after"]) <= backoff_seconds(allowed)
        assert 1 <= len(events_in(log, "start")) <= allowed
        model = gateway.model("scripted")
        assert model["status"] == "load_failed"
        assert gateway.backend_pids() == []
