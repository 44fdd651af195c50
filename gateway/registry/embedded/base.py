"""The common part of stores whose rows only this process writes: its clock, and peer states and terms in memory.

Every gateway that publishes or leads there lives in this process, so none of that has to outlive the process.
"""

from dataclasses import replace
from types import MappingProxyType

import trio

from gateway.domain.cluster import Demand
from gateway.domain.ids import GatewayId, new_id
from gateway.domain.peers import SILENT_SECONDS_MAX, PeerState, PeerStates
from gateway.registry.store import Clock, MakeId, Store
from gateway.registry.tables import LeaderTerm, Tables


class EmbeddedStore(Store):
    """A store of which this process is the only writer: it keeps peer states and the leader's term in memory."""

    def __init__(self, clock: Clock, version: int = 0, make_id: MakeId = new_id) -> None:
        super().__init__(version, make_id)
        self._clock = clock
        self._peer_states: dict[GatewayId, tuple[PeerState, float]] = {}
        """The peer states, each with the time until which it counts."""
        self._leader = LeaderTerm()
        """The term of a leader that this process has seen begin."""

    async def now(self) -> float:
        """Returns this process's clock, in seconds since the epoch."""
        await trio.lowlevel.checkpoint()
        return self._clock()

    async def sync_peers(self, peer_state: PeerState, ttl_seconds: float) -> PeerStates:
        """Keeps the gateway's peer state for `ttl_seconds` and returns those of the other gateways of this process."""
        await trio.lowlevel.checkpoint()
        now = self._clock()
        self._peer_states[peer_state.gateway_id] = peer_state, now + ttl_seconds
        others = self._counting(now, peer_state.gateway_id)
        known = self._counting(now - SILENT_SECONDS_MAX, peer_state.gateway_id)
        silent = {gateway_id: each for gateway_id, each in known.items() if gateway_id not in others}
        return PeerStates(now, self._version, MappingProxyType(others), MappingProxyType(silent))

    async def leave(self, gateway_id: GatewayId) -> None:
        """Forgets the gateway's peer state and ends its term as leader."""
        await trio.lowlevel.checkpoint()
        self._peer_states.pop(gateway_id, None)
        if self._leader.gateway_id == gateway_id:
            self._leader = replace(self._leader, expires_at=0.0)

    async def acquire_or_renew(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        """Takes or renews the leader's term. Returns the epoch; None if another gateway's term is not over."""
        epoch = await super().acquire_or_renew(gateway_id, term_seconds)
        if epoch is not None:
            self._leader = LeaderTerm(gateway_id, epoch, self._clock() + term_seconds)
        return epoch

    async def _renew_term(self, gateway_id: GatewayId, term_seconds: float) -> int | None:  # noqa: ARG002 - `acquire_or_renew` does
        await trio.lowlevel.checkpoint()
        return self._leader.epoch if self._leader.gateway_id == gateway_id else None

    def _with_term(self, tables: Tables) -> Tables:
        """Returns the tables with this process's term. A leader that this process has not seen belongs to an earlier
        process."""
        return replace(tables, leader_term=replace(tables.leader_term, expires_at=self._leader.expires_at))

    def _demand(self) -> list[Demand]:
        return [row for peer_state in self._counting(self._clock()).values() for row in peer_state.demand]

    def _counting(self, now: float, without: GatewayId | None = None) -> dict[GatewayId, PeerState]:
        return {
            gateway_id: peer_state
            for gateway_id, (peer_state, until) in self._peer_states.items()
            if until > now and gateway_id != without
        }
