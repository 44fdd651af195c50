"""A worker with real processes under odd conditions: too few ports, stops in every phase, programs and folders that
change under what runs, memory that grows. Whatever happens to one replica, its neighbour's process stays."""

import json
import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import open_bridge
from gateway.config.units import PortRange
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.session import Report
from gateway.worker.process.command import BackendProgram
from gateway.worker.process.ports import can_bind
from gateway.worker.process.spawn import spawn_process
from gateway.worker.settings import WorkerSettings
from tests.fakes.own_processes import own_children
from tests.fakes.worker_harness import REPOSITORY, WorkerHarness, desired_replica, open_worker, scripted, settings_in
from tests.integration.harness import events_in, is_alive, running_gateway, scripted_config, together, wait_for

PATIENCE_SECONDS: Final = 90
"""A watchdog, far above what anything here takes: reaching it means "never"."""
MIB: Final = 2**20
MANY: Final = 20
SLOTS: Final = 2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd, PR_SET_PDEATHSIG and /proc")


@asynccontextmanager
async def open_real_worker(settings: WorkerSettings) -> AsyncIterator[WorkerHarness]:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_bridge() as bridge,
            open_worker(settings, spawn_process, GrpcBackendControl(bridge)) as worker,
        ):
            yield worker


def free_ports(first: int) -> PortRange:
    """As many neighbouring ports as there are slots, which nobody uses at the moment."""
    start = next(
        port for port in range(first, first + 500) if all(can_bind("127.0.0.1", port + n) for n in range(SLOTS))
    )
    return PortRange(start, start + SLOTS - 1)


def own_processes() -> set[int]:
    """Of the worker that runs in this process: no zombie, no orphan of an orphan."""
    return {child.pid for child in own_children() if is_alive(child.pid)}


def recorded_pids(folder: Path) -> set[int]:
    text = (folder / "state" / "processes.json").read_text()
    return {record["pid"] for record in json.loads(text)["processes"]}


def pid_of(report: Report) -> int:
    assert report.pid is not None
    return report.pid


def folder_of(pid: int) -> str:
    """Where it runs, as Linux puts it."""
    return str(Path(f"/proc/{pid}/cwd").readlink())


async def wait_event(log: Path, name: str) -> dict[str, Any]:
    while not (found := events_in(log, name)):  # noqa: ASYNC110 - another process writes the file
        await trio.sleep(0.01)
    return found[-1]


async def test_h6_twenty_starts_on_two_ports_are_two_processes(tmp_path: Path) -> None:
    log = tmp_path / "events"
    settings = replace(settings_in(tmp_path, scripted({}, log)), port_range=free_ports(23000))
    names = [f"r{number}" for number in range(MANY)]
    async with open_real_worker(settings) as worker:
        await worker.want(*map(desired_replica, names))
        reports = [await worker.wait_report(name, Observed.READY, Observed.FAILED) for name in names]
        ready = [report for report in reports if report.observed is Observed.READY]
        failed = [report for report in reports if report.observed is Observed.FAILED]
        assert (len(ready), len(failed)) == (SLOTS, MANY - SLOTS)
        assert {report.pid for report in failed} == {None}
        cause = f"no free port in {settings.port_range} on 127.0.0.1; worker.port_range sets the range"
        assert {report.error for report in failed} == {f"the backend process could not be started: {cause}"}
        assert own_processes() == recorded_pids(tmp_path) == set(map(pid_of, ready))
        assert len(events_in(log, "start")) == SLOTS
        ending, staying = ready
        await worker.want(desired_replica(staying.replica_id))
        await worker.wait_report(ending.replica_id, Observed.GONE)
        await worker.want(
            desired_replica(staying.replica_id), desired_replica("later")
        )  # a port is free again once its process is gone
        assert (await worker.wait_report("later", Observed.READY)).address == ending.address
    assert own_processes() == set()


