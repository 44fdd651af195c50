"""Strict mode: the registry has the last word on every lease, and a gateway serves on when it has none."""

from typing import Any

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Refused
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import GatewayId, ReplicaId
from gateway.domain.peers import PeerState, ReservationFailed
from gateway.routing.decisions import describe
from gateway.routing.load_tracker import FOREVER, Peers
from gateway.routing.reservation import AWAY_SECONDS
from tests.fakes.fleet import GATEWAY, MODEL, replica, view
from tests.fakes.reservations import FakeReservations
from tests.fakes.routing_harness import LIMITS, ORIGIN, FakePeers, RoutingHarness

A, B, C = ReplicaId("a"), ReplicaId("b"), ReplicaId("c")
AWAY = ReservationFailed("cannot reach it")


def two(reservations: FakeReservations, parallel: int = 2, peers: Peers | None = None) -> RoutingHarness:
    """The local pick is `A`."""
    harness = RoutingHarness(
        replica(A, parallel=parallel),
        replica(B, slot=1, parallel=parallel),
        reserve_slot=reservations,
        attempts=1,
        peers=peers,
    )
    harness.loads.change(B).last_used = 0.0
    return harness


def attempts(harness: RoutingHarness) -> list[dict[str, Any]]:
    decision = harness.admission.decisions.find(ORIGIN.request_id)
    assert decision is not None
    recorded: list[dict[str, Any]] = describe(decision)["attempts"]
    return recorded


def said(harness: RoutingHarness) -> list[tuple[str, str, str]]:
    return [(each["replica"], each["registry"], each["outcome"]) for each in attempts(harness)]


async def test_r3_a_lease_that_the_registry_agrees_to_stays(autojump_clock: trio.testing.MockClock) -> None:
    harness = two(FakeReservations(A))
    _, served_by = await harness.generate()
    assert served_by == A
    assert said(harness) == [(A, "agreed", "served")]
    assert harness.loads.load_of(A).last_used == trio.current_time()
    assert harness.in_flight() == 0


