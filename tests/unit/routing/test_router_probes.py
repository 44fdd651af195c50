"""How the router takes what probes say, and what calls teach of their replicas."""

from functools import partial

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Refused
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.errors import BackendFailed, Overloaded
from gateway.domain.ids import ReplicaId
from gateway.domain.inference import Delta, EmbeddingInput
from gateway.routing.load_tracker import PENALTY_MAX_SECONDS
from gateway.routing.probe_cache import BUSY_SECONDS, HOLD_PAUSE_SECONDS, HUNG_PROBES, ReportBroken
from tests.fakes.backends import DONE
from tests.fakes.fleet import MODEL, replica, spec, view
from tests.fakes.routing_bench import ORIGIN, RoutingBench, generation

A, B = ReplicaId("a"), ReplicaId("b")


def two(report_broken: ReportBroken = lambda _replica_id, _because: None) -> RoutingBench:
    """`a` is picked first: it has the longest been unused."""
    bench = RoutingBench(replica(A), replica(B, slot=1), report_broken=report_broken)
    bench.loads.load_of(B).last_used = 0.0
    return bench


def foreign(replica_slots: int) -> RoutingBench:
    """One replica of a backend that may neither turn calls away nor notice a cancel."""
    of = spec(backend="whisper")
    bench = RoutingBench()
    bench.view = view(replica(A, of, parallel=replica_slots), specs=[of])
    return bench


async def test_h1_a_busy_replica_is_left_for_another_one_and_keeps_its_place() -> None:
    bench = two()
    bench.probe.outcomes[A] = ProbeOutcome.BUSY
    _, served_by = await bench.generate()
    assert served_by == B
    assert bench.probe.asked == [A, B]
    assert bench.loads.load_of(A).penalties(trio.current_time()) == 0
    assert bench.router.statistics().reroutes == {"busy": 1}
    assert bench.router.statistics().picks == {(MODEL, "first"): 1, (MODEL, "busy"): 1}


async def test_h2_a_busy_replica_is_used_when_there_is_no_other() -> None:
    bench = RoutingBench(replica(A))
    bench.probe.outcomes[A] = ProbeOutcome.BUSY
    _, served_by = await bench.generate()
    assert served_by == A
    assert bench.probe.asked == [A]