def test_h6_twenty_models_on_two_ports_serve_two(tmp_path: Path) -> None:
    """The planner knows of slots per model only: a machine that has no port left says so, and who asks is told."""
    log = tmp_path / "events"
    more = f'[worker]\nport_range = "{free_ports(23500)}"\n'
    models = "".join(f'[[models]]\nname = "m{number}"\nbackend = "scripted"\n' for number in range(MANY))
    with running_gateway(tmp_path, scripted_config({}, log=log, more=more) + models) as gateway:
        answers = together(MANY, lambda index: gateway.chat(f"m{index}"))
        served = [answer for answer in answers if answer.status_code == 200]
        refused = [answer.json()["error"] for answer in answers if answer.status_code == 503]
        assert (len(served), len(refused)) == (SLOTS, MANY - SLOTS)
        assert {error["code"] for error in refused} == {"model_load_failed"}
        assert all("worker.port_range" in error["message"] for error in refused)
        assert len(events_in(log, "start")) == len(gateway.backend_pids()) == SLOTS


def test_r10_a_model_that_wants_twenty_has_two_on_two_slots(tmp_path: Path) -> None:
    log = tmp_path / "events"
    more = f"[worker]\nmax_replicas_per_model = {SLOTS}\n"
    config = scripted_config({}, log=log, model=f"min_replicas = {MANY}", more=more)
    with running_gateway(tmp_path, config) as gateway:
        answers = together(MANY, lambda _: gateway.chat("scripted"))
        assert [answer.status_code for answer in answers] == [200] * MANY
        wait_for(lambda: gateway.model("scripted")["ready"] == SLOTS, "both slots to be used")
        assert len(events_in(log, "start")) == len(events_in(log, "LoadModel")) == SLOTS
        assert len(gateway.backend_pids()) == SLOTS


PHASES: Final[Mapping[Observed, Mapping[str, object]]] = {
    Observed.FETCHING: {},
    Observed.STARTING: {"listen_delay": 600, "ignore_term": True},
    Observed.LOADING: {"load_delay": 600, "ignore_term": True},
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("is_deleted", [False, True], ids=["stopped", "deleted"])
async def test_l8_a_stop_in_any_phase_ends_that_process_only(tmp_path: Path, phase: Observed, is_deleted: bool) -> None:
    """Deleted: the model is gone, so its replica is not listed any more."""
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / "large").open("wb") as file:
        file.truncate(2**40)  # its hash takes hours
    programs = {**scripted({}), "deaf": scripted(PHASES[phase], tmp_path / "events")["fake"]}
    one = desired_replica(
        "a", backend="deaf", artifact="file:large" if phase is Observed.FETCHING else "", sha256="0" * 64
    )
    settings = replace(settings_in(tmp_path, programs), stop_timeout_seconds=0.3)
    async with open_real_worker(settings) as worker:
        await worker.want(desired_replica("neighbour"))
        neighbour = pid_of(await worker.wait_report("neighbour", Observed.READY))
        await worker.want(desired_replica("neighbour"), one)
        await worker.wait_report("a", phase)
        if phase is Observed.LOADING:
            await wait_event(tmp_path / "events", "LoadModel")
        ends = () if is_deleted else (replace(one, desired=Desired.STOP),)
        await worker.want(desired_replica("neighbour"), *ends)
        assert (await worker.wait_report("a", Observed.GONE)).error is None
        assert own_processes() == recorded_pids(tmp_path) == {neighbour}
        assert worker.states_of("neighbour")[-1] is Observed.READY
    assert own_processes() == set()


