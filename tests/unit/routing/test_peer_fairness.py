"""An older request at another gateway goes first, and what that costs when it does not come (late binding)."""

from dataclasses import replace
from random import Random

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Refused, Target
from gateway.domain.ids import GatewayId, ModelName, ReplicaId, RequestId
from gateway.domain.inference import Completion, Generation, Origin
from gateway.routing.peer_fairness import IGNORED_SECONDS, RemoteQueue, SlotDeferral
from tests.fakes.backends import DONE, FakeBackends
from tests.fakes.fleet import MODEL, replica
from tests.fakes.peer_exchange import SYNC_SECONDS, FakeExchange
from tests.fakes.routing_harness import LIMITS, RoutingHarness, generation

A = ReplicaId("a")
OTHER = GatewayId("other")
YIELD = LIMITS.yield_seconds


def line(since: float, waiting: int = 1, gateway_id: GatewayId = OTHER, model: ModelName = MODEL) -> RemoteQueue:
    return RemoteQueue(gateway_id, model, waiting, since, since)


def slots(count: int) -> RoutingHarness:
    return RoutingHarness(replica(A, parallel=count))


class Waits:
    """Requests that wait at a bench, and when each was served; they keep what they got."""

    def __init__(self, harness: RoutingHarness, nursery: trio.Nursery) -> None:
        self.served: dict[str, float] = {}
        self._harness = harness
        self._nursery = nursery

    async def begin(self, name: str, model: ModelName = MODEL) -> None:
        async def request() -> None:
            await self._harness.lease(name, model)
            self.served[name] = trio.current_time()

        self._nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()


# Who goes first


async def test_late_binding_a_slot_is_left_to_an_older_request_at_a_peer_for_a_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(1)
    held = await harness.lease("holder")
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        waits = Waits(harness, nursery)
        await waits.begin("younger")
        harness.admission.apply_remote_queues([line(since=0.5)])
        held.release()
    assert waits.served == {"younger": pytest.approx(1 + YIELD)}


@pytest.mark.parametrize("since", [1.0 - YIELD / 2, 1.0, 2.0])
async def test_late_binding_nothing_is_left_to_a_request_that_is_not_clearly_older(
    autojump_clock: trio.testing.MockClock, since: float
) -> None:
    harness = slots(1)
    held = await harness.lease("holder")
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        waits = Waits(harness, nursery)
        await waits.begin("here")
        harness.admission.apply_remote_queues([line(since)])
        held.release()
    assert waits.served == {"here": 1}


async def test_late_binding_a_newcomer_does_not_overtake_an_older_request_at_a_peer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(1)
    held = await harness.lease("holder")
    harness.admission.apply_remote_queues([line(since=0.0)])
    await trio.sleep(1)
    held.release()
    with await harness.lease("newcomer"):
        assert trio.current_time() == pytest.approx(1 + YIELD)


async def test_late_binding_slots_beyond_those_that_others_wait_for_are_taken_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(4)
    held = [await harness.lease(str(number)) for number in range(4)]
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        waits = Waits(harness, nursery)
        for name in ("first", "second", "third"):
            await waits.begin(name)
        harness.admission.apply_remote_queues([line(since=0.5, waiting=2)])
        for lease in held:
            lease.release()
    assert waits.served == {"first": 1, "second": 1, "third": pytest.approx(1 + YIELD)}


async def test_late_binding_the_oldest_of_any_caller_counts(autojump_clock: trio.testing.MockClock) -> None:
    """Whose turn it is here is another question."""
    harness = slots(1)
    held = await harness.lease("holder", caller="heavy")
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.lease, "older", MODEL, "heavy")
        await trio.sleep(1)
        harness.admission.apply_remote_queues([line(since=1.5)])
        nursery.start_soon(harness.lease, "younger", MODEL, "light")
        await trio.testing.wait_all_tasks_blocked()
        held.release()
        assert harness.waiting() == 1
        nursery.cancel_scope.cancel()


async def test_late_binding_a_slot_that_was_free_before_is_taken_at_once() -> None:
    harness = slots(2)
    held = await harness.lease("holder")
    harness.admission.apply_remote_queues([line(since=trio.current_time() - 1)])
    held.release()
    with trio.CancelScope() as scope:
        scope.cancel()  # any checkpoint would raise
        await harness.lease("newcomer")
    assert harness.in_flight() == 1


async def test_late_binding_another_model_does_not_compete(autojump_clock: trio.testing.MockClock) -> None:
    harness = slots(1)
    held = await harness.lease("holder")
    harness.admission.apply_remote_queues([line(since=-1.0, model=ModelName("another"))])
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        waits = Waits(harness, nursery)
        await waits.begin("here")
        held.release()
    assert waits.served == {"here": 1}


