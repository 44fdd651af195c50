"""A gateway's voice in its fleet: how often it speaks, what it hears, and when it knows that it is cut off."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from gateway.control.peers.peer_table import PeerTable
from gateway.control.peers.sync import BEAT_SECONDS_MAX, QUIET_FACTOR, PeerSync
from gateway.domain.cluster import Demand
from gateway.domain.ids import GatewayId, ModelName, ReplicaId
from gateway.domain.peers import PeerState, PeerStates
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.protocol import RegistryError
from gateway.routing.load_tracker import LoadTracker
from tests.fakes.fleet import MODEL, replica, view
from tests.fakes.routing_harness import ORIGIN

ONE, TWO = GatewayId("one"), GatewayId("two")
REPLICA = ReplicaId("r")
[CANDIDATE] = view(replica(REPLICA)).candidates[MODEL]
INTERVAL, TTL = 0.02, 15.0


class CountingRegistry(MemoryRegistry):
    def __init__(self) -> None:
        super().__init__(lambda: trio.current_time() + self.ahead_seconds)
        self.ahead_seconds = 120.0
        self.exchanges = Counter[GatewayId]()
        self.away = False
        self.hangs = False
        self.answer_takes_seconds = 0.0
        """What was said is heard by then."""

    async def sync_peers(self, peer_state: PeerState, ttl_seconds: float) -> PeerStates:
        self.exchanges[peer_state.gateway_id] += 1
        if self.hangs:
            await trio.sleep_forever()
        if self.away:
            raise RegistryError("no route to the database")
        peer_states = await super().sync_peers(peer_state, ttl_seconds)
        await trio.sleep(self.answer_takes_seconds)
        return peer_states

    def dead_at(self, gateway_id: GatewayId) -> float:
        """When the gateway is dead for the others, by Trio's clock."""
        return self._peer_states[gateway_id][1] - self.ahead_seconds


@dataclass
class Member:
    registry: CountingRegistry
    gateway_id: GatewayId
    leases: dict[ReplicaId, int] = field(default_factory=dict)
    demand: tuple[Demand, ...] = ()
    peer_states: list[PeerStates] = field(default_factory=list)
    cut_off_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        peers = PeerTable(self.gateway_id)
        self.loads = LoadTracker(peers=peers)
        self.sync_peers = PeerSync(
            self.registry,
            peers,
            INTERVAL,
            TTL,
            fast=lambda last, has_peers: replace(last, leases=self.leases if has_peers else {}, demand=self.demand),
            slow=lambda last: replace(last, url="http://here"),
            on_received=lambda peer_states, _own: self.peer_states.append(peer_states),
            on_cut_off=lambda: self.cut_off_at.append(trio.current_time()),
        )

    def take_lease(self) -> None:
        self.loads.lease(CANDIDATE, ORIGIN, trio.current_time())
        self.leases = self.loads.published()

    @property
    def exchanges(self) -> int:
        return self.registry.exchanges[self.gateway_id]


@asynccontextmanager
async def open_gateways(*gateway_ids: GatewayId) -> AsyncIterator[list[Member]]:
    registry = CountingRegistry()
    members = [Member(registry, gateway_id) for gateway_id in gateway_ids]
    async with trio.open_nursery() as nursery:
        for member in members:
            await nursery.start(member.sync_peers.run)
        yield members
        nursery.cancel_scope.cancel()


def is_connected(member: Member) -> bool:
    return member.sync_peers.peers.connected


async def test_one_alone_speaks_once_a_second_whatever_its_requests_do(autojump_clock: MockClock) -> None:
    async with open_gateways(ONE) as [one]:
        before = one.exchanges
        for _ in range(1000):
            one.take_lease()
            await trio.sleep(0.01)
        assert one.exchanges - before <= 10
        assert one.sync_peers.peers.own.leases == {}


async def test_a_queue_that_begins_is_published_at_once(autojump_clock: MockClock) -> None:
    async with open_gateways(ONE) as [one]:
        await trio.sleep(0.5)
        one.demand = (Demand(ONE, ModelName("m"), 1, 0.0),)
        one.sync_peers.peers.report_demand()
        await trio.testing.wait_all_tasks_blocked()
        assert (await one.registry.read_state()).demand == one.demand


async def test_never_two_exchanges_within_an_interval(autojump_clock: MockClock) -> None:
    async with open_gateways(ONE, TWO) as members:
        await trio.sleep(2)
        before = [member.exchanges for member in members]
        for _ in range(2000):
            for member in members:
                member.take_lease()
                member.sync_peers.peers.report_demand()
            await trio.sleep(0.001)
        for member, count in zip(members, before, strict=True):
            assert 90 <= member.exchanges - count <= 101


