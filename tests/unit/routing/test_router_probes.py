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
from tests.fakes.routing_harness import ORIGIN, RoutingHarness, generation

A, B = ReplicaId("a"), ReplicaId("b")


def two(report_broken: ReportBroken = lambda _replica_id, _because: None) -> RoutingHarness:
    """`a` is picked first: it has the longest been unused."""
    harness = RoutingHarness(replica(A), replica(B, slot=1), report_broken=report_broken)
    harness.loads.change(B).last_used = 0.0
    return harness


def foreign(replica_slots: int) -> RoutingHarness:
    """One replica of a backend that may neither turn calls away nor notice a cancel."""
    of = spec(backend="whisper")
    harness = RoutingHarness()
    harness.view = view(replica(A, of, parallel=replica_slots), specs=[of])
    return harness


async def test_h1_a_busy_replica_is_left_for_another_one_and_keeps_its_place() -> None:
    harness = two()
    harness.probe.outcomes[A] = ProbeOutcome.BUSY
    _, served_by = await harness.generate()
    assert served_by == B
    assert harness.probe.asked == [A, B]
    assert harness.loads.load_of(A).penalties(trio.current_time()) == 0
    assert harness.router.statistics().reroutes == {"busy": 1}
    assert harness.router.statistics().picks == {(MODEL, "first"): 1, (MODEL, "busy"): 1}


async def test_h2_a_busy_replica_is_used_when_there_is_no_other() -> None:
    harness = RoutingHarness(replica(A))
    harness.probe.outcomes[A] = ProbeOutcome.BUSY
    _, served_by = await harness.generate()
    assert served_by == A
    assert harness.probe.asked == [A]


