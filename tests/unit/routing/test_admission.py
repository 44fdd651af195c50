"""Who gets the next slot, in which order, and what is left behind by those who give up."""

from dataclasses import replace

import pytest
import trio
import trio.testing

from gateway.domain.cluster import LoadFailure, NodeStatus
from gateway.domain.errors import InsufficientCapacity, ModelLoadFailed, ModelLoading, ModelNotFound, NoNode, Overloaded
from gateway.domain.ids import ModelName
from gateway.domain.lifecycle import Observed
from gateway.domain.routability import FleetView
from gateway.routing.load_tracker import Lease
from gateway.routing.rejections import UnknownOutlook
from tests.fakes.fleet import MODEL, node, replica, spec, view
from tests.fakes.routing_harness import LIMITS, ORIGIN, RoutingHarness


def one_slot(name: str = "a") -> RoutingHarness:
    return RoutingHarness(replica(name, parallel=1))


async def test_a_free_slot_is_taken_without_waiting() -> None:
    harness = one_slot()
    with trio.CancelScope() as scope:
        scope.cancel()  # any checkpoint would raise
        lease = await harness.lease()
    assert lease.candidate.replica_id == "a"
    assert harness.in_flight() == 1


async def test_waiters_are_served_in_order(autojump_clock: trio.testing.MockClock) -> None:
    harness, served = one_slot(), list[str]()

    async def request(name: str) -> None:
        with await harness.lease(name):
            served.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            nursery.start_soon(request, name)
            await trio.testing.wait_all_tasks_blocked()
    assert served == ["first", "second", "third"]
    assert harness.in_flight() == harness.waiting() == 0


async def test_a_newcomer_does_not_overtake_the_queue(autojump_clock: trio.testing.MockClock) -> None:
    harness, served = one_slot(), list[str]()
    held = await harness.lease("holder")

    async def request(name: str) -> None:
        with await harness.lease(name):
            served.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, "early")
        await trio.testing.wait_all_tasks_blocked()
        held.release()
        nursery.start_soon(request, "late")
    assert served == ["early", "late"]


async def test_r4_a_cancelled_waiter_leaves_no_trace(autojump_clock: trio.testing.MockClock) -> None:
    harness = one_slot()
    with await harness.lease("holder"):
        with trio.move_on_after(5) as scope:
            await harness.lease("leaver")
        assert scope.cancelled_caught
        assert harness.waiting() == 0
    assert harness.in_flight() == 0


async def test_r4_a_lease_given_in_the_moment_of_a_cancel_is_released() -> None:
    harness = one_slot()
    held = await harness.lease("holder")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.lease, "leaver")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()  # both are pending when the waiter runs again ...
            held.release()  # ... the cancel and the lease
    assert harness.in_flight() == harness.waiting() == 0


