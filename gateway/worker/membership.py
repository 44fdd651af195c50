"""Keeps this worker in its fleet: one session after the other, each with the next gateway of the join list, for ever.

The membership and the agent do not depend on each other's health. The agent runs what it was last told to run, with or
without a gateway. How a gateway is reached is not known here: see `Attend`.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from random import Random
from typing import Final, Generic, TypeAlias, TypeVar

import structlog
import trio

from gateway.domain.pacing import Backoff
from gateway.domain.resources import Capacity
from gateway.domain.session import FromWorker, ToWorker
from gateway.worker.agent import Agent
from gateway.worker.session import WorkerSession

log = structlog.get_logger(__name__)

PAUSE_FIRST_SECONDS: Final = 0.2
PAUSE_MAX_SECONDS: Final = 10.0
"""The longest pause between two attempts to join: long enough for a gateway that restarts, short beside
`health.stale_after`."""
LASTING_SECONDS: Final = 10.0
"""The length of a session after which the next attempt begins without a pause."""
LEAVE_SECONDS: Final = 5.0
"""The time for the last reports, and for a gateway to take them."""

GatewayT = TypeVar("GatewayT")
"""A gateway of the join list, for example its URL."""


def join_backoff(rng: Random) -> Backoff:
    """Makes the pauses between attempts. They vary, so that the workers of a gateway that comes back do not all come at
    once."""
    return Backoff(PAUSE_FIRST_SECONDS, PAUSE_MAX_SECONDS, rng)


class NoSession(Exception):
    """There was no session with this gateway, or it was lost. The next attempt may succeed."""


HoldSession: TypeAlias = Callable[
    [trio.MemorySendChannel[FromWorker], trio.MemoryReceiveChannel[ToWorker], Capacity], Awaitable[None]
]
"""Runs the worker's end of an open session until either side ends it. The capacity is that of the session's hello."""
Attend: TypeAlias = Callable[[GatewayT, HoldSession], Awaitable[None]]
"""Registers at a gateway, opens a session with it, passes the two ends that the worker has, and returns when the
session has ended or was refused. Raises `NoSession`."""


class Membership(Generic[GatewayT]):
    """Keeps one session with one of the gateways."""

    def __init__(
        self,
        *,
        gateways: Iterable[GatewayT],
        attend: Attend[GatewayT],
        agent: Agent,
        heartbeat_seconds: float,
        read_capacity: Callable[[], Awaitable[Capacity]],
        backoff: Backoff,
    ) -> None:
        """`gateways` yields those of the join list again and again, in the order of the attempts."""
        self._gateways = gateways
        self._attend = attend
        self._agent = agent
        self._heartbeat_seconds = heartbeat_seconds
        self._read_capacity = read_capacity
        self._backoff = backoff
        self._session: WorkerSession | None = None
        self._has_joined = False
        self._is_leaving = False
        self._connected = trio.Event()
        """Set as soon as a session has begun."""
        self._ended = trio.Event()
        """Set as soon as `run` has returned."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled, or until `say_goodbye`. Reports started as soon as the first session has begun."""
        hold = partial(self._hold, task_status)
        for gateway in self._gateways:
            began = trio.current_time()
            try:
                await self._attend(gateway, hold)
            except NoSession as error:
                if not self._is_leaving:
                    log.warning("worker.join_failed", url=str(gateway), error=str(error))
            self._session = None
            if self._is_leaving:
                self._ended.set()
                return
            if trio.current_time() - began > LASTING_SECONDS:
                self._backoff.reset()
            await trio.sleep(self._backoff.next_seconds())

    async def say_goodbye(self) -> None:
        """Ends the session once all reports are sent; then `run` returns. Between two sessions it waits for the next
        one, for as long as a goodbye may take at all."""
        with trio.move_on_after(LEAVE_SECONDS):
            while self._session is None:
                await self._connected.wait()
            self._is_leaving = True
            await self._session.finish()
            await self._ended.wait()

    async def _hold(
        self,
        task_status: trio.TaskStatus[None],
        outgoing: trio.MemorySendChannel[FromWorker],
        incoming: trio.MemoryReceiveChannel[ToWorker],
        known_capacity: Capacity,
    ) -> None:
        self._session = WorkerSession(
            agent=self._agent,
            outgoing=outgoing,
            incoming=incoming,
            heartbeat_seconds=self._heartbeat_seconds,
            read_capacity=self._read_capacity,
            reported_capacity=known_capacity,
        )
        if not self._has_joined:
            self._has_joined = True
            task_status.started()
        self._connected.set()
        self._connected = trio.Event()
        await self._session.run()
