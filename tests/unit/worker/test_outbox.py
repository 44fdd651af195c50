import trio
from trio.testing import wait_all_tasks_blocked

from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Observed
from gateway.domain.session import Report
from gateway.worker.outbox import Outbox


def report(replica_id: str, observed: Observed) -> Report:
    return Report(ReplicaId(replica_id), observed)


async def test_a_slow_receiver_gets_the_latest_of_each_replica() -> None:
    outbox = Outbox()
    send, receive = trio.open_memory_channel[Report](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run_sending, send.send)
        outbox.put(report("a", Observed.FETCHING))
        await wait_all_tasks_blocked()  # it waits to hand the first one over
        outbox.put(report("a", Observed.STARTING))
        outbox.put(report("b", Observed.FETCHING))
        outbox.put(report("a", Observed.READY))
        got = [await receive.receive() for _ in range(3)]
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert got == [report("a", Observed.FETCHING), report("a", Observed.READY), report("b", Observed.FETCHING)]


async def test_it_is_empty_once_the_last_report_was_taken() -> None:
    outbox = Outbox()
    send, receive = trio.open_memory_channel[Report](0)
    outbox.put(report("a", Observed.GONE))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run_sending, send.send)
        with trio.CancelScope() as early:
            early.cancel()
            await outbox.wait_empty()
        assert early.cancelled_caught
        assert await receive.receive() == report("a", Observed.GONE)
        await outbox.wait_empty()
        nursery.cancel_scope.cancel()
