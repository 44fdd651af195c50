"""A worker agent as its gateway sees it: desired sets go in, reports come out and are kept."""

import json
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import trio

from gateway.backends.protocol import BackendControl
from gateway.composition.tiny_model import write_tiny_model
from gateway.config.units import PortRange
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import UNKNOWN, Capacity
from gateway.domain.session import DesiredReplica, DesiredSet, FromWorker, Report, ToWorker
from gateway.worker.agent import Agent, run_agent
from gateway.worker.process.command import BackendProgram
from gateway.worker.process.resource_usage import UNKNOWN_USAGE, MeasureUsage, ResourceUsage
from gateway.worker.process.spawn import SpawnProcess
from gateway.worker.session import WorkerSession
from gateway.worker.settings import WorkerSettings

M = TypeVar("M")

REPOSITORY: Final = Path(__file__).resolve().parents[2]
NEVER_SECONDS: Final = 3 * 3600
"""A watchdog, mostly of virtual time: so long without a report means that none will come."""
HEARTBEAT_SECONDS: Final = 5.0
LEAVE_SECONDS: Final = 5.0
TEST_PORTS: Final = PortRange(22000, 22499)
FAKE_BACKEND: Final[Mapping[str, BackendProgram]] = MappingProxyType({"fake": BackendProgram(("fake-backend",))})


def settings_in(folder: Path, backends: Mapping[str, BackendProgram] = FAKE_BACKEND) -> WorkerSettings:
    """Settings of a worker that lives in `folder`."""
    return WorkerSettings(
        state_folder=folder / "state",
        models_dir=folder / "models",
        port_range=TEST_PORTS,
        bind_host="127.0.0.1",
        advertise_host="127.0.0.1",
        drain_timeout_seconds=30.0,
        backends=backends,
    )


def scripted(script: Mapping[str, object] | None = None, log: Path | None = None) -> dict[str, BackendProgram]:
    """The backend `fake` as a real program: tests.fakes.scripted_backend. None: SCRIPT as this process has it."""
    env = {"PYTHONPATH": str(REPOSITORY)}
    if script is not None:
        env["SCRIPT"] = json.dumps(script)
    if log is not None:
        env["SCRIPT_LOG"] = str(log)
    return {"fake": BackendProgram((sys.executable, "-m", "tests.fakes.scripted_backend"), env)}


def desired_replica(
    replica_id: str,
    desired: Desired = Desired.RUN,
    *,
    backend: str = "fake",
    artifact: str = "",
    sha256: str | None = None,
    context_size: int | None = None,
    load_timeout_seconds: float | None = None,
) -> DesiredReplica:
    """What the planner wants of one replica of a model that is called as the replica."""
    spec = ModelSpec(
        ModelName(replica_id),
        backend,
        artifact,
        sha256=sha256,
        context_size=context_size,
        load_timeout_seconds=load_timeout_seconds,
    )
    return DesiredReplica(ReplicaId(replica_id), spec, desired, token=f"token-of-{replica_id}")


async def nothing_known() -> Capacity:
    await trio.lowlevel.checkpoint()
    return UNKNOWN


async def no_usage(_pid: int) -> ResourceUsage:
    """Processes that are no processes hold nothing, and threads have no place on a virtual clock."""
    await trio.lowlevel.checkpoint()
    return UNKNOWN_USAGE


@dataclass
class WorkerHarness:
    agent: Agent
    session: WorkerSession
    to_worker: trio.MemorySendChannel[ToWorker]
    from_worker: trio.MemoryReceiveChannel[FromWorker]
    history: list[Report] = field(default_factory=list)
    peers: list[FromWorker] = field(default_factory=list)
    """What came besides reports."""

    async def want(self, *replicas: DesiredReplica, epoch: int = 1) -> None:
        await self.to_worker.send(DesiredSet(epoch, replicas))

    def _take(self, message: FromWorker) -> None:
        if isinstance(message, Report):
            self.history.append(message)
        else:
            self.peers.append(message)

    async def wait_other(self, kind: type[M]) -> M:
        """The next message of that kind, past ones included, once each."""
        with trio.fail_after(NEVER_SECONDS):
            while True:
                for message in self.peers:
                    if isinstance(message, kind):
                        self.peers.remove(message)
                        return message
                self._take(await self.from_worker.receive())

    async def wait_report(self, replica_id: str, *states: Observed) -> Report:
        """The replica's first report of one of `states`, past ones included. Fails when it takes a final one first."""
        position = 0
        with trio.fail_after(NEVER_SECONDS):
            while True:
                while position == len(self.history):
                    self._take(await self.from_worker.receive())
                report = self.history[position]
                position += 1
                if report.replica_id == replica_id and report.observed in states:
                    return report
                assert report.replica_id != replica_id or report.observed not in {Observed.GONE, Observed.FAILED}, (
                    report
                )

    def states_of(self, replica_id: str) -> list[Observed]:
        """The reported states, in order, those that were received anyhow."""
        try:
            while True:
                self._take(self.from_worker.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return [report.observed for report in self.history if report.replica_id == replica_id]


@asynccontextmanager
async def open_worker(
    settings: WorkerSettings,
    spawn: SpawnProcess,
    control: BackendControl,
    capacity: Callable[[], Awaitable[Capacity]] = nothing_known,
    usage: MeasureUsage = no_usage,
) -> AsyncIterator[WorkerHarness]:
    """Leaving the context is the worker's shutdown, after which its session says the last things."""
    to_worker, from_gateway = trio.open_memory_channel[ToWorker](math.inf)
    to_gateway, from_worker = trio.open_memory_channel[FromWorker](math.inf)
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as inner:
            agent = await inner.start(
                partial(
                    run_agent,
                    settings,
                    spawn=spawn,
                    control=control,
                    measure_usage=usage,
                    write_tiny_model=write_tiny_model,
                )
            )
            session = WorkerSession(agent, to_gateway, from_gateway, HEARTBEAT_SECONDS, capacity, UNKNOWN)
            outer.start_soon(session.run)
            yield WorkerHarness(agent, session, to_worker, from_worker)
            inner.cancel_scope.cancel()
        with trio.move_on_after(LEAVE_SECONDS):
            await session.finish()
