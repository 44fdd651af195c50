"""The sessions at this gateway, one per node: how they begin, replace each other, and end.

A node's session is at one gateway at a time. The registry gives each session a number, and every write of the session
carries it. So the writes of a session have no effect once a newer session has begun (H9). A broken session proves no
death: the node keeps its condition, and the health monitor judges it from then on.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from gateway.control.sessions.node_session import SUPERSEDED, NodeSession, SessionSettings
from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import NodeId, ReplicaId
from gateway.domain.session import FromWorker, Hello, LogChunk, SessionRefused, ToWorker
from gateway.registry.protocol import RegistryError

log = structlog.get_logger(__name__)

LEAVE_SECONDS: Final = 2.0
"""How long writing down the end of a session may take when the gateway stops."""


@dataclass
class Sessions:
    """The open sessions of this gateway by node. `run_session` is the whole life of one session."""

    settings: SessionSettings
    open: dict[NodeId, NodeSession] = field(default_factory=dict)

    async def run_session(
        self,
        hello: Hello,
        to_worker: trio.MemorySendChannel[ToWorker],
        from_worker: trio.MemoryReceiveChannel[FromWorker],
        *,
        ends_with_gateway: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Runs one session from its beginning to its end. Reports started once the node has joined.

        `ends_with_gateway` says that the worker is part of this process, so that its replicas end with the session.
        Raises `RegistryError` if joining fails, and `SessionRefused`.
        """
        number = await self.settings.registry.join_node(hello, self.settings.gateway_id)
        session = NodeSession(hello, number, self.settings, to_worker, from_worker, is_embedded=ends_with_gateway)
        with self._holding(session):
            task_status.started()
            log.info("session.started", node=hello.name, session=number)
            ends_with_us = ends_with_gateway
            try:
                await session.run()
            except SessionRefused:
                ends_with_us = False  # The worker lives and will reconnect.
                raise
            finally:
                with trio.move_on_after(LEAVE_SECONDS, shield=True):
                    await self._end_session(session, gone=ends_with_us or session.has_left)

    @contextmanager
    def _holding(self, session: NodeSession) -> Iterator[None]:
        if (older := self.open.get(session.node_id)) is not None:
            older.end(SUPERSEDED)
        self.open[session.node_id] = session
        self.settings.node_changed()
        try:
            yield
        finally:
            if self.open.get(session.node_id) is session:
                del self.open[session.node_id]
            self.settings.node_changed()

    async def _end_session(self, session: NodeSession, *, gone: bool) -> None:
        """Writes down the end of a session. A worker that said goodbye is offline at once; a node whose session broke
        keeps its condition."""
        condition = NodeStatus.OFFLINE if gone else None
        try:
            await self.settings.registry.mark_node(session.node_id, session.number, condition, ended=True)
        except RegistryError as error:
            log.warning("session.end_write_failed", node=session.node_id, error=str(error))
        log.info("session.ended", node=session.node_id, session=session.number, left=gone)

    def end_all(self, why: str) -> None:
        """Ends the sessions of workers on other machines with this reason; they look for another gateway. The embedded
        worker has no other."""
        for session in self.open.values():
            if not session.is_embedded:
                session.end(why)

    @asynccontextmanager
    async def open_tail(
        self, node_id: NodeId, replica_id: ReplicaId, lines: int, *, follow: bool
    ) -> AsyncIterator[trio.MemoryReceiveChannel[LogChunk] | None]:
        """Yields the output of a replica's backend as it comes, or None if the node has no session at this gateway."""
        session = self.open.get(node_id)
        if session is None:
            yield None
            return
        async with session.tails.open(replica_id, lines, follow=follow) as chunks:
            yield chunks
