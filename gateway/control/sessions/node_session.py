"""The gateway's side of one worker's session: the desired set goes out, reports come in and are written to the
registry.

This file is longer than others because sending, receiving and writing share the state of one session.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
import trio

from gateway.backends.protocol import Target
from gateway.concurrency import Wake
from gateway.control.resource_estimates import measured_requirement
from gateway.control.sessions.load_progress import LoadProgress
from gateway.control.sessions.log_streams import LogStreams
from gateway.control.sessions.readiness_gate import ReadinessGate
from gateway.domain.cluster import ClusterState, ProbeOutcome, Replica
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId, Revision
from gateway.domain.lifecycle import FINAL, Observed
from gateway.domain.model_spec import Capabilities
from gateway.domain.pacing import TokenBucket
from gateway.domain.resources import Capacity, Requirement
from gateway.domain.routability import FleetView
from gateway.domain.session import (
    DesiredReplica,
    DesiredSet,
    FromWorker,
    Heartbeat,
    Hello,
    Leaving,
    LogChunk,
    Report,
    SessionRefused,
    ToWorker,
)
from gateway.registry.protocol import RETRY_SECONDS, NodeRegistry, RegistryError
from gateway.registry.snapshot import SnapshotStore

log = structlog.get_logger(__name__)

SUPERSEDED: Final = "a newer session of this node has begun"
WRITES_PER_SECOND: Final = 10.0
"""The largest rate of writes of one session. Reports that come faster are written together. Each write has every
gateway read again."""
WRITES_BURST: Final = 50.0
CAPACITY_WRITES: Final = 10.0
"""The number of writes that one write of the capacity counts for. The capacity may change all the time, and nobody
waits for it."""
UNWRITTEN_MAX: Final = 10_000
"""The largest number of replicas with unwritten reports. It is more than one machine has ports for."""
UP: Final = frozenset({Observed.READY, Observed.DRAINING})


def desired_set(
    state: ClusterState, node_id: NodeId, token_of: Callable[[ReplicaId], str], sent: DesiredSet | None = None
) -> DesiredSet:
    """Returns all replicas that `node_id` should run, and the epoch of the plan (L13). Pure.

    A worker stops what is not listed. A replica whose model was removed drains first, so it stays listed by the spec
    that `sent` has, the set before. A session that never sent one leaves the replica out.
    """
    sent_specs = {} if sent is None else {each.replica_id: each.spec for each in sent.replicas}
    replicas = [each for each in state.replicas.values() if each.node_id == node_id and each.observed not in FINAL]
    specs = [state.models.get(each.model) or sent_specs.get(each.id) for each in replicas]
    return DesiredSet(
        state.epoch,
        tuple(
            DesiredReplica(replica.id, spec, replica.desired, token_of(replica.id))
            for replica, spec in zip(replicas, specs, strict=True)
            if spec is not None
        ),
    )


@dataclass(frozen=True)
class SessionSettings:
    """The settings and functions that all sessions of one gateway share."""

    gateway_id: GatewayId
    registry: NodeRegistry
    views: SnapshotStore[FleetView]
    token_of: Callable[[ReplicaId], str]
    probe: Callable[[Target], Awaitable[ProbeOutcome]]
    """Probes one replica at its advertised address. It never raises."""
    report_broken: Callable[[ReplicaId, str], None]
    heartbeat_seconds: float
    node_changed: Callable[[], None]
    """Called when a session begins or ends and when a worker says that it leaves, to wake the health monitor."""
    load_progress: LoadProgress = field(default_factory=LoadProgress)


class NodeSession:
    """The session of one worker, over a pair of channels. The worker's end may be in this process or on another
    machine."""

    def __init__(
        self,
        hello: Hello,
        number: int,
        settings: SessionSettings,
        to_worker: trio.MemorySendChannel[ToWorker],
        from_worker: trio.MemoryReceiveChannel[FromWorker],
        *,
        is_embedded: bool = False,
    ) -> None:
        self.node_id = hello.node_id
        self.is_embedded = is_embedded
        self.number = number
        self.last_contact_at = trio.current_time()
        self.leaving = False
        """Whether the worker has said that it drains and ends."""
        self._living: set[ReplicaId] = set()
        """The replicas that have not ended, according to the worker's last report."""
        self.tails = LogStreams(to_worker)
        self._ended = trio.CancelScope()
        self._why_ended = ""
        self._hello = hello
        self._settings = settings
        self._to_worker = to_worker
        self._from_worker = from_worker
        self._unwritten: dict[ReplicaId, Report] = {}
        """The newest report of each replica that is not in the registry yet. Reports are complete."""
        self._capacity: Capacity | None = None
        self._measured: dict[tuple[ModelName, Revision], Requirement] = {}
        """The measured needs of models that are not in the registry yet."""
        self._capabilities: dict[tuple[ModelName, Revision], Capabilities] = {}
        """The capabilities of models that are not in the registry yet."""
        self._written = Wake()
        self._pace = TokenBucket(WRITES_PER_SECOND, WRITES_BURST)
        self._readiness_gate = ReadinessGate(settings.probe, self._target_of, self._put, settings.report_broken)

    @property
    def has_left(self) -> bool:
        """Whether the worker has said that it leaves and that no replica runs there any more. Then the end of this
        session is no failure."""
        return self.leaving and not self._living

    def end(self, why: str) -> None:
        """Has `run` raise `SessionRefused` with this reason."""
        self._why_ended = why
        self._ended.cancel()

    async def run(self) -> None:
        """Runs until the worker closes its end, or until cancelled. Raises `SessionRefused`."""
        with self._ended:
            await self._run()
        if self._ended.cancelled_caught:
            raise SessionRefused(self._why_ended)

    async def _run(self) -> None:
        problems: list[SessionRefused] = []
        try:
            async with trio.open_nursery() as nursery:
                for task in (self._run_desired, self._run_heartbeats, self._run_writer, self._readiness_gate.run):
                    nursery.start_soon(self._run_until_over, task, problems, nursery.cancel_scope)
                for report in self._hello.replicas:
                    self._handle_report(report)
                async for message in self._from_worker:
                    self.last_contact_at = trio.current_time()
                    self._handle(message)
                nursery.cancel_scope.cancel()
        finally:
            self.tails.close()
        if problems:
            raise problems[0]
        if self._unwritten:
            await self._write()  # Write the last reports of a worker that has left.

    async def _run_until_over(
        self, task: Callable[[], Awaitable[None]], problems: list[SessionRefused], scope: trio.CancelScope
    ) -> None:
        """Raises the error that ends the session, without a group around it."""
        try:
            await task()
        except SessionRefused as error:
            problems.append(error)
            scope.cancel()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()  # The worker's end is closed. Its earlier messages are lost or in the registry.

    def _handle(self, message: FromWorker) -> None:
        match message:
            case Report():
                self._handle_report(message)
            case Capacity():
                self._capacity = message
                self._written.set()
            case Leaving():
                self.leaving = True
                log.info("node.leaving", node=self._hello.name)
                self._settings.node_changed()
            case LogChunk():
                self.tails.put_nowait(message)
            case Heartbeat():
                pass

    def _handle_report(self, report: Report) -> None:
        (self._living.discard if report.observed in FINAL else self._living.add)(report.replica_id)
        self._readiness_gate.forget(report.replica_id)
        stored = self._stored(report.replica_id)
        if report.observed is Observed.FAILED and stored is not None and stored.observed in UP:
            # A replica that was ready cannot fail to load. It may still run, so it is ended as a broken one (L8).
            self._settings.report_broken(report.replica_id, report.error or "its worker says that it failed")
        elif report.observed is Observed.READY:
            self._handle_ready(report, stored)
        else:
            self._put(report)

    def _handle_ready(self, report: Report, stored: Replica | None) -> None:
        """Probes the replica, unless it has answered at this address before."""
        address = report.address or (stored.address if stored is not None else None)
        if address is None:
            self._put(Report(report.replica_id, Observed.FAILED, error="its worker calls it ready at no address"))
        elif stored is not None and stored.observed is Observed.READY and stored.address == address:
            self._put(report)
        elif len(self._readiness_gate) >= UNWRITTEN_MAX:
            self.end(f"its worker calls more than {UNWRITTEN_MAX} replicas ready at a time")
        else:
            self._readiness_gate.ask(replace(report, address=address))

    def _put(self, report: Report) -> None:
        """Queues the report for the registry. A report that only says how far a download is, is watched and not
        stored."""
        replica = self._stored(report.replica_id)
        if replica is not None and replica.observed not in FINAL:
            self._settings.load_progress.record(report, trio.current_time())
            if report.observed is Observed.FETCHING and replica.observed is Observed.FETCHING:
                return
            self._measure(report, replica)
        self._unwritten[report.replica_id] = report
        self._written.set()
        if len(self._unwritten) > UNWRITTEN_MAX:
            self.end(f"its worker reports of more than {UNWRITTEN_MAX} replicas at a time")

    def _measure(self, report: Report, replica: Replica) -> None:
        state = self._settings.views.current.state
        node, spec = state.nodes.get(self.node_id), state.models.get(replica.model)
        requirement = measured_requirement(report, spec, node) if report.observed is Observed.READY else None
        if requirement is not None:
            self._measured[replica.model, replica.revision] = requirement
        if report.capabilities is not None:
            self._capabilities[replica.model, replica.revision] = report.capabilities

    def _stored(self, replica_id: ReplicaId) -> Replica | None:
        """Returns the replica's row, or None if the replica is unknown or belongs to another node, of which this worker
        may not report."""
        replica = self._settings.views.current.state.replicas.get(replica_id)
        return replica if replica is not None and replica.node_id == self.node_id else None

    def _target_of(self, report: Report) -> Target | None:
        replica = self._stored(report.replica_id)
        if replica is None or report.address is None:
            return None
        return Target(replica.id, replica.model, report.address, self._settings.token_of(replica.id))

    async def _run_heartbeats(self) -> None:
        while True:
            await self._to_worker.send(Heartbeat())
            await trio.sleep(self._settings.heartbeat_seconds)

    async def _run_desired(self) -> None:
        """Sends the desired set whenever it has changed. The set is complete, so a skipped one loses nothing.

        It starts when the view shows this session's node: until then the view may list replicas that ended with an
        earlier agent.
        """
        settings, view = self._settings, self._settings.views.current
        sent: DesiredSet | None = None
        while not self._has_joined(view):
            view = await settings.views.wait_change(view)
        while True:
            if not self._has_joined(view):
                raise SessionRefused("this node was removed, or its worker has registered anew", register_again=True)
            if view.state.nodes[self.node_id].session > self.number:
                raise SessionRefused(SUPERSEDED)
            current = desired_set(view.state, self.node_id, settings.token_of, sent)
            if current != sent:
                await self._to_worker.send(current)
                sent = current
            view = await settings.views.wait_change(view)

    def _has_joined(self, view: FleetView) -> bool:
        node = view.state.nodes.get(self.node_id)
        return node is not None and node.boot_id == self._hello.boot_id and node.session >= self.number

    async def _run_writer(self) -> None:
        while True:
            await self._written.wait()
            while self._unwritten or self._capacity is not None or self._measured or self._capabilities:
                await self._wait_turn()
                try:
                    await self._write()
                except RegistryError as error:
                    log.log(error.log_level, "session.report_write_failed", node=self._hello.name, error=str(error))
                    await trio.sleep(RETRY_SECONDS)

    async def _wait_turn(self) -> None:
        """Waits for this session's turn to write, so that a worker with many reports costs the fleet no more than
        others."""
        amount = 1.0 if self._capacity is None else CAPACITY_WRITES
        wait_seconds = self._pace.take(amount, trio.current_time())
        if wait_seconds:
            await trio.sleep(wait_seconds)

    async def _write(self) -> None:
        """Writes all unwritten reports. A report whose write fails stays unwritten. Raises `RegistryError`,
        `SessionRefused`."""
        batch, registry = tuple(self._unwritten.values()), self._settings.registry
        written = not batch or await registry.record_reports(self.node_id, self.number, batch)
        for report in batch:
            if self._unwritten.get(report.replica_id) is report:
                del self._unwritten[report.replica_id]
        if written and (capacity := self._capacity) is not None:
            written = await registry.record_capacity(self.node_id, self.number, capacity)
            if self._capacity is capacity:
                self._capacity = None
        if not written:
            raise SessionRefused(SUPERSEDED)
        for (model, revision), requirement in tuple(self._measured.items()):
            await registry.record_requirement(model, revision, requirement)
            if self._measured.get((model, revision)) is requirement:
                del self._measured[model, revision]
        for (model, revision), capabilities in tuple(self._capabilities.items()):
            await registry.record_capabilities(model, revision, capabilities)
            if self._capabilities.get((model, revision)) is capabilities:
                del self._capabilities[model, revision]