async def test_h2_a_busy_replica_is_used_when_the_others_have_no_room() -> None:
    bench = RoutingBench(replica(A), replica(B, slot=1, parallel=1))
    bench.loads.load_of(B).last_used = 0.0
    bench.probe.outcomes[A] = ProbeOutcome.BUSY
    bench.backends.script(B, trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.backends.running == [B]
        _, served_by = await bench.generate()
        assert served_by == A
        nursery.cancel_scope.cancel()


async def test_h1_a_replica_that_hangs_is_found_out_beside_one_that_serves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hung = list[ReplicaId]()
    bench = two(report_broken=lambda replica_id, _because: hung.append(replica_id))
    bench.probe.outcomes[A] = ProbeOutcome.BUSY
    while bench.probe.asked.count(A) < HUNG_PROBES:
        assert hung == []
        _, served_by = await bench.generate()
        assert served_by == B
        await trio.sleep(BUSY_SECONDS)
    assert hung == [A]
    assert A not in bench.backends.calls


async def test_h1_a_replica_that_is_busy_with_a_call_is_not_taken_for_hung(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Health blocked behind a generation of a minute."""
    hung = list[ReplicaId]()
    bench = two(report_broken=lambda replica_id, _because: hung.append(replica_id))
    bench.backends.script(A, trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await trio.sleep(31)  # what was known of it is too old now
        bench.probe.outcomes[A] = ProbeOutcome.BUSY
        for _ in range(10):
            _, served_by = await bench.generate()
            assert served_by == B
            bench.loads.load_of(B).last_used = bench.loads.load_of(A).last_used + 1
            await trio.sleep(3)
        assert bench.backends.calls.count(A) == 1
        assert bench.in_flight() == 1
        nursery.cancel_scope.cancel()
    assert hung == []


async def test_h4_a_client_that_leaves_a_shared_probe_harms_no_other(autojump_clock: trio.testing.MockClock) -> None:
    bench, answered, served = RoutingBench(replica(A, parallel=64)), trio.Event(), list[ReplicaId]()
    bench.probe.wait = answered.wait

    async def leader() -> None:
        with trio.move_on_after(0.010):
            await bench.generate()
        assert bench.in_flight() == 50

    async def follower() -> None:
        _, served_by = await bench.generate()
        served.append(served_by)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leader)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):
            nursery.start_soon(follower)
        await trio.sleep(1)
        assert bench.in_flight() == 50
        answered.set()
    assert bench.probe.asked == [A]
    assert served == [A] * 50
    assert bench.in_flight() == bench.waiting() == 0
    assert bench.probes.statistics().running == 0


async def test_h3_a_probe_that_has_no_answer_yet_keeps_nobody_from_another_replica() -> None:
    bench, answered = two(), trio.Event()
    bench.probes.record_alive(B)
    bench.probe.wait = answered.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.probe.asked == [A]
        _, served_by = await bench.generate()
        assert served_by == B
        answered.set()
    assert bench.backends.calls == [B, A]


async def test_h3_every_answer_and_every_batch_keeps_a_replica_known_as_alive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench, more = RoutingBench(replica(A)), [trio.Event() for _ in range(5)]
    bench.backends.script(A, *(item for event in more for item in (Delta("x"), event)), DONE)
    async with bench.router.open_stream(generation(), ORIGIN) as stream:
        for event in more:
            await stream.receive_batch()
            await trio.sleep(29)
            event.set()
        await stream.receive_batch()
    bench.backends.script(A, DONE)
    for call in (bench.generate, partial(bench.router.embed, EmbeddingInput(MODEL, "text"), ORIGIN), bench.generate):
        await trio.sleep(29)
        await call()
    assert bench.probe.asked == [A]


async def test_a_failed_call_is_followed_by_a_probe() -> None:
    bench = RoutingBench(replica(A))
    bench.backends.script(A, BackendFailed("broke"))
    for _ in range(3):
        with pytest.raises(BackendFailed):
            await bench.generate()
    assert bench.probe.asked == [A] * 3


@pytest.mark.parametrize("outcome", [ProbeOutcome.GONE, ProbeOutcome.UNREACHABLE])
async def test_h5_what_a_probe_rules_out_gets_no_call(outcome: ProbeOutcome) -> None:
    bench = two()
    bench.probe.outcomes[A] = outcome
    _, served_by = await bench.generate()
    assert served_by == B
    assert bench.backends.calls == [B]


@pytest.mark.parametrize("stream", [False, True])
async def test_r8_a_foreign_backend_that_ignores_a_cancel_keeps_its_slot_taken(
    autojump_clock: trio.testing.MockClock, stream: bool
) -> None:
    """It works on for nobody; the next request must not be bound to a slot that is not free."""
    bench = foreign(replica_slots=1)
    bench.backends.script(A, *([Delta("x")] if stream else []), trio.Event())
    bench.probes.record_alive(A)
    with trio.move_on_after(1):
        if stream:
            async with bench.router.open_stream(generation(), ORIGIN):
                await trio.sleep_forever()
        await bench.generate()
    bench.probe.outcomes[A] = ProbeOutcome.BUSY
    bench.backends.script(A, DONE)
    served_at: list[float] = []

    async def next_one() -> None:
        await bench.generate()
        served_at.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(next_one)
        await trio.sleep(10)
        assert bench.waiting() == bench.in_flight() == 1
        bench.probe.outcomes[A] = ProbeOutcome.ALIVE
    assert served_at == [pytest.approx(11, abs=HOLD_PAUSE_SECONDS)]
    assert bench.in_flight() == 0


async def test_a_foreign_backend_that_has_answered_has_its_slot_back_at_once() -> None:
    bench = foreign(replica_slots=1)
    for _ in range(3):
        await bench.generate()
        assert bench.in_flight() == 0
    assert bench.probe.asked == [A]


async def test_phantoms_double_expire_and_are_forgiven(autojump_clock: trio.testing.MockClock) -> None:
    bench = RoutingBench(replica(A))
    bench.backends.script(A, BackendFailed("broke"))
    use = bench.loads.load_of(A)
    for penalties in (1, 2, 3):
        with pytest.raises(BackendFailed):
            await bench.generate()
        assert use.penalties(trio.current_time()) == penalties
    for until, left in ((0.9, 3), (1.0, 2), (2.0, 1), (3.9, 1), (4.0, 0)):
        assert use.penalties(until) == left
    for _ in range(20):
        with pytest.raises(BackendFailed):
            await bench.generate()
    assert max(use.expiries) == trio.current_time() + PENALTY_MAX_SECONDS
    bench.backends.script(A, DONE)
    await bench.generate()
    assert (use.failures, use.penalties(trio.current_time())) == (0, 0)


async def test_the_deadline_of_a_request_is_kept_over_reroutes(autojump_clock: trio.testing.MockClock) -> None:
    """It waits 20 s for a slot, is refused, and has 10 s left: not another 30."""
    bench = RoutingBench(replica(A, parallel=1))
    held = await bench.lease("holder")
    bench.backends.script(A, Refused(draining=False))

    async def free_it() -> None:
        await trio.sleep(20)
        held.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(free_it)
        with pytest.raises(Overloaded):
            await bench.generate()
    assert trio.current_time() == pytest.approx(30)
    assert bench.in_flight() == bench.waiting() == 0
