"""Strict mode: the registry has the last word on every lease, and a gateway serves on when it has none."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Refused
from gateway.domain.claim import ReservationFailed
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import GatewayId, ReplicaId
from gateway.domain.peers import PeerState
from gateway.routing.decisions import describe
from gateway.routing.reservation import AWAY_SECONDS
from tests.fakes.fleet import GATEWAY, MODEL, replica, view
from tests.fakes.reservations import FakeReservations
from tests.fakes.routing_bench import LIMITS, ORIGIN, RoutingBench

A, B, C = ReplicaId("a"), ReplicaId("b"), ReplicaId("c")
AWAY = ReservationFailed("cannot reach it")


def two(
    reservations: FakeReservations, parallel: int = 2, leases_changed: Callable[[], None] = lambda: None
) -> RoutingBench:
    """The local pick is `A`."""
    bench = RoutingBench(
        replica(A, parallel=parallel),
        replica(B, slot=1, parallel=parallel),
        reserve_slot=reservations,
        attempts=1,
        leases_changed=leases_changed,
    )
    bench.loads.load_of(B).last_used = 0.0
    return bench


def attempts(bench: RoutingBench) -> list[dict[str, Any]]:
    decision = bench.admission.decisions.find(ORIGIN.request_id)
    assert decision is not None
    told: list[dict[str, Any]] = describe(decision)["attempts"]
    return told


def said(bench: RoutingBench) -> list[tuple[str, str, str]]:
    return [(each["replica"], each["registry"], each["outcome"]) for each in attempts(bench)]


async def test_r3_a_lease_that_the_registry_agrees_to_stays(autojump_clock: trio.testing.MockClock) -> None:
    bench = two(FakeReservations(A))
    _, served_by = await bench.generate()
    assert served_by == A
    assert said(bench) == [(A, "agreed", "served")]
    assert bench.loads.load_of(A).last_used == trio.current_time()
    assert bench.in_flight() == 0


async def test_r3_a_lease_moves_to_the_replica_that_the_registry_picked(autojump_clock: trio.testing.MockClock) -> None:
    bench, held = two(FakeReservations(B)), trio.Event()
    bench.backends.script(B, held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.backends.running == [B]
        assert bench.loads.published() == bench.loads.statistics().in_flight == {B: 1}
        assert bench.probe.asked == [B]
        nursery.cancel_scope.cancel()
    assert bench.in_flight() == 0
    assert said(bench) == [(B, "moved from a", "left")]
    assert attempts(bench)[0]["candidates"][0]["verdict"] == "chosen"
    assert bench.loads.load_of(A).last_used == float("-inf"), "nothing went there"


async def test_r3_a_claim_says_what_only_this_gateway_knows(autojump_clock: trio.testing.MockClock) -> None:
    reservations = FakeReservations(A)
    bench = two(reservations)
    running = await bench.lease("elsewhere busy")
    assert bench.loads.published() == {}
    assert bench.reservations is not None
    bench.loads.confirm(running, 0.0)
    await trio.sleep(3)
    for replica_id in (A, B):
        bench.loads.load_of(replica_id).busy_until = 5.0
    bench.loads.record_failure(B, trio.current_time())
    ticket = bench.admission.open_ticket(MODEL, ORIGIN)
    lease = await bench.admission.wait_lease(ticket)
    bench.loads.load_of(B).full_until = 4.0
    ticket.excluded.add(C)
    assert await bench.reservations.confirm(ticket, lease)
    (request,) = reservations.asked
    assert (request.gateway_id, request.model) == (GATEWAY, MODEL)
    assert request.leases == {A: 1}, "without the one that is asked for"
    assert request.unused_seconds == {A: 3.0, B: 3.0}
    assert (request.excluded, request.suspect, request.full, request.busy) == ((C,), [B], [B], [A, B])
    assert bench.loads.published() == {A: 2}


async def test_r3_a_request_waits_while_the_registry_knows_of_no_free_slot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is no attempt, of which there is one only here, and all replicas are left alone for a moment."""
    bench = two(FakeReservations(B, [None, None, None]))
    _, served_by = await bench.generate()
    assert served_by == B
    assert [each[1:] for each in said(bench)] == [("no free slot", "full")] * 3 + [("moved from a", "served")]
    assert trio.current_time() == pytest.approx((1 + 2 + 4) * LIMITS.retry_interval_seconds)
    assert bench.router.statistics().reroutes == {"full": 3}


async def test_r3_a_slot_that_others_give_back_is_claimed_at_once(autojump_clock: trio.testing.MockClock) -> None:
    reservations = FakeReservations(B, [None] * 6)
    bench = two(reservations)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await trio.sleep(0.6)  # refused for the sixth time after 500 ms, and the next try is 200 ms later
        before, began = len(reservations.asked), trio.current_time()
        bench.loads.apply_peers({B: 1})
        bench.loads.apply_peers({})
        await trio.testing.wait_all_tasks_blocked()
        assert (len(reservations.asked), trio.current_time()) == (before + 1, began)


