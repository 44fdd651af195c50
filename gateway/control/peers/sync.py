"""Publishes this gateway's state, reads its peers', and detects when it is cut off.

There is one exchange at a time, in one statement. The table says how soon the next one comes:

| when                                                   | the next exchange comes after                      |
|--------------------------------------------------------|----------------------------------------------------|
| this gateway is alone                                  | a beat; at once when a queue begins or ends        |
| there are peers, and any gateway has a request         | `interval_seconds`: published counts are that old  |
| there are peers, and no gateway has a request          | `QUIET_FACTOR` times that; at once when one begins |
| the registry could not be used                         | a growing pause                                    |

Never two within `interval_seconds`, whatever the requests do.

The others count a gateway as dead `ttl_seconds` after it was last heard, which is never before it has asked. So one
that is cut off knows it by its own clock, at the latest when they do: whatever it waits for, it waits no longer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final, NoReturn

import structlog
import trio

from gateway.control.peers.peer_table import PeerTable
from gateway.domain.pacing import Backoff
from gateway.domain.peers import PeerState, PeerStates
from gateway.registry.clock import RegistryClock
from gateway.registry.protocol import PeerRegistry, RegistryError

log = structlog.get_logger(__name__)

BEAT_SECONDS_MAX: Final = 1.0
BEATS_PER_TTL: Final = 5
QUIET_FACTOR: Final = 5
SLOW_SECONDS: Final = 0.5
"""How often the parts of a peer state are made anew that need not be exact."""
RETRY_FIRST_SECONDS: Final = 0.1
RETRY_MAX_SECONDS: Final = 1.0


@dataclass
class PeerSync:
    """Exchanges state with the peers through the registry, and notices when this gateway is cut off."""

    registry: PeerRegistry
    peers: PeerTable
    interval_seconds: float
    ttl_seconds: float
    """A gateway that could not publish for this long is considered dead by its peers, and detects that."""
    fast: Callable[[PeerState, bool], PeerState]
    """Returns the state with the current leases and demand. The second argument says whether there are peers that need
    the leases."""
    slow: Callable[[PeerState], PeerState]
    """Returns the state with current values of all other parts."""
    on_received: Callable[[PeerStates, PeerState], None]
    """Called with the states of the peers and with the state that this gateway has published."""
    on_cut_off: Callable[[], None]
    """Called when its peers consider this gateway dead."""
    clock: RegistryClock = field(default_factory=RegistryClock)
    turn: trio.Lock = field(default_factory=trio.Lock)
    """The lock that is held from the making of a peer state until it is written. Every task that writes this
    gateway's leases holds it."""
    _synced_at: float = field(default=-inf, init=False)
    _slow_at: float = field(default=-inf, init=False)
    _is_cut_off: bool = field(default=False, init=False)
    _backoff: Backoff = field(default_factory=lambda: Backoff(RETRY_FIRST_SECONDS, RETRY_MAX_SECONDS), init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Runs until cancelled. Reports started after the first exchange. Raises `RegistryError` if that one fails."""
        await self._exchange()
        task_status.started()
        while True:
            last = trio.current_time()
            await trio.sleep_until(last + self.interval_seconds)
            await self.peers.changed.wait_until(last + self._pause_seconds())
            try:
                await self._exchange()
            except RegistryError as error:
                await self._record_failure(error)

    async def _exchange(self) -> None:
        """Runs one exchange and applies its result. Raises `RegistryError`."""
        if trio.current_time() >= self._slow_at + SLOW_SECONDS:
            self._slow_at = trio.current_time()
            self.peers.publish(self.slow(self.peers.own))
        with trio.move_on_at(self._silence_ends_at):
            async with self.turn:
                self.peers.publish(self.fast(self.peers.own, self.peers.has_peers))
                asked_at = trio.current_time()
                peer_states = await self._ask()
            self._record_success(peer_states, asked_at)
            return
        raise RegistryError(f"nothing could be exchanged with the registry for {self.ttl_seconds:g} s")

    async def _ask(self) -> PeerStates:
        """Publishes this gateway's state and returns those of its peers. Raises `RegistryError`."""
        with trio.move_on_after(self.ttl_seconds / 3):
            return await self.registry.sync_peers(self.peers.own, self.ttl_seconds)
        raise RegistryError(f"the registry did not answer within {self.ttl_seconds / 3:g} s")

    def _record_success(self, peer_states: PeerStates, asked_at: float) -> None:
        if peer_states.peers.keys() != self.peers.states.keys():
            log.info("peers.changed", peers=sorted(peer_states.peers))
        self.clock.update(peer_states.now)
        self.peers.update(peer_states)
        self._synced_at, self._is_cut_off = asked_at, False
        self._backoff.reset()
        self.on_received(peer_states, self.peers.own)

    async def _record_failure(self, error: RegistryError) -> None:
        retry_seconds = self._backoff.next_seconds()
        log.warning("peers.sync_failed", error=str(error), retry_seconds=retry_seconds)
        self.peers.lose_contact()
        retry_at = trio.current_time() + retry_seconds
        if self._silence_ends_at <= retry_at:
            await trio.sleep_until(self._silence_ends_at)
            self._apply_cut_off()
        await trio.sleep_until(retry_at)

    def _apply_cut_off(self) -> None:
        log.error("peers.cut_off", seconds=round(trio.current_time() - self._synced_at, 1))
        self._is_cut_off = True
        self.peers.forget_loads()
        self.on_received(self.peers.peer_states, self.peers.own)
        self.on_cut_off()

    @property
    def _silence_ends_at(self) -> float:
        """The time at which the peers will consider this gateway dead if it publishes nothing more (Trio's clock,
        seconds). It is infinite if they do already."""
        return inf if self._is_cut_off or self._synced_at == -inf else self._synced_at + self.ttl_seconds

    def _pause_seconds(self) -> float:
        beat = min(BEAT_SECONDS_MAX, self.ttl_seconds / BEATS_PER_TTL)
        if not self.peers.has_peers:
            return max(self.interval_seconds, beat)
        published = (self.peers.own, *self.peers.states.values())
        lively = any(each.leases or each.demand for each in published)
        return (
            self.interval_seconds
            if lively
            else max(self.interval_seconds, min(self.interval_seconds * QUIET_FACTOR, beat))
        )