# What ends it


async def test_late_binding_a_slot_is_taken_as_soon_as_nobody_older_waits_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(1)
    held = await harness.lease("holder")
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        waits = Waits(harness, nursery)
        await waits.begin("younger")
        harness.admission.apply_remote_queues([line(since=0.5)])
        held.release()
        await trio.sleep(SYNC_SECONDS)
        harness.admission.apply_remote_queues([])
    assert waits.served == {"younger": pytest.approx(1 + SYNC_SECONDS)}


async def test_late_binding_a_gateway_that_vanished_costs_one_pause_and_not_one_for_each_slot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(1)

    async def serve(count: int) -> float:
        """How long it takes to free and take the slot so often."""
        began = trio.current_time()
        for number in range(count):
            harness.admission.apply_remote_queues(
                [line(since=-5.0 + number % 2 * 0.015)._replace(published_since=-5.0)]
            )  # clocks are read anew
            (await harness.lease()).release()
        return trio.current_time() - began

    assert await serve(10) == pytest.approx(YIELD)
    with await harness.lease():
        await trio.sleep(IGNORED_SECONDS)
    assert await serve(10) == pytest.approx(YIELD)
    assert harness.waiting() == harness.in_flight() == 0


async def test_late_binding_a_gateway_that_comes_to_its_slots_late_is_left_them_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It lives: the request that it waited with is another one now."""
    harness = slots(1)
    harness.admission.apply_remote_queues([line(since=-5.0)])
    for expected in (0.0, YIELD, 0.0):
        began = trio.current_time()
        (await harness.lease()).release()
        assert trio.current_time() == pytest.approx(began + expected)
    harness.admission.apply_remote_queues([line(since=-4.0)])
    began = trio.current_time()
    await harness.lease()
    assert trio.current_time() == pytest.approx(began + YIELD)


async def test_late_binding_the_next_oldest_is_left_a_slot_although_the_oldest_never_came(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(1)
    lines = [line(since=-5.0), line(since=-4.0, gateway_id=GatewayId("another"))]
    harness.admission.apply_remote_queues(lines)
    (await harness.lease("before")).release()
    for expected in (YIELD, YIELD, 0.0):
        began = trio.current_time()
        (await harness.lease()).release()
        assert trio.current_time() == pytest.approx(began + expected)


async def test_late_binding_a_slot_that_was_taken_by_the_older_request_is_not_held_against_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its line is as old as before: another of its requests was served with that slot."""
    harness = slots(1)
    harness.admission.apply_remote_queues([line(since=-5.0, waiting=2)])
    (await harness.lease("before")).release()
    harness.loads.apply_peers({A: 1})
    await trio.sleep(2 * YIELD)
    harness.loads.apply_peers({})
    began = trio.current_time()
    await harness.lease("younger")
    assert trio.current_time() == pytest.approx(began + YIELD)


async def test_late_binding_of_two_slots_the_one_that_was_not_taken_is_left_for_its_whole_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(2)
    held = [await harness.lease(str(number)) for number in range(2)]
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        waits = Waits(harness, nursery)
        await waits.begin("younger")
        harness.admission.apply_remote_queues([line(since=0.5, waiting=3)])
        held[0].release()
        await trio.sleep(YIELD / 2)
        held[1].release()
        harness.loads.apply_peers({A: 1})
    assert waits.served == {"younger": pytest.approx(1 + YIELD * 1.5)}


async def test_late_binding_a_request_that_came_after_the_slot_was_free_is_not_taken_for_one_that_does_not_want_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(1)
    harness.admission.apply_remote_queues([line(since=-5.0)])
    (await harness.lease("before")).release()
    await trio.sleep(YIELD / 2)
    harness.admission.apply_remote_queues([line(since=-4.0)])
    for expected in (YIELD / 2, YIELD, 0.0):
        began = trio.current_time()
        (await harness.lease()).release()
        assert trio.current_time() == pytest.approx(began + expected)


def test_nothing_is_left_to_nobody() -> None:
    deferral = SlotDeferral(YIELD)
    deferral.apply([line(since=0.0)], now=1.0)
    deferral.record_free(MODEL, 1, free=1, now=1.0)
    assert MODEL in deferral.ends
    assert deferral.apply([], now=1.0) == (MODEL,)
    assert MODEL not in deferral.ends


# Alone