async def test_leases_are_known_to_the_others_within_two_intervals(autojump_clock: MockClock) -> None:
    async with open_gateways(ONE, TWO) as [one, two]:
        await trio.sleep(1.5)
        one.take_lease()
        two.take_lease()  # somebody who routes
        await trio.sleep(2 * INTERVAL + 0.001)
        assert two.sync_peers.peers.peer_states.peers[ONE].leases == {REPLICA: 1}


async def test_a_quiet_fleet_speaks_less(autojump_clock: MockClock) -> None:
    async with open_gateways(ONE, TWO) as [one, _]:
        await trio.sleep(1)
        before = one.exchanges
        await trio.sleep(10)
        assert one.exchanges - before == pytest.approx(10 / (QUIET_FACTOR * INTERVAL), abs=2)


async def test_h11_the_clock_is_the_registrys_and_follows_it(autojump_clock: MockClock) -> None:
    async with open_gateways(ONE) as [one]:
        clock = one.sync_peers.clock
        await trio.sleep(0.3)
        assert clock() == trio.current_time() + 120
        one.registry.ahead_seconds = 500.0
        await trio.sleep(1)
        assert clock() == trio.current_time() + 500
        assert clock.to_trio(clock.of_trio(7.5)) == 7.5


async def test_the_gateway_knows_that_it_is_dead_for_the_others(autojump_clock: MockClock) -> None:
    async with open_gateways(ONE, TWO) as [one, two]:
        await trio.sleep(1.5)
        two.take_lease()
        await trio.sleep(1)
        since = trio.current_time()
        one.registry.away = True
        await trio.sleep(1)
        assert not is_connected(one)
        assert one.sync_peers.peers.peer_states.peers[TWO].leases == {REPLICA: 1}
        await trio.sleep(60)
        [cut_off_at] = one.cut_off_at
        assert TTL - 0.1 <= cut_off_at - since <= TTL + 1.1
        assert one.sync_peers.peers.peer_states.peers == {TWO: PeerState(TWO, "http://here")}
        one.registry.away = False
        await trio.sleep(1.1)
        assert is_connected(one)
        assert one.sync_peers.peers.peer_states.peers[TWO].leases == {REPLICA: 1}


async def test_what_a_gateway_said_counts_from_when_it_was_said_however_late_the_answer(
    autojump_clock: MockClock,
) -> None:
    async with open_gateways(ONE) as [one]:
        one.registry.answer_takes_seconds = 4.0
        before = one.exchanges
        await trio.sleep(1.5 * BEAT_SECONDS_MAX)
        assert one.exchanges == before + 1, "the answer to this one is under way"
        one.registry.away = True
        dead_at = one.registry.dead_at(ONE)
        await trio.sleep(BEAT_SECONDS_MAX + 3.0)
        assert is_connected(one)
        await trio.sleep(2 * TTL)
        assert one.cut_off_at == pytest.approx([dead_at])


CUTS: dict[str, Callable[[Member], None]] = {
    "fails": lambda one: setattr(one.registry, "away", True),
    "hangs": lambda one: setattr(one.registry, "hangs", True),
    "is not asked": lambda one: one.sync_peers.turn.acquire_nowait(),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("last_answer_takes_seconds", [0.0, 4.9])
async def test_a_gateway_knows_no_later_than_the_others_that_it_is_dead(
    cut: Callable[[Member], None], last_answer_takes_seconds: float, autojump_clock: MockClock
) -> None:
    """Whatever it is at: a pause before the next try, a question without an answer, a wait for its turn."""
    for offset in range(3):
        async with open_gateways(ONE, TWO) as [one, _]:
            one.registry.answer_takes_seconds = last_answer_takes_seconds
            await trio.sleep(BEAT_SECONDS_MAX + offset / 3)
            while one.sync_peers.turn.locked():  # noqa: ASYNC110 - the lock has no event for it
                await trio.sleep(0.01)
            cut(one)
            dead_at = one.registry.dead_at(ONE)
            await trio.sleep(2 * TTL)
            assert one.cut_off_at == pytest.approx([dead_at])


async def test_an_exchange_that_hangs_is_given_up_and_counts_as_none(autojump_clock: MockClock) -> None:
    async with open_gateways(ONE) as [one]:
        one.registry.hangs = True
        await trio.sleep(TTL / 3 + 1.1)
        assert not is_connected(one)
        await trio.sleep(2 * TTL)
        assert len(one.cut_off_at) == 1
        one.registry.hangs = False
        await trio.sleep(TTL)
        assert is_connected(one)


async def test_a_registry_that_fails_at_the_start_is_an_error(autojump_clock: MockClock) -> None:
    registry = CountingRegistry()
    registry.away = True
    with pytest.raises(RegistryError):
        await Member(registry, ONE).sync_peers.run()