async def test_h2_a_busy_replica_is_used_when_the_others_have_no_room() -> None:
    harness = RoutingHarness(replica(A), replica(B, slot=1, parallel=1))
    harness.loads.change(B).last_used = 0.0
    harness.probe.outcomes[A] = ProbeOutcome.BUSY
    harness.backends.script(B, trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.backends.running == [B]
        _, served_by = await harness.generate()
        assert served_by == A
        nursery.cancel_scope.cancel()


async def test_h1_a_replica_that_hangs_is_found_out_beside_one_that_serves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hung = list[ReplicaId]()
    harness = two(report_broken=lambda replica_id, _because: hung.append(replica_id))
    harness.probe.outcomes[A] = ProbeOutcome.BUSY
    while harness.probe.asked.count(A) < HUNG_PROBES:
        assert hung == []
        _, served_by = await harness.generate()
        assert served_by == B
        await trio.sleep(BUSY_SECONDS)
    assert hung == [A]
    assert A not in harness.backends.calls


async def test_h1_a_replica_that_is_busy_with_a_call_is_not_taken_for_hung(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Health blocked behind a generation of a minute."""
    hung = list[ReplicaId]()
    harness = two(report_broken=lambda replica_id, _because: hung.append(replica_id))
    harness.backends.script(A, trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.generate)
        await trio.sleep(31)  # what was known of it is too old now
        harness.probe.outcomes[A] = ProbeOutcome.BUSY
        for _ in range(10):
            _, served_by = await harness.generate()
            assert served_by == B
            harness.loads.change(B).last_used = harness.loads.load_of(A).last_used + 1
            await trio.sleep(3)
        assert harness.backends.calls.count(A) == 1
        assert harness.in_flight() == 1
        nursery.cancel_scope.cancel()
    assert hung == []


async def test_h4_a_client_that_leaves_a_shared_probe_harms_no_other(autojump_clock: trio.testing.MockClock) -> None:
    harness, answered, served = RoutingHarness(replica(A, parallel=64)), trio.Event(), list[ReplicaId]()
    harness.probe.wait = answered.wait

    async def leader() -> None:
        with trio.move_on_after(0.010):
            await harness.generate()
        assert harness.in_flight() == 50

    async def follower() -> None:
        _, served_by = await harness.generate()
        served.append(served_by)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leader)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):
            nursery.start_soon(follower)
        await trio.sleep(1)
        assert harness.in_flight() == 50
        answered.set()
    assert harness.probe.asked == [A]
    assert served == [A] * 50
    assert harness.in_flight() == harness.waiting() == 0
    assert harness.probes.statistics().running == 0


async def test_h3_a_probe_that_has_no_answer_yet_keeps_nobody_from_another_replica() -> None:
    harness, answered = two(), trio.Event()
    harness.probes.record_alive(B)
    harness.probe.wait = answered.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.probe.asked == [A]
        _, served_by = await harness.generate()
        assert served_by == B
        answered.set()
    assert harness.backends.calls == [B, A]


async def test_h3_every_answer_and_every_batch_keeps_a_replica_known_as_alive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness, more = RoutingHarness(replica(A)), [trio.Event() for _ in range(5)]
    harness.backends.script(A, *(item for event in more for item in (Delta("x"), event)), DONE)
    async with harness.router.open_stream(generation(), ORIGIN) as stream:
        for event in more:
            await stream.receive_batch()
            await trio.sleep(29)
            event.set()
        await stream.receive_batch()
    harness.backends.script(A, DONE)
    for call in (
        harness.generate,
        partial(harness.router.embed, EmbeddingInput(MODEL, "text"), ORIGIN),
        harness.generate,
    ):
        await trio.sleep(29)
        await call()
    assert harness.probe.asked == [A]


async def test_a_failed_call_is_followed_by_a_probe() -> None:
    harness = RoutingHarness(replica(A))
    harness.backends.script(A, BackendFailed("broke"))
    for _ in range(3):
        with pytest.raises(BackendFailed):
            await harness.generate()
    assert harness.probe.asked == [A] * 3


@pytest.mark.parametrize("outcome", [ProbeOutcome.GONE, ProbeOutcome.UNREACHABLE])
async def test_h5_what_a_probe_rules_out_gets_no_call(outcome: ProbeOutcome) -> None:
    harness = two()
    harness.probe.outcomes[A] = outcome
    _, served_by = await harness.generate()
    assert served_by == B
    assert harness.backends.calls == [B]


@pytest.mark.parametrize("stream", [False, True])
async def test_r8_a_foreign_backend_that_ignores_a_cancel_keeps_its_slot_taken(
    autojump_clock: trio.testing.MockClock, stream: bool
) -> None:
    """It works on for nobody; the next request must not be bound to a slot that is not free."""
    harness = foreign(replica_slots=1)
    harness.backends.script(A, *([Delta("x")] if stream else []), trio.Event())
    harness.probes.record_alive(A)
    with trio.move_on_after(1):
        if stream:
            async with harness.router.open_stream(generation(), ORIGIN):
                await trio.sleep_forever()
        await harness.generate()
    harness.probe.outcomes[A] = ProbeOutcome.BUSY
    harness.backends.script(A, DONE)
    served_at: list[float] = []

    async def next_one() -> None:
        await harness.generate()
        served_at.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(next_one)
        await trio.sleep(10)
        assert harness.waiting() == harness.in_flight() == 1
        harness.probe.outcomes[A] = ProbeOutcome.ALIVE
    assert served_at == [pytest.approx(11, abs=HOLD_PAUSE_SECONDS)]
    assert harness.in_flight() == 0


async def test_a_foreign_backend_that_has_answered_has_its_slot_back_at_once() -> None:
    harness = foreign(replica_slots=1)
    for _ in range(3):
        await harness.generate()
        assert harness.in_flight() == 0
    assert harness.probe.asked == [A]


async def test_penalties_double_expire_and_are_forgiven(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness(replica(A))
    harness.backends.script(A, BackendFailed("broke"))
    use = harness.loads.load_of(A)
    for penalties in (1, 2, 3):
        with pytest.raises(BackendFailed):
            await harness.generate()
        assert use.penalties(trio.current_time()) == penalties
    for until, left in ((0.9, 3), (1.0, 2), (2.0, 1), (3.9, 1), (4.0, 0)):
        assert use.penalties(until) == left
    for _ in range(20):
        with pytest.raises(BackendFailed):
            await harness.generate()
    assert max(use.expiries) == trio.current_time() + PENALTY_MAX_SECONDS
    harness.backends.script(A, DONE)
    await harness.generate()
    assert (use.failures, use.penalties(trio.current_time())) == (0, 0)


async def test_the_deadline_of_a_request_is_kept_over_reroutes(autojump_clock: trio.testing.MockClock) -> None:
    """It waits 20 s for a slot, is refused, and has 10 s left: not another 30."""
    harness = RoutingHarness(replica(A, parallel=1))
    held = await harness.lease("holder")
    harness.backends.script(A, Refused(draining=False))

    async def free_it() -> None:
        await trio.sleep(20)
        held.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(free_it)
        with pytest.raises(Overloaded):
            await harness.generate()
    assert trio.current_time() == pytest.approx(30)
    assert harness.in_flight() == harness.waiting() == 0
