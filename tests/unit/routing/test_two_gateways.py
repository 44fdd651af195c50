"""Two gateways on one fleet, neither of which sees the other's requests: the replica is the arbiter."""

from dataclasses import replace
from random import Random

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Refused, Target
from gateway.domain.ids import ReplicaId, RequestId
from gateway.domain.inference import Completion, Generation
from gateway.routing.admission import RETRY_BACKOFF_MAX
from tests.fakes.backends import DONE, FakeBackends
from tests.fakes.fleet import replica
from tests.fakes.routing_harness import LIMITS, RoutingHarness

ROUND_TRIP_SECONDS = 0.002
LOOK_SECONDS = 0.005
REPLICAS = tuple(ReplicaId(f"r{number}") for number in range(4))
SLOTS = 2
REQUESTS_PER_GATEWAY = 150


class Fleet(FakeBackends):
    """Replicas with true slots, whoever calls: a call takes a round trip, then a slot for a while or a refusal."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.free = dict.fromkeys(REPLICAS, SLOTS)
        self.refused = 0
        self._rng = rng

    async def generate(self, target: Target, generation: Generation, request_id: RequestId) -> Completion:
        await trio.sleep(ROUND_TRIP_SECONDS)
        if not self.free[target.replica_id]:
            self.refused += 1
            raise Refused(draining=False)
        self.free[target.replica_id] -= 1
        await trio.sleep(self._rng.expovariate(1 / 0.5))
        self.free[target.replica_id] += 1
        return DONE


@pytest.mark.parametrize("seed", range(3))
async def test_no_request_waits_long_behind_a_busy_slot_while_another_is_free(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    rng = Random(seed)
    fleet, served = Fleet(rng), 0
    rows = [replica(name, slot=number, parallel=SLOTS) for number, name in enumerate(REPLICAS)]
    limits = replace(LIMITS, queue_length_max=1000, queue_timeout_seconds=10_000)
    gateways = [RoutingHarness(*rows, limits=limits), RoutingHarness(*rows, limits=limits)]
    for gateway in gateways:
        gateway.router._backends = fleet

    async def request(gateway: RoutingHarness) -> None:
        nonlocal served
        await gateway.generate()
        served += 1

    async def arrivals(gateway: RoutingHarness, requests: trio.Nursery) -> None:
        for _ in range(REQUESTS_PER_GATEWAY):
            await trio.sleep(rng.expovariate(7.5))  # two gateways: 94 % of what the fleet can do
            requests.start_soon(request, gateway)

    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        idle_since = None
        while True:
            in_vain = any(fleet.free.values()) and any(gateway.waiting() for gateway in gateways)
            idle_since = (idle_since or trio.current_time()) if in_vain else None
            longest = max(longest, trio.current_time() - (idle_since or trio.current_time()))
            await trio.sleep(LOOK_SECONDS)

    async with trio.open_nursery() as watchers:
        watchers.start_soon(watch)
        async with trio.open_nursery() as requests:
            for gateway in gateways:
                requests.start_soon(arrivals, gateway, requests)
        watchers.cancel_scope.cancel()
    assert served == 2 * REQUESTS_PER_GATEWAY
    assert fleet.refused > 0, "they never met"
    assert longest <= LIMITS.retry_interval_seconds * RETRY_BACKOFF_MAX + ROUND_TRIP_SECONDS + LOOK_SECONDS
    assert [gateway.in_flight() for gateway in gateways] == [0, 0]
