"""Strict mode on a real server: picks of many gateways at once are exact, and stand in nobody's way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import trio

from gateway.bridge import Bridge, open_bridge
from gateway.composition.routing import reservations_at
from gateway.domain.ids import Address, GatewayId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.peers import PeerState, ReservationFailed, SlotRequest
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import UNKNOWN
from gateway.domain.routability import FleetView, build_view
from gateway.registry.postgres import registry as registry_module
from gateway.registry.postgres.pool import Bounds, Mode, PostgresTransaction, open_postgres_pool
from gateway.registry.postgres.registry import PostgresRegistry, open_postgres_registry
from gateway.registry.postgres.reserve_slot import LOCK_MODEL, reserve_slot_aio
from gateway.registry.protocol import RegistryError
from gateway.routing.load_tracker import Lease
from tests.contract.samples import GATEWAY, MODEL, NODE, OTHER_GATEWAY, join, replica, spec
from tests.fakes.postgres_fleet import held_open, open_two, until_waiting
from tests.fakes.routing_harness import LIMITS, ORIGIN, RoutingHarness

PATIENCE_SECONDS = 60.0
TTL_SECONDS = 600.0
MORE_CLAIMS = 10
"""Of those that wait, once there is no slot any more."""
HELD = Bounds(60.0, 60.0, 60.0, 60.0, 60.0)
REPLICAS = [ReplicaId(f"r{number}") for number in range(4)]


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge() as bridge:
        yield bridge


@pytest.fixture
def patient_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the database needs more than the half second after which a gateway picks by itself."""
    monkeypatch.setattr(registry_module, "RESERVE_BOUNDS", HELD)


async def place(registry: PostgresRegistry, slots: int) -> None:
    """Four idle replicas of `MODEL`."""
    session = await join(registry)
    await registry.declare_models([spec()])
    epoch = await registry.acquire_or_renew(GATEWAY, TTL_SECONDS)
    assert epoch is not None
    rows = [
        replica(
            each,
            slot=slot,
            revision=spec().revision,
            desired=Desired.RUN,
            observed=Observed.READY,
            address=Address("h:1"),
            parallel=slots,
        )
        for slot, each in enumerate(REPLICAS)
    ]
    assert await registry.apply(epoch, ControlWrite(create=tuple(rows)))
    assert session


class StrictGateway:
    """One gateway's queue, leases and claims; what it is given it keeps."""

    def __init__(self, registry: PostgresRegistry, name: str, view: FleetView) -> None:
        self.id = GatewayId(name)
        self.leases: list[Lease] = []
        self.asked = 0
        self._reserve_slot = reservations_at(registry)
        limits = replace(LIMITS, queue_length_max=1000)
        self.harness = RoutingHarness(limits=limits, reserve_slot=self.reserve_slot, gateway_id=self.id)
        self.harness.view = view

    async def reserve_slot(self, request: SlotRequest) -> ReplicaId | None:
        self.asked += 1
        return await self._reserve_slot(request)

    async def request(self) -> None:
        assert self.harness.reservations is not None
        ticket = self.harness.admission.open_request(MODEL, ORIGIN)
        while True:
            lease = await self.harness.admission.wait_lease(ticket)
            if await self.harness.reservations.confirm(ticket, lease):
                self.leases.append(lease)
                return
            lease.release()


@asynccontextmanager
async def strict_gateways(bridge: Bridge, url: str, *, slots: int, count: int) -> AsyncIterator[list[StrictGateway]]:
    """Gateways on two processes' ends of one registry."""
    async with AsyncExitStack() as held:
        both = await held.enter_async_context(open_two(bridge, url))
        await place(both[0], slots)
        view = build_view(await both[0].read_state())
        gateways = [StrictGateway(both[number % 2], f"g{number}", view) for number in range(count)]
        for number, gateway in enumerate(gateways):
            await both[number % 2].sync_peers(PeerState(gateway.id), TTL_SECONDS)
        yield gateways


def assigned(gateways: list[StrictGateway]) -> list[int]:
    """How many requests each replica has, over all gateways."""
    counts = Counter(lease.candidate.replica_id for gateway in gateways for lease in gateway.leases)
    return [counts[each] for each in REPLICAS]