async def test_r3_a_lease_moves_to_the_replica_that_the_registry_picked(autojump_clock: trio.testing.MockClock) -> None:
    harness, held = two(FakeReservations(B)), trio.Event()
    harness.backends.script(B, held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.backends.running == [B]
        assert harness.loads.published() == harness.loads.statistics().in_flight == {B: 1}
        assert harness.probe.asked == [B]
        nursery.cancel_scope.cancel()
    assert harness.in_flight() == 0
    assert said(harness) == [(B, "moved from a", "left")]
    assert attempts(harness)[0]["candidates"][0]["verdict"] == "chosen"
    assert harness.loads.load_of(A).last_used == float("-inf"), "nothing went there"


async def test_r3_a_claim_says_what_only_this_gateway_knows(autojump_clock: trio.testing.MockClock) -> None:
    reservations = FakeReservations(A)
    harness = two(reservations)
    running = await harness.lease("elsewhere busy")
    assert harness.loads.published() == {}
    assert harness.reservations is not None
    harness.loads.confirm(running, 0.0)
    await trio.sleep(3)
    for replica_id in (A, B):
        harness.loads.change(replica_id).busy_until = 5.0
    harness.loads.record_failure(B, trio.current_time())
    ticket = harness.admission.open_request(MODEL, ORIGIN)
    lease = await harness.admission.wait_lease(ticket)
    harness.loads.change(B).full_until = 4.0
    ticket.excluded.add(C)
    assert await harness.reservations.confirm(ticket, lease)
    (request,) = reservations.asked
    assert (request.gateway_id, request.model) == (GATEWAY, MODEL)
    assert request.leases == {A: 1}, "without the one that is asked for"
    assert request.unused_seconds == {A: 3.0, B: 3.0}
    assert (request.excluded, request.suspect, request.full, request.busy) == ((C,), [B], [B], [A, B])
    assert harness.loads.published() == {A: 2}


async def test_r3_a_request_waits_while_the_registry_knows_of_no_free_slot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is no attempt, of which there is one only here, and all replicas are left alone for a moment."""
    harness = two(FakeReservations(B, [None, None, None]))
    _, served_by = await harness.generate()
    assert served_by == B
    assert [each[1:] for each in said(harness)] == [("no free slot", "full")] * 3 + [("moved from a", "served")]
    assert trio.current_time() == pytest.approx((1 + 2 + 4) * LIMITS.retry_interval_seconds)
    assert harness.router.statistics().reroutes == {"full": 3}


async def test_r3_a_slot_that_others_give_back_is_claimed_at_once(autojump_clock: trio.testing.MockClock) -> None:
    reservations = FakeReservations(B, [None] * 6)
    harness = two(reservations)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.generate)
        await trio.sleep(0.6)  # refused for the sixth time after 500 ms, and the next try is 200 ms later
        before, began = len(reservations.asked), trio.current_time()
        harness.loads.apply_peers({B: 1})
        harness.loads.apply_peers({})
        await trio.testing.wait_all_tasks_blocked()
        assert (len(reservations.asked), trio.current_time()) == (before + 1, began)


async def test_r3_what_a_request_has_tried_in_vain_is_not_taken_for_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = two(FakeReservations(None))
    ticket = harness.admission.open_request(MODEL, ORIGIN)
    ticket.excluded.add(B)
    lease = await harness.admission.wait_lease(ticket)
    assert harness.reservations is not None
    assert not await harness.reservations.confirm(ticket, lease)
    assert harness.loads.load_of(A).full_until > trio.current_time() > harness.loads.load_of(B).full_until


async def test_r3_all_replicas_are_asked_less_often_while_none_is_free(autojump_clock: trio.testing.MockClock) -> None:
    """Each claim is a transaction, however many replicas the model has."""
    harness = two(FakeReservations(None))
    ticket = harness.admission.open_request(MODEL, ORIGIN)
    assert harness.reservations is not None
    with await harness.admission.wait_lease(ticket) as lease:
        assert not await harness.reservations.confirm(ticket, lease)
    uses = [harness.loads.load_of(each) for each in (A, B)]
    assert [(use.refusals, use.full_until) for use in uses] == [(1, LIMITS.retry_interval_seconds)] * 2


async def test_a_proposal_is_nobody_elses_business(autojump_clock: trio.testing.MockClock) -> None:
    reservations, changes = FakeReservations(A, wait=trio.sleep_forever), list[int]()
    harness = two(reservations, peers=FakePeers(lambda: changes.append(1)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert (harness.loads.published(), harness.in_flight(), changes) == ({}, 1, [])
        nursery.cancel_scope.cancel()
    assert harness.in_flight() == 0
    assert changes == [1], "what the registry may have counted is published anew"


async def test_claims_and_publications_come_one_after_the_other(autojump_clock: trio.testing.MockClock) -> None:
    """Each writes all leases of the gateway."""

    async def answer_slowly() -> None:
        await trio.sleep(1)

    reservations = FakeReservations(A, wait=answer_slowly)
    harness, published = two(reservations), list[tuple[float, PeerState]]()

    async def publish() -> None:
        async with harness.leases_lock:
            peer_state = PeerState(GatewayId("g"), leases=harness.loads.published())
            await trio.sleep(1)
            published.append((trio.current_time(), peer_state))

    harness.backends.script(A, trio.Event())
    async with trio.open_nursery() as nursery:
        for task in (harness.generate, publish, harness.generate):
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(3)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [(at, peer_state.leases) for at, peer_state in published] == [(2, {A: 1})]
    assert [request.leases for request in reservations.asked] == [{}, {A: 1}]
    assert reservations.most == 1


async def test_a_gateway_serves_on_while_its_registry_is_away(autojump_clock: trio.testing.MockClock) -> None:
    """And asks it again only after a while: each request would wait for that."""
    reservations, changes = FakeReservations(B, [AWAY]), list[dict[ReplicaId, int]]()
    harness = two(reservations, peers=FakePeers(lambda: changes.append(harness.loads.published())))
    harness.loads.record_busy(B, FOREVER)  # or chance would decide between the two
    assert (await harness.generate())[1] == A
    assert said(harness) == [(A, "away: cannot reach it", "served")]
    assert changes == [{A: 1}, {}]
    await harness.generate()
    assert [each[1] for each in said(harness)] == ["away"]
    assert len(reservations.asked) == 1
    await trio.sleep(AWAY_SECONDS)
    await harness.generate()
    assert said(harness) == [(B, "moved from a", "served")]


async def test_a_replica_that_only_the_registry_knows_yet_is_not_called(autojump_clock: trio.testing.MockClock) -> None:
    harness = two(FakeReservations(C))
    assert (await harness.generate())[1] == A
    assert said(harness) == [(A, "picked c, which is not known here yet", "served")]
    harness.show(view(replica(A), replica(C, slot=1)))
    assert (await harness.generate())[1] == C


async def test_the_slot_that_a_lease_moves_from_is_given_to_who_waits_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = two(FakeReservations(A, [B, B]), parallel=1)
    harness.loads.apply_peers({B: 1})  # and has ended since; of that the registry knows already
    harness.loads.change(B).full_until = 60.0
    first, second = (harness.admission.open_request(MODEL, ORIGIN) for _ in range(2))
    assert harness.reservations is not None
    async with trio.open_nursery() as nursery:
        lease = await harness.admission.wait_lease(first)
        nursery.start_soon(harness.admission.wait_lease, second)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.waiting() == 1
        assert await harness.reservations.confirm(first, lease)
        assert (lease.candidate.replica_id, harness.waiting()) == (B, 0)


async def test_a_replica_refuses_in_strict_mode_as_in_any(autojump_clock: trio.testing.MockClock) -> None:
    harness = two(FakeReservations(B, [A]))
    harness.backends.script(A, Refused(draining=True))
    assert (await harness.generate())[1] == B
    harness.backends.script(B, BackendFailed("no"))
    with pytest.raises(BackendFailed):
        await harness.generate()
    assert harness.in_flight() == 0


async def test_l16_who_publishes_waits_for_one_claim_however_many_there_are(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else a gateway with many requests says nothing for so long that it counts as dead."""

    async def take_a_moment() -> None:
        await trio.sleep(0.1)

    harness = two(FakeReservations(A, wait=take_a_moment), parallel=100)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(harness.generate)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            began = trio.current_time()
            async with harness.leases_lock:
                assert trio.current_time() - began <= 0.1 + 1e-9
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