async def test_r3_what_a_request_has_tried_in_vain_is_not_taken_for_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = two(FakeReservations(None))
    ticket = bench.admission.open_ticket(MODEL, ORIGIN)
    ticket.excluded.add(B)
    lease = await bench.admission.wait_lease(ticket)
    assert bench.reservations is not None
    assert not await bench.reservations.confirm(ticket, lease)
    assert bench.loads.load_of(A).full_until > trio.current_time() > bench.loads.load_of(B).full_until


async def test_r3_all_replicas_are_asked_less_often_while_none_is_free(autojump_clock: trio.testing.MockClock) -> None:
    """Each claim is a transaction, however many replicas the model has."""
    bench = two(FakeReservations(None))
    ticket = bench.admission.open_ticket(MODEL, ORIGIN)
    assert bench.reservations is not None
    with await bench.admission.wait_lease(ticket) as lease:
        assert not await bench.reservations.confirm(ticket, lease)
    uses = [bench.loads.load_of(each) for each in (A, B)]
    assert [(use.refusals, use.full_until) for use in uses] == [(1, LIMITS.retry_interval_seconds)] * 2


async def test_a_proposal_is_nobody_elses_business(autojump_clock: trio.testing.MockClock) -> None:
    reservations, changes = FakeReservations(A, wait=trio.sleep_forever), list[int]()
    bench = two(reservations, leases_changed=lambda: changes.append(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert (bench.loads.published(), bench.in_flight(), changes) == ({}, 1, [])
        nursery.cancel_scope.cancel()
    assert bench.in_flight() == 0
    assert changes == [1], "what the registry may have counted is published anew"


async def test_claims_and_publications_come_one_after_the_other(autojump_clock: trio.testing.MockClock) -> None:
    """Each writes all leases of the gateway."""

    async def answer_slowly() -> None:
        await trio.sleep(1)

    reservations = FakeReservations(A, wait=answer_slowly)
    bench, published = two(reservations), list[tuple[float, PeerState]]()

    async def publish() -> None:
        async with bench.leases_lock:
            peer_state = PeerState(GatewayId("g"), leases=bench.loads.published())
            await trio.sleep(1)
            published.append((trio.current_time(), peer_state))

    bench.backends.script(A, trio.Event())
    async with trio.open_nursery() as nursery:
        for task in (bench.generate, publish, bench.generate):
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
    bench = two(reservations, leases_changed=lambda: changes.append(bench.loads.published()))
    assert (await bench.generate())[1] == A
    assert said(bench) == [(A, "away: cannot reach it", "served")]
    assert changes == [{A: 1}, {}]
    await bench.generate()
    assert [each[1] for each in said(bench)] == ["away"]
    assert len(reservations.asked) == 1
    await trio.sleep(AWAY_SECONDS)
    bench.loads.load_of(B).last_used = trio.current_time()
    await bench.generate()
    assert said(bench) == [(B, "moved from a", "served")]


async def test_a_replica_that_only_the_registry_knows_yet_is_not_called(autojump_clock: trio.testing.MockClock) -> None:
    bench = two(FakeReservations(C))
    assert (await bench.generate())[1] == A
    assert said(bench) == [(A, "picked c, which is not known here yet", "served")]
    bench.show(view(replica(A), replica(C, slot=1)))
    assert (await bench.generate())[1] == C


async def test_the_slot_that_a_lease_moves_from_is_given_to_who_waits_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = two(FakeReservations(A, [B, B]), parallel=1)
    bench.loads.apply_peers({B: 1})  # and has ended since; of that the registry knows already
    bench.loads.load_of(B).full_until = 60.0
    first, second = (bench.admission.open_ticket(MODEL, ORIGIN) for _ in range(2))
    assert bench.reservations is not None
    async with trio.open_nursery() as nursery:
        lease = await bench.admission.wait_lease(first)
        nursery.start_soon(bench.admission.wait_lease, second)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.waiting() == 1
        assert await bench.reservations.confirm(first, lease)
        assert (lease.candidate.replica_id, bench.waiting()) == (B, 0)


async def test_a_replica_refuses_in_strict_mode_as_in_any(autojump_clock: trio.testing.MockClock) -> None:
    bench = two(FakeReservations(B, [A]))
    bench.backends.script(A, Refused(draining=True))
    assert (await bench.generate())[1] == B
    bench.backends.script(B, BackendFailed("no"))
    with pytest.raises(BackendFailed):
        await bench.generate()
    assert bench.in_flight() == 0


async def test_l16_who_publishes_waits_for_one_claim_however_many_there_are(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else a gateway with many requests says nothing for so long that it counts as dead."""

    async def take_a_moment() -> None:
        await trio.sleep(0.1)

    bench = two(FakeReservations(A, wait=take_a_moment), parallel=100)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(bench.generate)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            began = trio.current_time()
            async with bench.leases_lock:
                assert trio.current_time() - began <= 0.1 + 1e-9
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
