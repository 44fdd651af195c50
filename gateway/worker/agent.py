"""Converges this machine's processes to the desired set, with one task per replica, so that a slow replica delays no
other (W4).

The agent is level-triggered: each desired set is complete, may come twice, and may skip those in between. A replica id
lives once: after its end it is never started again, however often it is still listed.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from gateway.backends.protocol import BackendControl
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.session import DesiredReplica, DesiredSet, Report
from gateway.worker.artifacts.reference import hub_of
from gateway.worker.artifacts.store import ArtifactStore, WriteModel, no_tiny_model
from gateway.worker.outbox import Outbox
from gateway.worker.process.journal import ProcessJournal
from gateway.worker.process.output import OutputLog
from gateway.worker.process.ports import PortAllocator
from gateway.worker.process.resource_usage import MeasureUsage, measure_usage
from gateway.worker.process.spawn import SpawnProcess
from gateway.worker.replica import ReplicaContext, ReplicaStatistics, ReplicaTask
from gateway.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

NO_EPOCH: Final = -1
"""The epoch before the first desired set of a session."""
ENDED_MAX: Final = 10_000
"""The largest number of ended replicas that the agent remembers by their id."""


@dataclass(frozen=True)
class AgentStatistics:
    """A snapshot of a worker agent: its newest desired set and its running replicas."""

    epoch: int
    """The highest epoch so far, or -1 if there was no desired set yet."""
    replicas: tuple[ReplicaStatistics, ...]
    """The replicas whose process has not ended, in the order of their start."""


class Agent:
    """The owner of all replicas of this machine. `run_agent` makes it. A `WorkerSession` passes it desired sets and
    reads its reports."""

    def __init__(self, context: ReplicaContext, nursery: trio.Nursery) -> None:
        self.outbox = Outbox()
        self.leaving = trio.Event()
        """The event that the worker leaves: it starts no new replica and drains those it has."""
        self._context = context
        self._nursery = nursery
        self._epoch = NO_EPOCH
        self._living: dict[ReplicaId, ReplicaTask] = {}
        self._newest: dict[ReplicaId, Report] = {}
        """The newest report of each replica. An ended replica is in it as long as the desired set lists it."""
        self._ended: dict[ReplicaId, Observed] = {}
        """The final states of replicas that are not listed any more. Another gateway with an older view may list them
        again."""
        self._changed = trio.Event()

    def statistics(self) -> AgentStatistics:
        """Returns a snapshot of the agent and of each replica whose process has not ended."""
        return AgentStatistics(self._epoch, tuple(replica.statistics() for replica in self._living.values()))

    def all_reports(self) -> tuple[Report, ...]:
        """Returns the reports with which a new session begins. Only later ones are sent besides.

        Epochs grow within a session. A new session begins with the registry as it is then, which may be an older state
        than that of the session before, or another registry.
        """
        self._epoch = NO_EPOCH
        self.outbox.clear()
        return tuple(self._newest.values())

    def output_of(self, replica_id: ReplicaId) -> OutputLog | None:
        """Returns the output of the replica's backend process. Returns None if no such replica runs here."""
        replica = self._living.get(replica_id)
        return replica.output if replica is not None else None

    def converge(self, desired_set: DesiredSet) -> None:
        """Starts new replicas, passes their desired states to the others, and stops those that are not listed (W12)."""
        if desired_set.epoch < self._epoch:
            log.warning("worker.stale_desired_set", epoch=desired_set.epoch, newest=self._epoch)
            return
        self._epoch = desired_set.epoch
        listed = {desired.replica_id: desired for desired in desired_set.replicas}
        self._forget(each for each in tuple(self._newest) if each not in listed and each not in self._living)
        for replica_id, replica in self._living.items():
            replica.desire(listed[replica_id].desired if replica_id in listed else Desired.STOP)
        for desired in listed.values():
            self._apply_desired(desired)

    def _forget(self, gone: Iterable[ReplicaId]) -> None:
        """Forgets everything about these replicas but their final states."""
        for replica_id in gone:
            self._ended[replica_id] = self._newest.pop(replica_id).observed
        while len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def leave(self) -> None:
        """Lets every replica finish its open requests and end, and starts no new ones. It needs no gateway."""
        self.leaving.set()
        for replica in self._living.values():
            replica.desire(Desired.DRAIN)

    async def wait_empty(self) -> None:
        """Waits until no replica has a process."""
        await trio.lowlevel.checkpoint()
        while self._living:
            await self._changed.wait()

    def _apply_desired(self, desired: DesiredReplica) -> None:
        if desired.replica_id in self._living:
            return
        if desired.replica_id in self._newest:
            self.outbox.put(self._newest[desired.replica_id])  # A gateway that still lists it may have missed its end.
        elif desired.replica_id in self._ended:
            self._record_report(Report(desired.replica_id, self._ended[desired.replica_id]))
        elif desired.desired is not Desired.RUN:
            self._record_report(
                Report(desired.replica_id, Observed.GONE)
            )  # It never started here, so there is nothing to end.
        elif not self.leaving.is_set():
            self._start_replica(desired)

    def _start_replica(self, desired: DesiredReplica) -> None:
        replica = ReplicaTask(desired, self._context, self._record_report)
        self._living[desired.replica_id] = replica
        self._nursery.start_soon(self._run_replica, replica, name=f"replica {desired.replica_id}")

    async def _run_replica(self, replica: ReplicaTask) -> None:
        try:
            await replica.run()
        finally:
            del self._living[replica.replica_id]
            self._changed.set()
            self._changed = trio.Event()

    def _record_report(self, report: Report) -> None:
        self._newest[report.replica_id] = report
        self.outbox.put(report)


async def run_agent(
    settings: WorkerSettings,
    *,
    spawn: SpawnProcess,
    control: BackendControl,
    measure_usage: MeasureUsage = measure_usage,
    write_tiny_model: WriteModel = no_tiny_model,
    task_status: trio.TaskStatus[Agent] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs until cancelled, then ends all processes at once. Each end has the limits of any stop: some seconds to free
    the model, `stop_timeout_seconds` of the settings, and a limit for the kernel.

    Reports started once leftover processes of a killed predecessor are gone. It must run in the thread that started
    Trio and lives as long as the worker (see `spawn_process`).
    """
    records = ProcessJournal(settings.state_folder)
    await records.reap_leftovers()
    context = ReplicaContext(
        settings=settings,
        ports=PortAllocator(settings.port_range, settings.bind_host, settings.port_lock_folder),
        journal=records,
        artifacts=ArtifactStore(
            settings.models_dir,
            cache_bytes_max=settings.cache_bytes_max,
            hub=hub_of(os.environ),
            gateway=settings.gateway,
            write_tiny_model=write_tiny_model,
        ),
        spawn=spawn,
        control=control,
        measure_usage=measure_usage,
    )
    async with trio.open_nursery() as nursery:
        task_status.started(Agent(context, nursery))
        await trio.sleep_forever()
