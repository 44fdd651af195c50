"""The gateway's voice in its fleet: says what it has, hears what the others have, and knows whether it is still part.

One exchange at a time, in one statement; how soon the next one comes:

| when                                                   | it comes after                                     |
|--------------------------------------------------------|----------------------------------------------------|
| this gateway is alone                                  | a beat; at once when a queue begins or ends        |
| others live, and anybody has a request                 | `interval_seconds`: what is said is that old       |
| others live, and nobody has any                        | `QUIET_FACTOR` times that; at once when one begins |
| the registry could not be used                         | a growing pause                                    |

Never two within `interval_seconds`, whatever the requests do.

The others count a gateway as dead `ttl_seconds` after it was last heard, which is never before it has asked. So one
that is cut off knows it by its own clock, at the latest when they do: whatever it waits for, it waits no longer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final, NoReturn

import structlog
import trio

from gateway.concurrency import Wake
from gateway.domain.peers import NOTHING_HEARD, PeerState, PeerStates
from gateway.registry.clock import RegistryClock
from gateway.registry.protocol import Registry, RegistryError

log = structlog.get_logger(__name__)

BEAT_SECONDS_MAX: Final = 1.0
BEATS_PER_TTL: Final = 5
QUIET_FACTOR: Final = 5
SLOW_SECONDS: Final = 0.5
"""How often the parts of a bulletin are made anew that need not be exact."""
RETRY_FIRST_SECONDS: Final = 0.1
RETRY_MAX_SECONDS: Final = 1.0


@dataclass
class PeerSync:
    """Exchanges state with the other gateways through the registry, and notices when this one is cut off."""

    registry: Registry
    bulletin: PeerState
    """The last one that was made."""
    interval_seconds: float
    ttl_seconds: float
    """A gateway that could say nothing for so long is dead for the others, and knows it."""
    fast: Callable[[PeerState, bool], PeerState]
    """With the present leases and demand; True: there are others who want to know the leases."""
    slow: Callable[[PeerState], PeerState]
    """With the present rest."""
    on_heard: Callable[[PeerStates, PeerState], None]
    """With what this gateway has said."""
    on_cut_off: Callable[[], None]
    """Called when this gateway has become dead for the others."""
    clock: RegistryClock = field(default_factory=RegistryClock)
    turn: trio.Lock = field(default_factory=trio.Lock)
    """Held from the making of a bulletin until it is written; so does whoever else writes leases of this gateway."""
    heard: PeerStates = NOTHING_HEARD
    """What came last; kept while nothing comes."""
    connected: bool = False
    """The last exchange came to an end."""
    _changed: Wake = field(default_factory=Wake, init=False)
    _heard_at: float = field(default=-inf, init=False)
    _slow_at: float = field(default=-inf, init=False)
    _is_cut_off: bool = field(default=False, init=False)
    _retry_seconds: float = field(default=RETRY_FIRST_SECONDS, init=False)

    @property
    def has_peers(self) -> bool:
        """Tells whether there were other gateways at the last exchange."""
        return bool(self.heard.others)

    def note_demand(self) -> None:
        """A queue has begun or ended."""
        self._changed.set()

    def note_leases(self) -> None:
        """A lease has begun or ended; nobody needs to know if this gateway is alone."""
        if self.heard.others:
            self._changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Until cancelled. Reports started after the first exchange; raises `RegistryError` if that one fails."""
        await self._exchange()
        task_status.started()
        while True:
            last = trio.current_time()
            await trio.sleep_until(last + self.interval_seconds)
            await self._changed.wait_until(last + self._pause_seconds())
            try:
                await self._exchange()
            except RegistryError as error:
                await self._note_failure(error)

    async def _exchange(self) -> None:
        """Raises `RegistryError`."""
        if trio.current_time() >= self._slow_at + SLOW_SECONDS:
            self._slow_at = trio.current_time()
            self.bulletin = self.slow(self.bulletin)
        with trio.move_on_at(self._silence_ends_at):
            async with self.turn:
                self.bulletin = self.fast(self.bulletin, self.has_peers)
                asked_at = trio.current_time()
                heard = await self._ask()
            self._note_success(heard, asked_at)
            return
        raise RegistryError(f"nothing could be exchanged with the registry for {self.ttl_seconds:g} s")

    async def _ask(self) -> PeerStates:
        """Raises `RegistryError`."""
        with trio.move_on_after(self.ttl_seconds / 3):
            return await self.registry.exchange(self.bulletin, self.ttl_seconds)
        raise RegistryError(f"the registry did not answer within {self.ttl_seconds / 3:g} s")

    def _note_success(self, heard: PeerStates, asked_at: float) -> None:
        if heard.others.keys() != self.heard.others.keys():
            log.info("fleet.gateways", others=sorted(heard.others))
        self.clock.note(heard.now)
        self.heard, self._heard_at = heard, asked_at
        self.connected, self._is_cut_off, self._retry_seconds = True, False, RETRY_FIRST_SECONDS
        self.on_heard(heard, self.bulletin)

    async def _note_failure(self, error: RegistryError) -> None:
        log.warning("peers.sync_failed", error=str(error), retry_seconds=self._retry_seconds)
        self.connected = False
        retry_at = trio.current_time() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, RETRY_MAX_SECONDS)
        if self._silence_ends_at <= retry_at:
            await trio.sleep_until(self._silence_ends_at)
            self._note_cut_off()
        await trio.sleep_until(retry_at)

    def _note_cut_off(self) -> None:
        log.error("fleet.cut_off", seconds=round(trio.current_time() - self._heard_at, 1))
        self._is_cut_off = True
        self._forget_what_others_have()
        self.on_cut_off()

    @property
    def _silence_ends_at(self) -> float:
        """When this gateway will be dead for the others if it can say nothing more; infinity if it is already."""
        return inf if self._is_cut_off or self._heard_at == -inf else self._heard_at + self.ttl_seconds

    def _forget_what_others_have(self) -> None:
        """They still live, as far as is known, but what they said is too old to count."""
        others = {
            each.gateway_id: replace(each, leases={}, uses={}, demand=(), progress={})
            for each in self.heard.others.values()
        }
        self.heard = replace(self.heard, others=others)
        self.on_heard(self.heard, self.bulletin)

    def _pause_seconds(self) -> float:
        beat = min(BEAT_SECONDS_MAX, self.ttl_seconds / BEATS_PER_TTL)
        if not self.has_peers:
            return max(self.interval_seconds, beat)
        said = (self.bulletin, *self.heard.others.values())
        lively = any(each.leases or each.demand for each in said)
        return (
            self.interval_seconds
            if lively
            else max(self.interval_seconds, min(self.interval_seconds * QUIET_FACTOR, beat))
        )