class Installation:
    """A backend as operators install them: a start script in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "backend"
        self._events = folder
        self.program = BackendProgram((str(self._folder / "run.sh"),), {"PYTHONPATH": str(REPOSITORY)})

    def install(self, version: str) -> None:
        """In place of what is there; the new file is another one, as package managers do it."""
        self._folder.mkdir(exist_ok=True)
        script = self._folder / "run.sh.new"
        script.write_text(
            f"#!/bin/sh\n[ \"$(pwd)\" = '{self._folder}' ] || exit 9\nexport SCRIPT_LOG='{self._events / version}'\n"
            f"exec '{sys.executable}' -m tests.fakes.scripted_backend \"$@\"\n"
        )
        script.chmod(0o755)
        script.replace(self._folder / "run.sh")

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def started(self, version: str) -> set[int]:
        return {event["pid"] for event in events_in(self._events / version, "start")}


async def test_w3_a_replaced_program_is_what_the_next_replica_runs(tmp_path: Path) -> None:
    backend = Installation(tmp_path)
    backend.install("old")
    async with open_real_worker(settings_in(tmp_path, {"fake": backend.program})) as worker:
        await worker.want(desired_replica("a"))
        first = pid_of(await worker.wait_report("a", Observed.READY))
        backend.install("new")
        await worker.want(desired_replica("a"), desired_replica("b"))
        second = pid_of(await worker.wait_report("b", Observed.READY))
        assert (backend.started("old"), backend.started("new")) == ({first}, {second})
        await worker.want(desired_replica("b"))
        assert (await worker.wait_report("a", Observed.GONE)).error is None
        assert own_processes() == {second}


async def test_w2_a_folder_that_is_removed_under_its_process_fails_no_later_load(tmp_path: Path) -> None:
    backend = Installation(tmp_path)
    backend.install("old")
    async with open_real_worker(settings_in(tmp_path, {"fake": backend.program})) as worker:
        await worker.want(desired_replica("a"))
        first = pid_of(await worker.wait_report("a", Observed.READY))
        backend.remove()
        assert folder_of(first) == f"{tmp_path / 'backend'} (deleted)"
        await worker.want(desired_replica("a"), desired_replica("b"))
        failed = await worker.wait_report("b", Observed.FAILED)
        assert failed.error is not None
        assert str(tmp_path / "backend") in failed.error
        backend.install("new")
        await worker.want(desired_replica("a"), desired_replica("c"))
        second = pid_of(await worker.wait_report("c", Observed.READY))
        assert backend.started("new") == {second}
        assert own_processes() == {first, second}
        assert worker.states_of("a")[-1] is Observed.READY


@pytest.mark.parametrize(
    ("script", "final"),
    [
        ({"load_takes_bytes": 300 * MIB, "load_delay": 600}, Observed.FAILED),
        ({"ready_takes_bytes": 300 * MIB}, Observed.GONE),  # once it is ready
    ],
    ids=["loading", "ready"],
)
async def test_a_replica_that_outgrows_its_memory_ends_and_its_neighbour_does_not(
    tmp_path: Path, script: Mapping[str, object], final: Observed
) -> None:
    gate = tmp_path / "gate"
    programs = {**scripted({}), "hungry": scripted({**script, "gate": str(gate)})["fake"]}
    settings = replace(settings_in(tmp_path, programs), memory_limit_bytes=200 * MIB)
    async with open_real_worker(settings) as worker:
        await worker.want(desired_replica("neighbour"))
        neighbour = pid_of(await worker.wait_report("neighbour", Observed.READY))
        await worker.want(desired_replica("neighbour"), desired_replica("a", backend="hungry"))
        if final is Observed.GONE:
            await worker.wait_report("a", Observed.READY)
            gate.touch()
        ended = await worker.wait_report("a", final)
        assert ended.error is not None
        used = re.match(r"the backend uses (\d+)", ended.error)
        assert used is not None
        assert 200 < int(used[1]) < 400  # it may be met while it takes more and more
        assert "more than watchdog.memory_limit, 200 MiB" in ended.error
        assert own_processes() == recorded_pids(tmp_path) == {neighbour}
        assert worker.states_of("neighbour")[-1] is Observed.READY


def test_l9_a_model_that_outgrows_its_memory_while_it_loads_is_left_alone_for_a_while(tmp_path: Path) -> None:
    log = tmp_path / "events"
    more = '[watchdog]\nmemory_limit = "200MiB"\n'
    script = {"load_takes_bytes": 300 * MIB, "load_delay": 600}
    with running_gateway(tmp_path, scripted_config(script, log=log, more=more)) as gateway:
        answers = [gateway.chat("scripted"), gateway.chat("scripted")]
        for answer in answers:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "model_load_failed")
            assert "more than watchdog.memory_limit, 200 MiB" in error["message"]
            assert int(answer.headers["retry-after"]) >= 1
        assert len(events_in(log, "start")) == 1
        wait_for(lambda: not gateway.backend_pids(), "the process to be gone")


async def test_w8_a_backend_is_freed_when_its_worker_ends(tmp_path: Path) -> None:
    log = tmp_path / "events"
    async with open_real_worker(settings_in(tmp_path, scripted({}, log))) as worker:
        await worker.want(desired_replica("a"))
        await worker.wait_report("a", Observed.READY)
    assert len(events_in(log, "Free")) == 1
    assert (await worker.wait_report("a", Observed.GONE)).exit_code == 0
