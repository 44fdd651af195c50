"""A worker's session on the gateway's side: its desired set goes out, its reports come in and are written down."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from gateway.domain.cluster import ClusterState, NodeStatus
from gateway.domain.ids import GatewayId, NodeId, ReplicaId
from gateway.domain.lifecycle import FINAL
from gateway.domain.session import DesiredReplica, DesiredSet, Hello, Report
from gateway.registry.protocol import Registry, RegistryError
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.eligibility import RoutingView

log = structlog.get_logger(__name__)

RETRY_SECONDS: Final = 0.5
"""Pause after the registry could not be used; a report is kept until it is written."""
REPORTS_MAX: Final = 100
"""Reports written in one transaction."""
LEAVE_SECONDS: Final = 2.0
"""How long the end of a session may take to be written down when the gateway stops."""


def desired_set(state: ClusterState, node_id: NodeId, epoch: int, token_of: Callable[[ReplicaId], str]) -> DesiredSet:
    """All that `node_id` should run. A replica whose model was removed is left out, which stops it. Pure."""
    return DesiredSet(
        epoch,
        tuple(
            DesiredReplica(replica.id, state.models[replica.model], replica.desired, token_of(replica.id))
            for replica in state.replicas.values()
            if replica.node_id == node_id and replica.model in state.models and replica.observed not in FINAL
        ),
    )


@dataclass
class NodeSession:
    """One worker's session, over a pair of channels. The worker's end may be in this process or on another machine."""

    hello: Hello
    gateway_id: GatewayId
    registry: Registry
    views: SnapshotStore[RoutingView]
    epoch: Callable[[], int]
    """The leader's epoch as this gateway knows it."""
    token_of: Callable[[ReplicaId], str]
    desired: trio.MemorySendChannel[DesiredSet]
    reports: trio.MemoryReceiveChannel[Report]
    _number: int = field(default=0, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until the worker closes its reports, or cancelled. Reports started once the node has joined.

        Raises `RegistryError` when joining fails.
        """
        self._number = await self.registry.join_node(self.hello, self.gateway_id)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_desired)
                await self._run_reports()
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(LEAVE_SECONDS, shield=True):
                await self._leave()

    async def _run_desired(self) -> None:
        """Sends the desired set whenever it has changed. The set is complete, so skipping one loses nothing.

        Not before the view shows this agent's start: until then it lists replicas that ended with the one before.
        """
        sent: DesiredSet | None = None
        view = self.views.current
        while not self._has_joined(view):
            view = await self.views.wait_change(view)
        while True:
            current = desired_set(view.state, self.hello.node_id, self.epoch(), self.token_of)
            if current != sent:
                await self.desired.send(current)
                sent = current
            view = await self.views.wait_change(view)

    def _has_joined(self, view: RoutingView) -> bool:
        node = view.state.nodes.get(self.hello.node_id)
        return node is not None and node.boot_id == self.hello.boot_id

    async def _run_reports(self) -> None:
        async for first in self.reports:
            batch = [first]
            while len(batch) < REPORTS_MAX:
                try:
                    batch.append(self.reports.receive_nowait())
                except (trio.WouldBlock, trio.EndOfChannel):
                    break
            await self._write(batch)

    async def _write(self, batch: list[Report]) -> None:
        while True:
            try:
                if not await self.registry.observe(self.hello.node_id, self._number, batch):
                    log.warning("session.superseded", node=self.hello.name, session=self._number)
                return
            except RegistryError as error:
                log.warning("session.report_not_written", node=self.hello.name, error=str(error))
                await trio.sleep(RETRY_SECONDS)

    async def _leave(self) -> None:
        try:
            await self.registry.leave_node(self.hello.node_id, self._number, NodeStatus.OFFLINE)
        except RegistryError as error:
            log.warning("session.leave_not_written", node=self.hello.name, error=str(error))
