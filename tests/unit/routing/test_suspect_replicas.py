"""A replica that has just failed somebody is left alone for a while, and then asked by whoever waits."""

import trio
import trio.testing

from gateway.domain.ids import ReplicaId
from gateway.routing.load_tracker import PENALTY_FIRST_SECONDS, Lease
from tests.fakes.fleet import replica
from tests.fakes.routing_harness import RoutingHarness


async def test_who_waits_asks_a_replica_that_failed_another_as_soon_as_it_is_trusted_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing else happens meanwhile: the other replica keeps its request, and nobody comes or goes."""
    harness = RoutingHarness(replica("r1", parallel=1), replica("r2", slot=1, parallel=1))
    taken = {lease.candidate.replica_id: lease for lease in [await harness.lease(), await harness.lease()]}
    got = list[Lease]()

    async def wait() -> None:
        got.append(await harness.lease("waiting"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(PENALTY_FIRST_SECONDS / 2)
        harness.loads.record_failure(ReplicaId("r1"), trio.current_time())
        taken[ReplicaId("r1")].release()
        await trio.sleep(PENALTY_FIRST_SECONDS / 2)
        assert not got
        await trio.sleep(PENALTY_FIRST_SECONDS)
        assert [lease.candidate.replica_id for lease in got] == ["r1"]
        nursery.cancel_scope.cancel()
