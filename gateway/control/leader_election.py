"""Decides whether this gateway leads. The leader is the only gateway that plans, for lease terms that it has to renew;
the registry decides (L12, L13, L15).

A leader never trusts its term for longer than the registry does, because it counts from the moment before it asked. A
leader that was paused and continues finds that its term is over before it plans again, and the registry refuses its
unfinished writes by their epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from gateway.concurrency import Wake
from gateway.domain.ids import GatewayId
from gateway.registry.protocol import PlanRegistry, RegistryError

log = structlog.get_logger(__name__)

TERM_SHARE: Final = 0.6
"""The term as a share of the time after which a gateway counts as dead. The rest is for another gateway to notice that
the term is over."""
RENEWALS_PER_TERM: Final = 4
TRIES_PER_TERM: Final = 6
"""How often per term a gateway that does not lead asks whether it may."""


@dataclass
class LeaderElection:
    """Acquires and renews the leader's term. If the leader dies, another gateway leads within `gateway_ttl_seconds`."""

    registry: PlanRegistry
    gateway_id: GatewayId
    gateway_ttl_seconds: float
    changed: Callable[[], None] = lambda: None
    """Called when this gateway becomes the leader or stops being the leader."""
    _epoch: int | None = field(default=None, init=False)
    _until: float = field(default=0.0, init=False)
    """The end of the term (Trio's clock, seconds)."""
    _wake: Wake = field(default_factory=Wake, init=False)

    @property
    def term_seconds(self) -> float:
        """The length of a term in seconds."""
        return self.gateway_ttl_seconds * TERM_SHARE

    @property
    def epoch(self) -> int | None:
        """The epoch of this gateway's term, or None if it does not lead."""
        return self._epoch if trio.current_time() < self._until else None

    def lose(self) -> None:
        """Gives up the term, because the registry says that another gateway leads."""
        self._set(None, 0.0)
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Leads whenever the registry allows it, until cancelled. Reports started after the first try."""
        started = False
        while True:
            await self._try()
            if not started:
                task_status.started()
                started = True
            await self._wake.wait_until(self._next_try())

    def _next_try(self) -> float:
        """Returns the time of the next try. A leader whose question was answered counts from the question, however long
        the answer took. Otherwise the next try comes soon."""
        now = trio.current_time()
        if self.epoch is None:
            return now + self.term_seconds / TRIES_PER_TERM
        due = self._until - self.term_seconds * (1 - 1 / RENEWALS_PER_TERM)
        return max(due, now + self.term_seconds / RENEWALS_PER_TERM / 4)

    async def _try(self) -> None:
        asked_at = trio.current_time()
        epoch: int | None = None
        try:
            with trio.move_on_after(self.term_seconds):
                epoch = await self.registry.acquire_or_renew(self.gateway_id, self.term_seconds)
        except RegistryError as error:
            log.log(error.log_level, "leadership.unknown", error=str(error))
            epoch = self.epoch  # until its term is over
            asked_at = self._until - self.term_seconds
        self._set(epoch, asked_at + self.term_seconds)

    def _set(self, epoch: int | None, until: float) -> None:
        before = self.epoch  # None also if its term has just run out, which nobody was told
        self._epoch, self._until = epoch, until
        if epoch != before:
            log.info("leadership.acquired" if epoch is not None else "leadership.lost", epoch=epoch)
            self.changed()