async def test_all_free_slots_are_given_at_once_when_a_replica_appears(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness, leases = RoutingHarness(), list[Lease]()

    async def request() -> None:
        leases.append(await harness.lease())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.waiting() == 5
        harness.show(view(replica("a", parallel=3)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(leases) == 3
        leases[0].release()
        leases[1].release()
    assert len(leases) == 5
    assert harness.waiting() == 0


async def test_waits_for_a_slot_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    harness = one_slot()
    with await harness.lease(), pytest.raises(Overloaded, match="All 1 slots") as caught:
        await harness.lease()
    assert trio.current_time() == pytest.approx(30)
    assert caught.value.retry_after_seconds == 1
    assert harness.waiting() == 0


async def test_the_queue_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    harness = one_slot()
    async with trio.open_nursery() as nursery:
        held = await harness.lease()
        for _ in range(8):
            nursery.start_soon(harness.lease)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="8 requests"):
            await harness.lease()
        held.release()
        nursery.cancel_scope.cancel()


async def test_l11_a_wait_for_a_load_is_bounded_and_says_how_far_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = RoutingHarness(replica("a", observed=Observed.LOADING))
    with pytest.raises(ModelLoading) as caught:
        await harness.lease()
    assert trio.current_time() == pytest.approx(60)
    assert caught.value.loading == {"model": "m", "state": "loading", "node": "name-n1"}


async def test_no_healthy_node_is_waited_for_and_then_named(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness()
    harness.view = view(nodes=[node(condition=NodeStatus.OFFLINE)])
    with pytest.raises(NoNode):
        await harness.lease()
    assert trio.current_time() == pytest.approx(60)


async def test_l10_a_load_failure_answers_all_waiters_with_its_cause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness, causes = RoutingHarness(), list[str]()

    async def request() -> None:
        with pytest.raises(ModelLoadFailed) as caught:
            await harness.lease()
        causes.append(caught.value.message)
        assert caught.value.retry_after_seconds == 10

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        harness.show(view(failures={MODEL: LoadFailure("exit 3", 1, harness.wall_now + 10)}))
    assert causes == ["The model 'm' could not be loaded: exit 3"] * 3
    assert trio.current_time() == 0


async def test_l9_a_failure_is_no_answer_once_it_may_be_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness()
    harness.view = view(failures={MODEL: LoadFailure("exit 3", 1, harness.wall_now)})
    with pytest.raises(ModelLoading):
        await harness.lease()


async def test_a_failure_does_not_matter_while_a_replica_serves() -> None:
    harness = RoutingHarness()
    harness.view = view(replica("a"), failures={MODEL: LoadFailure("exit 3", 1, harness.wall_now + 10)})
    assert (await harness.lease()).candidate.replica_id == "a"


async def test_an_unknown_model_is_refused_at_once() -> None:
    with pytest.raises(ModelNotFound):
        RoutingHarness().admission.open_request(ModelName("nope"), ORIGIN)


async def test_a_model_that_is_removed_ends_its_waiters(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness()

    async def request() -> None:
        with pytest.raises(ModelNotFound):
            await harness.lease()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        harness.show(view(specs=[spec("other")]))
    assert trio.current_time() == 0


async def test_a_model_that_is_removed_ends_all_its_waiters_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Of all callers: nobody's end tells the next caller's line."""
    harness, answered = RoutingHarness(), list[str]()

    async def request(caller: str) -> None:
        with pytest.raises(ModelNotFound):
            await harness.lease(caller=caller)
        answered.append(caller)

    async with trio.open_nursery() as nursery:
        for caller in ("x", "y", "z", "x", "y", "z"):
            nursery.start_soon(request, caller)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.waiting() == 6
        harness.show(view(specs=[spec("other")]))
    assert sorted(answered) == ["x", "x", "y", "y", "z", "z"]
    assert trio.current_time() == 0
    assert harness.waiting() == 0


async def test_demand_begins_and_ends_with_the_queue(autojump_clock: trio.testing.MockClock) -> None:
    seen = list[int]()
    harness = RoutingHarness(demand_changed=lambda: seen.append(harness.waiting()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.lease)
        nursery.start_soon(harness.lease)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert seen == [1, 0]


async def test_a_queue_with_free_slots_for_a_later_waiter_only_serves_that_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first has tried the only replica in vain, the second has not."""
    harness, served = one_slot(), list[str]()
    held = await harness.lease("holder")
    first = harness.admission.open_request(MODEL, ORIGIN)

    async def second() -> None:
        with await harness.lease("second"):
            served.append("second")

    async with trio.open_nursery() as nursery:
        first.excluded.add(replica("a").id)
        nursery.start_soon(harness.admission.wait_lease, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        held.release()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert served == ["second"]


async def test_a_queue_of_no_length_lets_nobody_wait() -> None:
    harness = RoutingHarness(replica("a", parallel=1), limits=replace(LIMITS, queue_length_max=0))
    with await harness.lease(), pytest.raises(Overloaded, match="0 requests"):
        await harness.lease()


def flooded(queue_length_max: int = 256) -> RoutingHarness:
    """One slot, and a queue as long as configured by default."""
    limits = replace(LIMITS, queue_length_max=queue_length_max, queue_timeout_seconds=10_000)
    return RoutingHarness(replica("a", parallel=1), limits=limits)


async def test_one_callers_flood_does_not_delay_anothers_single_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each request takes a second. The flood gets what the queue holds, the rest of it is refused."""
    harness, served, refused = flooded(), list[str](), list[str]()

    async def request(caller: str) -> None:
        try:
            with await harness.lease(caller=caller):
                served.append(caller)
                await trio.sleep(1)
        except Overloaded:
            refused.append(caller)

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(request, "heavy")
        await trio.sleep(10.5)
        assert (len(refused), harness.waiting()) == (1000 - 1 - 256, 256 - 10)
        begun = len(served)
        await request("light")
        assert served[begun:] == ["light"]
        assert trio.current_time() == pytest.approx(12)  # at 11 the running one ended
    assert served.count("heavy") == 257
    assert set(refused) == {"heavy"}


async def test_a_full_queue_makes_room_for_another_caller_by_its_latest_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness, ended = flooded(queue_length_max=4), list[tuple[str, str]]()

    async def request(name: str, caller: str) -> None:
        try:
            with await harness.lease(name, caller=caller):
                ended.append((name, "served"))
                await trio.sleep(1)
        except Overloaded:
            ended.append((name, "refused"))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(request, f"heavy {number}", "heavy")
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(request, "light", "light")
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [("heavy 0", "served"), ("heavy 4", "refused")]
        assert harness.waiting() == 4
    assert [name for name, _ in ended[2:]] == ["light", "heavy 1", "heavy 2", "heavy 3"]


async def test_two_callers_that_both_wait_get_a_slot_in_turn(autojump_clock: trio.testing.MockClock) -> None:
    limits = replace(LIMITS, queue_length_max=100, queue_timeout_seconds=10_000)
    harness, most = RoutingHarness(replica("a", parallel=4), limits=limits), dict[str, int]()

    async def request(caller: str) -> None:
        with await harness.lease(caller=caller):
            held = harness.loads.share_of(MODEL, harness.view.candidates[MODEL], caller).held
            if min(waiting_of(harness, "x"), waiting_of(harness, "y")) > 0:
                most[caller] = max(most.get(caller, 0), held)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for caller in ["x"] * 40 + ["y"] * 20:
            nursery.start_soon(request, caller)
    assert most == {"x": 2, "y": 2}


def waiting_of(harness: RoutingHarness, caller: str) -> int:
    return sum(ticket.caller == caller for queue in harness.admission._queues.values() for ticket in queue)


async def test_r4_waiters_that_leave_one_by_one_leave_the_order_of_the_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness, served = flooded(), list[int]()
    scopes = [trio.CancelScope() for _ in range(20)]

    async def request(number: int) -> None:
        with scopes[number], await harness.lease(str(number)):
            served.append(number)

    held = await harness.lease("holder")
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(request, number)
            await trio.testing.wait_all_tasks_blocked()
        for number in (0, 19, *range(1, 19, 3)):
            scopes[number].cancel()
            await trio.testing.wait_all_tasks_blocked()
        assert harness.waiting() == 12
        held.release()
    assert served == [number for number in range(2, 19) if number % 3 != 1]
    assert harness.waiting() == harness.in_flight() == 0
    assert harness.admission._queues == {}


async def test_a_waiting_request_keeps_its_place_when_its_slot_was_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The replica is the arbiter: what it turned away goes to the head again, not to the end."""
    harness, served = one_slot(), list[str]()

    async def later() -> None:
        with await harness.lease("later"):
            served.append("later")

    ticket = harness.admission.open_request(MODEL, ORIGIN)
    shown = f"<PendingRequest {ticket.number} open model={MODEL} request={ORIGIN.request_id} attempts="
    assert repr(ticket) == f"{shown}0>"
    lease = await harness.admission.wait_lease(ticket)
    assert repr(ticket) == f"{shown}1>"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        await trio.testing.wait_all_tasks_blocked()
        harness.admission.record_refusal(ticket, lease)
        lease.release()
        with await harness.admission.wait_lease(ticket):
            served.append("earlier")
            assert trio.current_time() == pytest.approx(0.02)
    assert served == ["earlier", "later"]


@pytest.mark.parametrize("caller", [ORIGIN.caller, "another"])
async def test_who_waits_behind_a_refused_request_that_hangs_up_asks_in_its_place(
    autojump_clock: trio.testing.MockClock, caller: str
) -> None:
    """Only the first of a line watches when the replica may be asked again."""
    harness, served_at, scope = one_slot(), list[float](), trio.CancelScope()
    ticket = harness.admission.open_request(MODEL, ORIGIN)

    async def refused() -> None:
        with scope:
            await harness.admission.wait_lease(ticket)

    async def later() -> None:
        with await harness.lease("later", caller=caller):
            served_at.append(trio.current_time())

    with await harness.admission.wait_lease(ticket) as lease:
        harness.admission.record_refusal(ticket, lease)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(later)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.waiting() == 2
        scope.cancel()
    assert served_at == [pytest.approx(LIMITS.retry_interval_seconds)]
    assert harness.in_flight() == harness.waiting() == 0


async def test_each_callers_first_asks_in_place_of_a_refused_request_that_hangs_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It does not come back to the queue, so nobody there is told by its leaving. The one who was first there hangs up,
    too, and those of other callers are told nothing by that."""
    harness, served_at, scope = one_slot(), list[float](), trio.CancelScope()
    ticket = harness.admission.open_request(MODEL, ORIGIN)

    async def leaving_request() -> None:
        with scope:
            await harness.lease(caller="x")

    async def later() -> None:
        with await harness.lease(caller="y"):
            served_at.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        with await harness.admission.wait_lease(ticket) as lease:
            for request in (leaving_request, later):
                nursery.start_soon(request)
                await trio.testing.wait_all_tasks_blocked()
            harness.admission.record_refusal(ticket, lease)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.waiting() == 2
        scope.cancel()
    assert served_at == [pytest.approx(LIMITS.retry_interval_seconds)]
    assert harness.in_flight() == harness.waiting() == 0


async def test_a_refused_replica_is_asked_again_as_soon_as_another_lease_on_it_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = RoutingHarness(replica("a", parallel=2))
    ticket, running = harness.admission.open_request(MODEL, ORIGIN), await harness.lease("running")
    for _ in range(10):  # each pause is longer than the one before
        with await harness.admission.wait_lease(ticket) as lease:
            harness.admission.record_refusal(ticket, lease)
    asked_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.admission.wait_lease, ticket)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.waiting() == 1
        running.release()
        await trio.testing.wait_all_tasks_blocked()
        assert harness.waiting() == 0
    assert trio.current_time() == asked_at


async def test_a_replica_that_only_others_fill_is_asked_when_none_is_free(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What they published may be over."""
    harness = RoutingHarness(replica("a", parallel=1))
    harness.loads.change(replica("a").id).at_peers = 1
    with await harness.lease() as lease:
        assert lease.candidate.replica_id == "a"


async def test_a_replica_that_would_not_refuse_is_not_put_to_that_test(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness(replica("a", parallel=1))
    [candidate] = harness.view.candidates[MODEL]
    harness.view = FleetView(harness.view.state, {MODEL: (replace(candidate, refuses_when_full=False),)})
    harness.loads.change(candidate.replica_id).at_peers = 1
    with pytest.raises(Overloaded):
        await harness.lease()


async def test_guesses_begin_with_the_replica_asked_longest_ago_and_are_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fleet = [replica(f"r{number:02}", parallel=1, slot=number) for number in range(40)]
    harness, asked = RoutingHarness(*fleet), list[str]()
    for each in fleet:
        harness.loads.change(each.id).at_peers = 1
    ticket = harness.admission.open_request(MODEL, ORIGIN)
    for _ in range(41):
        with await harness.admission.wait_lease(ticket) as lease:
            asked.append(lease.candidate.replica_id)
            harness.admission.record_refusal(ticket, lease)
        if len(asked) == 32:
            assert trio.current_time() == 0
    assert len(set(asked[:40])) == 40
    assert asked[40] in asked[:33], "the first that were asked are the first to be asked again"
    assert trio.current_time() == pytest.approx(8 * 0.2 / 32)


async def test_a_replica_is_asked_less_often_with_each_refusal_in_a_row(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness, pauses = one_slot(), list[float]()
    ticket = harness.admission.open_request(MODEL, ORIGIN)
    for _ in range(6):
        began = trio.current_time()
        with await harness.admission.wait_lease(ticket) as lease:
            pauses.append(trio.current_time() - began)
            harness.admission.record_refusal(ticket, lease)
    assert pauses == pytest.approx([0, 0.02, 0.04, 0.08, 0.16, 0.2])
    (await harness.admission.wait_lease(ticket)).release()  # it took that one
    with await harness.admission.wait_lease(ticket) as lease:
        harness.admission.record_refusal(ticket, lease)
    began = trio.current_time()
    (await harness.admission.wait_lease(ticket)).release()
    assert trio.current_time() - began == pytest.approx(0.02)


class NoRoom(UnknownOutlook):
    def shortage_of(self, model: ModelName) -> str:
        return f"no room for {model}"


async def test_p4_a_request_for_what_has_no_room_gets_the_shortage_once_it_has_waited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = RoutingHarness(outlook=NoRoom())
    with pytest.raises(InsufficientCapacity, match="no room for m"):
        await harness.lease()
    assert trio.current_time() == LIMITS.load_wait_seconds
