"""The sessions that this gateway holds, one per node: how they begin, take over from each other, and end.

A session is held by one gateway at a time. Its number, given by the registry when it begins, goes with every write, so
what a session still has to say after another one has begun is void (H9). A broken session is no death of anything: the
node stays what it was, and the health monitor judges from then on.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from gateway.control.sessions.node_session import SUPERSEDED, NodeSession, SessionOver, SessionSettings
from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import NodeId, ReplicaId
from gateway.domain.session import FromWorker, Hello, LogChunk, ToWorker
from gateway.registry.protocol import RegistryError

log = structlog.get_logger(__name__)

LEAVE_SECONDS: Final = 2.0
"""How long the end of a session may take to be written down when the gateway stops."""


@dataclass
class Sessions:
    """Keeps the open sessions of this gateway by node; `run_session` is the whole life of one."""

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
        """The whole life of one session. Reports started once the node has joined.

        `ends_with_gateway`: the worker is part of this process, so the end of the session is the end of its replicas.
        Raises `RegistryError` when joining fails, `SessionOver`.
        """
        number = await self.settings.registry.join_node(hello, self.settings.gateway_id)
        session = NodeSession(hello, number, self.settings, to_worker, from_worker, is_embedded=ends_with_gateway)
        with self._holding(session):
            task_status.started()
            log.info("session.started", node=hello.name, session=number)
            ends_with_us = ends_with_gateway
            try:
                await session.run()
            except SessionOver:
                ends_with_us = False  # the worker lives and comes again
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
        """A worker that said goodbye is offline at once; one whose session broke stays what it was for now."""
        condition = NodeStatus.OFFLINE if gone else None
        try:
            await self.settings.registry.mark_node(session.node_id, session.number, condition, ended=True)
        except RegistryError as error:
            log.warning("session.end_write_failed", node=session.node_id, error=str(error))
        log.info("session.ended", node=session.node_id, session=session.number, left=gone)

    def end_all(self, why: str) -> None:
        """Workers of other machines are told, and look for another gateway. The embedded one has no other."""
        for session in self.open.values():
            if not session.is_embedded:
                session.end(why)

    @asynccontextmanager
    async def open_tail(
        self, node_id: NodeId, replica_id: ReplicaId, lines: int, *, follow: bool
    ) -> AsyncIterator[trio.MemoryReceiveChannel[LogChunk] | None]:
        """The output of a replica's backend as it comes. None: the node has no session at this gateway."""
        session = self.open.get(node_id)
        if session is None:
            yield None
            return
        async with session.tails.open(replica_id, lines, follow=follow) as chunks:
            yield chunks