async def test_late_binding_a_gateway_alone_leaves_nothing_to_anybody(autojump_clock: trio.testing.MockClock) -> None:
    harness = slots(1)
    held = await harness.lease("holder")
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        waits = Waits(harness, nursery)
        await waits.begin("waiter")
        held.release()
        assert harness.waiting() == 0, "served in the moment of the release"
    assert waits.served == {"waiter": 1}
    harness.loads.load_of(A).leases.copy().pop().release()
    with trio.CancelScope() as scope:
        scope.cancel()  # any checkpoint would raise
        await harness.lease("newcomer")
    assert harness.in_flight() == 1


# The other side


async def test_late_binding_what_others_give_back_is_asked_for_at_once(autojump_clock: trio.testing.MockClock) -> None:
    harness = slots(1)
    harness.loads.apply_peers({A: 1})
    ticket = harness.admission.open_request(MODEL, Origin(RequestId("r")))
    for _ in range(5):
        with await harness.admission.wait_lease(ticket) as lease:
            harness.admission.record_refusal(ticket, lease)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.admission.wait_lease, ticket)
        await trio.testing.wait_all_tasks_blocked()
        harness.loads.apply_peers({})
        assert harness.waiting() == 0
    assert trio.current_time() == began


async def test_late_binding_what_others_give_back_is_left_to_the_oldest_by_everybody_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = slots(1)
    harness.loads.apply_peers({A: 1})
    harness.loads.change(A).full_until = 100.0
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        waits = Waits(harness, nursery)
        await waits.begin("younger")
        harness.admission.apply_remote_queues([line(since=0.5)])
        harness.loads.apply_peers({})
    assert waits.served == {"younger": pytest.approx(1 + YIELD)}


# Several gateways

ROUND_TRIP_SECONDS = 0.002
REQUESTS = 60


class OneSlot(FakeBackends):
    """One replica that serves one request at a time, whoever calls; remembers in which order."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.busy = False
        self.order: list[RequestId] = []
        self._rng = rng

    async def generate(self, target: Target, item: Generation, request_id: RequestId) -> Completion:
        await trio.sleep(ROUND_TRIP_SECONDS)
        if self.busy:
            raise Refused(draining=False)
        self.busy = True
        self.order.append(request_id)
        await trio.sleep(self._rng.uniform(0.1, 0.3))
        self.busy = False
        return DONE


async def worst_overtaking(gateways: int, *, exchange: bool, seed: int) -> int:
    """By how many that are clearly younger any request was overtaken."""
    rng = Random(seed)
    limits = replace(LIMITS, queue_length_max=1000, queue_timeout_seconds=10_000)
    harnesses = [RoutingHarness(replica(A, parallel=1), limits=limits) for _ in range(gateways)]
    backend, arrived = OneSlot(rng), dict[RequestId, float]()
    exchanging = FakeExchange(harnesses)
    for harness in harnesses:
        harness.router._backends = backend

    async def request(number: int) -> None:
        request_id = RequestId(str(number))
        await trio.sleep(number * 0.15)  # arrives a little faster than it is served
        arrived[request_id] = trio.current_time()
        await rng.choice(harnesses).router.generate(generation(), Origin(request_id))

    async with trio.open_nursery() as watchers:
        if exchange:
            watchers.start_soon(exchanging.run)
        async with trio.open_nursery() as requests:
            for number in range(REQUESTS):
                requests.start_soon(request, number)
        watchers.cancel_scope.cancel()
    assert len(backend.order) == REQUESTS
    times = [arrived[each] for each in backend.order]
    return max(sum(other > each + YIELD for other in times[:place]) for place, each in enumerate(times))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gateways", [2, 4])
async def test_late_binding_gateways_serve_by_age(
    autojump_clock: trio.testing.MockClock, gateways: int, seed: int
) -> None:
    """All but those that ask in the very moment between the end of a request and the next one's call."""
    assert await worst_overtaking(gateways, exchange=True, seed=seed) <= 4
    assert await worst_overtaking(gateways, exchange=False, seed=seed) > 4, "there was nothing to put in order"


async def test_late_binding_a_gateway_that_dies_with_waiting_requests_delays_nobody_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What it said counts until it expires. It costs the others a pause a second, whoever frees the slots."""
    harnesses = [slots(1), slots(1)]
    exchanging = FakeExchange(harnesses)
    exchanging.lines[2] = (line(since=-1.0, gateway_id=GatewayId("dead")),)
    served = 0

    async def requests(harness: RoutingHarness) -> None:
        nonlocal served
        while True:
            with await harness.lease():
                await trio.sleep(0.1)
                served += 1

    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchanging.run)
            nursery.start_soon(requests, harnesses[0])
    assert served >= 10 / 0.1 * 0.9
