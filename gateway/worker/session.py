"""The worker's end of one session: it sends changes and heartbeats, and carries out what the gateway asks for.

A session may end at any time and another one may begin, perhaps with another gateway. The replicas do not notice. The
next session begins with everything that was unsent at the end of the one before (`Agent.all_reports`).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
import trio

from gateway.domain.resources import Capacity
from gateway.domain.session import DesiredSet, EndTail, FromWorker, Heartbeat, Leaving, LogChunk, TailLogs, ToWorker
from gateway.worker.agent import Agent

log = structlog.get_logger(__name__)


@dataclass
class WorkerSession:
    """One session of the worker. `run` is its life, and ends when the gateway closes its end, in either direction."""

    agent: Agent
    outgoing: trio.MemorySendChannel[FromWorker]
    incoming: trio.MemoryReceiveChannel[ToWorker]
    heartbeat_seconds: float
    read_capacity: Callable[[], Awaitable[Capacity]]
    reported_capacity: Capacity
    """The capacity that the gateway knows: that of the hello, then the last one sent."""
    _tails: dict[int, trio.CancelScope] = field(default_factory=dict, init=False)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope, init=False)
    _leaving_sent: trio.Event = field(default_factory=trio.Event, init=False)

    async def run(self) -> None:
        """Runs the session until the gateway is gone."""
        with self._scope:
            async with self.outgoing, trio.open_nursery() as nursery:
                nursery.start_soon(self.agent.outbox.run_sending, self._send)
                nursery.start_soon(self._run_heartbeats)
                nursery.start_soon(self._run_capacity)
                nursery.start_soon(self._run_leaving)
                async for message in self.incoming:
                    match message:
                        case DesiredSet():
                            self.agent.converge(message)
                        case TailLogs():
                            nursery.start_soon(self._run_tail, message)
                        case EndTail(tail):
                            self._end_tail(tail)
                        case Heartbeat():
                            pass
                nursery.cancel_scope.cancel()

    async def finish(self) -> None:
        """Ends the session from this side, once every report has been passed on. The caller has to limit the time,
        because a session that breaks meanwhile takes no report any more."""
        if not self._scope.cancel_called:
            if self.agent.leaving.is_set():
                await self._leaving_sent.wait()
            await self.agent.outbox.wait_empty()
            self._scope.cancel()

    async def _send(self, message: FromWorker) -> None:
        try:
            await self.outgoing.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            await trio.lowlevel.checkpoint()

    async def _run_heartbeats(self) -> None:
        while True:
            await trio.sleep(self.heartbeat_seconds)
            await self._send(Heartbeat())

    async def _run_capacity(self) -> None:
        """Sends the capacity when it changes. This is separate from the heartbeats, so that a hanging driver does not
        stop them."""
        while True:
            capacity = await self.read_capacity()
            if capacity != self.reported_capacity:
                self.reported_capacity = capacity
                await self._send(capacity)
            await trio.sleep(self.heartbeat_seconds)

    async def _run_leaving(self) -> None:
        await self.agent.leaving.wait()
        await self._send(Leaving())
        self._leaving_sent.set()

    async def _run_tail(self, request: TailLogs) -> None:
        """Serves one reader of a backend's output, at the pace of the connection."""
        output = self.agent.output_of(request.replica_id)
        if output is None:
            await self._send(LogChunk(request.tail, (), ended=True))
            return
        with trio.CancelScope() as scope, output.open_follower(request.lines) as follower:
            self._tails[request.tail] = scope
            ended = False
            while not ended:
                taken = await follower.take()
                ended = taken.ended or not request.follow
                await self._send(LogChunk(request.tail, taken.lines, taken.skipped, ended=ended))
        self._tails.pop(request.tail, None)

    def _end_tail(self, tail: int) -> None:
        if (scope := self._tails.get(tail)) is not None:
            scope.cancel()
