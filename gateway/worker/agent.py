"""Converges this machine's processes to the desired set, one task per replica: a slow one holds up nothing else (W4).

Level-triggered: each set is complete, may come twice and may skip what was between. A replica id lives once: after its
end it is never started again, however often it is still listed.
"""

from dataclasses import dataclass

import structlog
import trio

from gateway.backends.protocol import BackendControl
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import FINAL, Desired, Observed
from gateway.domain.session import DesiredReplica, DesiredSet, Report
from gateway.worker.artifacts import ArtifactStore
from gateway.worker.outbox import Outbox
from gateway.worker.ports import PortAllocator
from gateway.worker.process import SpawnProcess
from gateway.worker.replica import ReplicaStatistics, ReplicaTask, Workshop
from gateway.worker.settings import WorkerSettings
from gateway.worker.state_file import StateFile

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class AgentStatistics:
    epoch: int
    """Highest seen so far; -1: no desired set yet."""
    replicas: tuple[ReplicaStatistics, ...]
    """Those whose process has not ended, in the order of their start."""


class Agent:
    """The replicas of this machine. Made by `run_agent`."""

    def __init__(self, workshop: Workshop, nursery: trio.Nursery, outbox: Outbox) -> None:
        self._workshop = workshop
        self._nursery = nursery
        self._outbox = outbox
        self._epoch = -1
        self._living: dict[ReplicaId, ReplicaTask] = {}
        self._ended: dict[ReplicaId, Report] = {}
        """Final reports of replicas that the desired set may still list."""

    def statistics(self) -> AgentStatistics:
        return AgentStatistics(self._epoch, tuple(replica.statistics() for replica in self._living.values()))

    def converge(self, wanted: DesiredSet) -> None:
        """Starts what is new, tells the others what is wanted of them, stops what is not listed (W12)."""
        if wanted.epoch < self._epoch:
            log.warning("worker.stale_desired_set", epoch=wanted.epoch, newest=self._epoch)
            return
        self._epoch = wanted.epoch
        listed = {wish.replica_id: wish for wish in wanted.replicas}
        self._ended = {ended: report for ended, report in self._ended.items() if ended in listed}
        for replica_id, replica in self._living.items():
            replica.desire(listed[replica_id].desired if replica_id in listed else Desired.STOP)
        for wish in listed.values():
            self._meet(wish)

    def _meet(self, wish: DesiredReplica) -> None:
        if wish.replica_id in self._living:
            return
        if wish.replica_id in self._ended:
            self._outbox.put(self._ended[wish.replica_id])  # whoever still lists it may have missed it
        elif wish.desired is Desired.RUN:
            self._begin(wish)
        else:
            self._note(Report(wish.replica_id, Observed.GONE))  # never started here, so there is nothing to end

    def _begin(self, wish: DesiredReplica) -> None:
        replica = ReplicaTask(wish, self._workshop, self._note)
        self._living[wish.replica_id] = replica
        self._nursery.start_soon(self._run_replica, replica, name=f"replica {wish.replica_id}")

    async def _run_replica(self, replica: ReplicaTask) -> None:
        try:
            await replica.run()
        finally:
            del self._living[replica.replica_id]

    def _note(self, report: Report) -> None:
        if report.observed in FINAL:
            self._ended[report.replica_id] = report
        self._outbox.put(report)


async def run_agent(
    settings: WorkerSettings,
    desired: trio.MemoryReceiveChannel[DesiredSet],
    reports: trio.MemorySendChannel[Report],
    *,
    spawn: SpawnProcess,
    control: BackendControl,
    task_status: trio.TaskStatus[Agent] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs until cancelled, then ends all processes at once, within `stop_timeout` and a bound for the kernel.

    Starts (through `task_status`) once leftovers of a killed predecessor are gone. Must run in the thread that started
    Trio and lives as long as the worker (see `spawn_process`). The end of `desired` changes nothing: what runs goes on.
    """
    records = StateFile(settings.state_folder)
    await records.reap_leftovers()
    workshop = Workshop(
        settings=settings,
        ports=PortAllocator(settings.port_range, settings.bind_host, settings.port_lock_folder),
        records=records,
        artifacts=ArtifactStore(settings.models_dir),
        spawn=spawn,
        control=control,
    )
    outbox = Outbox()
    try:
        async with trio.open_nursery() as nursery:
            agent = Agent(workshop, nursery, outbox)
            nursery.start_soon(outbox.run_sending, reports)
            task_status.started(agent)
            async for wanted in desired:
                agent.converge(wanted)
            await trio.sleep_forever()
    finally:
        outbox.offer_nowait(reports)