@pytest.mark.usefixtures("patient_picks")
@pytest.mark.parametrize("count", [2, 8])
async def test_r3_sixty_four_picks_at_once_spread_evenly(bridge: Bridge, emptied_postgres_url: str, count: int) -> None:
    """Never apart by more than one, whichever gateway picked; what is seen on the way is a little late."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with strict_gateways(bridge, emptied_postgres_url, slots=32, count=count) as gateways:

            async def request(gateway: StrictGateway) -> None:
                await gateway.request()
                spread.append(assigned(gateways))

            spread: list[list[int]] = []
            async with trio.open_nursery() as nursery:
                for number in range(64):
                    nursery.start_soon(request, gateways[number % count])
    assert assigned(gateways) == [16] * 4
    assert all(max(each) - min(each) <= count for each in spread)


@pytest.mark.usefixtures("patient_picks")
async def test_r3_no_replica_is_given_more_than_its_slots(bridge: Bridge, emptied_postgres_url: str) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            strict_gateways(bridge, emptied_postgres_url, slots=4, count=4) as gateways,
            trio.open_nursery() as nursery,
        ):
            for number in range(64):
                nursery.start_soon(gateways[number % 4].request)
            while sum(assigned(gateways)) < 16:  # noqa: ASYNC110 - the registry's
                await trio.sleep(0.01)
            asked = sum(gateway.asked for gateway in gateways)
            while sum(gateway.asked for gateway in gateways) < asked + MORE_CLAIMS:  # noqa: ASYNC110 - a counter's
                await trio.sleep(0.01)
            assert assigned(gateways) == [4] * 4
            nursery.cancel_scope.cancel()


async def test_r3_a_pick_that_waited_sees_what_was_picked_before_it(bridge: Bridge, emptied_postgres_url: str) -> None:
    """The other one's statement began before the first one's commit; what was best then is taken now."""
    async with (
        strict_gateways(bridge, emptied_postgres_url, slots=1, count=2),
        open_postgres_pool(bridge, emptied_postgres_url) as pool,
    ):
        picked: list[ReplicaId | None] = []
        counted, go_on = trio.Event(), asyncio.Event()

        async def first_aio(transaction: PostgresTransaction) -> None:
            picked.append(await reserve_slot_aio(SlotRequest(GatewayId("g0"), MODEL), None, transaction))
            counted.set()
            await go_on.wait()

        async def second() -> None:
            picked.append(
                await pool.transaction(
                    "claim",
                    Mode.SHARED,
                    lambda each: reserve_slot_aio(SlotRequest(GatewayId("g1"), MODEL), None, each),
                    HELD,
                )
            )

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.transaction, "claim", Mode.SHARED, first_aio, HELD)
                await counted.wait()
                nursery.start_soon(second)
                await until_waiting(pool, 1)
                assert len(picked) == 1, "it waits"
                go_on.set()
        assert picked == ["r0", "r1"]


async def test_r3_heartbeats_and_control_writes_go_on_while_a_pick_holds_its_locks(
    bridge: Bridge, emptied_postgres_url: str
) -> None:
    async with (
        open_two(bridge, emptied_postgres_url) as (one, other),
        open_postgres_pool(bridge, emptied_postgres_url) as pool,
    ):
        await place(one, slots=1)
        session = (await one.read_state()).nodes[NODE].session
        await one.sync_peers(PeerState(GATEWAY), TTL_SECONDS)
        counted, go_on = trio.Event(), asyncio.Event()

        async def hold_aio(transaction: PostgresTransaction) -> None:
            assert await reserve_slot_aio(SlotRequest(GATEWAY, MODEL), None, transaction) == "r0"
            counted.set()
            await go_on.wait()

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.transaction, "claim", Mode.SHARED, hold_aio, HELD)
                await counted.wait()
                assert await other.record_capacity(NODE, session, replace(UNKNOWN, ram_bytes=1))
                assert await other.record_broken(REPLICAS[0], "of no use")
                assert (await other.sync_peers(PeerState(OTHER_GATEWAY), TTL_SECONDS)).peers[GATEWAY].leases == {}
                assert (await other.read_state()).nodes[NODE].capacity.ram_bytes == 1
                go_on.set()


async def test_r3_a_reservation_arrives_at_once_and_is_replaced_by_the_next_peer_state(
    bridge: Bridge, emptied_postgres_url: str
) -> None:
    async with open_two(bridge, emptied_postgres_url) as (one, other):
        await place(one, slots=2)
        await one.sync_peers(PeerState(GATEWAY), TTL_SECONDS)
        await other.sync_peers(PeerState(OTHER_GATEWAY), TTL_SECONDS)
        for leases in ({ReplicaId("r9"): 3}, {ReplicaId("r0"): 1, ReplicaId("r9"): 3}):
            picked = await one.reserve_slot(SlotRequest(GATEWAY, MODEL, leases=leases))
            assert picked is not None
            peer_states = await other.sync_peers(PeerState(OTHER_GATEWAY), TTL_SECONDS)
            assert peer_states.peers[GATEWAY].leases == {**leases, picked: leases.get(picked, 0) + 1}
        await one.sync_peers(PeerState(GATEWAY), TTL_SECONDS)  # says nothing that it had not said before
        assert (await other.sync_peers(PeerState(OTHER_GATEWAY), TTL_SECONDS)).peers[GATEWAY].leases == {}


async def test_a_claim_of_a_gateway_that_has_said_nothing_fails(bridge: Bridge, emptied_postgres_url: str) -> None:
    async with open_postgres_registry(bridge, emptied_postgres_url) as registry:
        await place(registry, slots=1)
        with pytest.raises(ReservationFailed, match="does not know this gateway"):
            await reservations_at(registry)(SlotRequest(GATEWAY, MODEL))


async def test_l2_a_claim_does_not_wait_for_long(bridge: Bridge, emptied_postgres_url: str) -> None:
    async with (
        open_postgres_registry(bridge, emptied_postgres_url) as registry,
        open_postgres_pool(bridge, emptied_postgres_url) as pool,
    ):
        await place(registry, slots=1)
        await registry.sync_peers(PeerState(GATEWAY), TTL_SECONDS)
        async with held_open(pool, Mode.SHARED, LOCK_MODEL, MODEL):
            with trio.fail_after(PATIENCE_SECONDS / 4), pytest.raises(RegistryError):
                await registry.reserve_slot(SlotRequest(GATEWAY, MODEL))
        assert await registry.reserve_slot(SlotRequest(GATEWAY, MODEL)) == "r0"
