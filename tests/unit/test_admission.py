"""Who gets the next slot, in which order, and what is left behind by those who give up."""

import pytest
import trio
import trio.testing

from gateway.domain.cluster import LoadFailure, NodeStatus
from gateway.domain.errors import ModelLoadFailed, ModelLoading, ModelNotFound, NoNode, Overloaded
from gateway.domain.ids import ModelName
from gateway.domain.lifecycle import Observed
from gateway.routing.lease import Lease
from tests.fakes.fleet import MODEL, node, replica, spec, view
from tests.fakes.routing_bench import ORIGIN, RoutingBench


def one_slot(name: str = "a") -> RoutingBench:
    return RoutingBench(replica(name, parallel=1))


async def test_a_free_slot_is_taken_without_waiting() -> None:
    bench = one_slot()
    with trio.CancelScope() as scope:
        scope.cancel()  # any checkpoint would raise
        lease = await bench.lease()
    assert lease.candidate.replica_id == "a"
    assert bench.in_flight() == 1


async def test_waiters_are_served_in_order(autojump_clock: trio.testing.MockClock) -> None:
    bench, served = one_slot(), list[str]()

    async def request(name: str) -> None:
        with await bench.lease(name):
            served.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            nursery.start_soon(request, name)
            await trio.testing.wait_all_tasks_blocked()
    assert served == ["first", "second", "third"]
    assert bench.in_flight() == bench.waiting() == 0


async def test_a_newcomer_does_not_overtake_the_queue(autojump_clock: trio.testing.MockClock) -> None:
    bench, served = one_slot(), list[str]()
    held = await bench.lease("holder")

    async def request(name: str) -> None:
        with await bench.lease(name):
            served.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, "early")
        await trio.testing.wait_all_tasks_blocked()
        held.release()
        nursery.start_soon(request, "late")
    assert served == ["early", "late"]


async def test_r4_a_cancelled_waiter_leaves_no_trace(autojump_clock: trio.testing.MockClock) -> None:
    bench = one_slot()
    with await bench.lease("holder"):
        with trio.move_on_after(5) as scope:
            await bench.lease("leaver")
        assert scope.cancelled_caught
        assert bench.waiting() == 0
    assert bench.in_flight() == 0


async def test_r4_a_lease_given_in_the_moment_of_a_cancel_is_released() -> None:
    bench = one_slot()
    held = await bench.lease("holder")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.lease, "leaver")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()  # both are pending when the waiter runs again ...
            held.release()  # ... the cancel and the lease
    assert bench.in_flight() == bench.waiting() == 0


async def test_all_free_slots_are_given_at_once_when_a_replica_appears(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench, leases = RoutingBench(), list[Lease]()

    async def request() -> None:
        leases.append(await bench.lease())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.waiting() == 5
        bench.show(view(replica("a", parallel=3)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(leases) == 3
        leases[0].release()
        leases[1].release()
    assert len(leases) == 5
    assert bench.waiting() == 0


async def test_waits_for_a_slot_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    bench = one_slot()
    with await bench.lease(), pytest.raises(Overloaded, match="All 1 slots") as caught:
        await bench.lease()
    assert trio.current_time() == pytest.approx(30)
    assert caught.value.retry_after_seconds == 1
    assert bench.waiting() == 0


async def test_the_queue_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    bench = one_slot()
    async with trio.open_nursery() as nursery:
        held = await bench.lease()
        for _ in range(8):
            nursery.start_soon(bench.lease)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="8 requests"):
            await bench.lease()
        held.release()
        nursery.cancel_scope.cancel()


async def test_l11_a_wait_for_a_load_is_bounded_and_says_how_far_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = RoutingBench(replica("a", observed=Observed.LOADING))
    with pytest.raises(ModelLoading) as caught:
        await bench.lease()
    assert trio.current_time() == pytest.approx(60)
    assert caught.value.loading == {"model": "m", "state": "loading", "node": "name-n1"}


async def test_no_healthy_node_is_waited_for_and_then_named(autojump_clock: trio.testing.MockClock) -> None:
    bench = RoutingBench()
    bench.view = view(nodes=[node(status=NodeStatus.OFFLINE)])
    with pytest.raises(NoNode):
        await bench.lease()
    assert trio.current_time() == pytest.approx(60)


async def test_l10_a_load_failure_answers_all_waiters_with_its_cause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench, causes = RoutingBench(), list[str]()

    async def request() -> None:
        with pytest.raises(ModelLoadFailed) as caught:
            await bench.lease()
        causes.append(caught.value.message)
        assert caught.value.retry_after_seconds == 10

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        bench.show(view(failures={MODEL: LoadFailure("exit 3", 1, bench.wall_now + 10)}))
    assert causes == ["The model 'm' could not be loaded: exit 3"] * 3
    assert trio.current_time() == 0


async def test_l9_a_failure_is_not_told_once_it_may_be_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    bench = RoutingBench()
    bench.view = view(failures={MODEL: LoadFailure("exit 3", 1, bench.wall_now)})
    with pytest.raises(ModelLoading):
        await bench.lease()


async def test_a_failure_does_not_matter_while_a_replica_serves() -> None:
    bench = RoutingBench()
    bench.view = view(replica("a"), failures={MODEL: LoadFailure("exit 3", 1, bench.wall_now + 10)})
    assert (await bench.lease()).candidate.replica_id == "a"


async def test_an_unknown_model_is_refused_at_once() -> None:
    with pytest.raises(ModelNotFound):
        RoutingBench().admission.open_ticket(ModelName("nope"), ORIGIN)


async def test_a_model_that_is_removed_ends_its_waiters(autojump_clock: trio.testing.MockClock) -> None:
    bench = RoutingBench()

    async def request() -> None:
        with pytest.raises(ModelNotFound):
            await bench.lease()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        bench.show(view(specs=[spec("other")]))
    assert trio.current_time() == 0


async def test_demand_begins_and_ends_with_the_queue(autojump_clock: trio.testing.MockClock) -> None:
    bench, seen = RoutingBench(), list[int]()
    bench.admission.on_demand_change = lambda: seen.append(bench.waiting())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.lease)
        nursery.start_soon(bench.lease)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert seen == [1, 0]


async def test_a_queue_with_free_slots_for_a_later_waiter_only_serves_that_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first has tried the only replica in vain, the second has not."""
    bench, served = one_slot(), list[str]()
    held = await bench.lease("holder")
    first = bench.admission.open_ticket(MODEL, ORIGIN)

    async def second() -> None:
        with await bench.lease("second"):
            served.append("second")

    async with trio.open_nursery() as nursery:
        first.excluded.add(replica("a").id)
        nursery.start_soon(bench.admission.wait_lease, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        held.release()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert served == ["second"]
