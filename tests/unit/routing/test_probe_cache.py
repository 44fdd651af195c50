"""What is known of a replica's life, how long it is believed, and one probe for all who ask."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from gateway.backends.protocol import Target
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.ids import Address, ReplicaId
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.probe_cache import BUSY_SECONDS, HOLD_PAUSE_SECONDS, HUNG_PROBES, ProbeCache, open_probe_cache
from tests.fakes.fleet import MODEL, replica, view
from tests.fakes.routing_harness import ORIGIN, FakeProbe

A = ReplicaId("a")
TARGET = Target(A, MODEL, Address("127.0.0.1:1"), "t-a")
TTL_SECONDS = 30.0


@dataclass
class Harness:
    cache: ProbeCache
    probe: FakeProbe
    calls: dict[ReplicaId, int]
    """Requests that a replica has now."""
    hung: list[ReplicaId] = field(default_factory=list)

    def says(self, outcome: ProbeOutcome) -> None:
        self.probe.outcomes[A] = outcome

    async def check(self) -> ProbeOutcome:
        return await self.cache.check(TARGET)

    @property
    def probes(self) -> int:
        return len(self.probe.asked)


@asynccontextmanager
async def open_harness(ttl_seconds: float = TTL_SECONDS) -> AsyncIterator[Harness]:
    probe, calls, hung = FakeProbe(), dict[ReplicaId, int](), list[ReplicaId]()
    async with open_probe_cache(
        probe,
        ttl_seconds=ttl_seconds,
        in_flight=lambda replica_id: calls.get(replica_id, 0),
        report_broken=lambda replica_id, _because: hung.append(replica_id),
    ) as cache:
        yield Harness(cache, probe, calls, hung)


async def test_a_success_counts_for_the_ttl_and_no_longer(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        assert await harness.check() is ProbeOutcome.ALIVE
        await trio.sleep(TTL_SECONDS - 0.001)
        assert await harness.check() is ProbeOutcome.ALIVE
        assert harness.probes == 1
        await trio.sleep(0.001)
        assert await harness.check() is ProbeOutcome.ALIVE
        assert harness.probes == 2
        assert harness.cache.statistics().hits == 1


async def test_a_ttl_of_zero_probes_every_time(autojump_clock: MockClock) -> None:
    async with open_harness(ttl_seconds=0) as harness:
        for _ in range(3):
            await harness.check()
            harness.cache.record_alive(A)
        assert harness.probes == 3


async def test_what_is_known_is_returned_without_even_a_checkpoint(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        harness.cache.record_alive(A)
        with trio.CancelScope() as scope:
            scope.cancel()  # any checkpoint would raise
            assert await harness.check() is ProbeOutcome.ALIVE
        assert harness.probes == 0


async def test_h3_whatever_it_answers_makes_it_known_as_alive(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        for _ in range(4):  # a stream of two minutes that says something now and then
            harness.cache.record_alive(A)
            await trio.sleep(TTL_SECONDS - 1)
            assert await harness.check() is ProbeOutcome.ALIVE
        assert harness.probes == 0


async def test_a_failed_call_ends_what_was_known(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        await harness.check()
        harness.cache.record_failure(A)
        harness.says(ProbeOutcome.GONE)
        assert await harness.check() is ProbeOutcome.GONE
        assert harness.probes == 2


@pytest.mark.parametrize("outcome", [ProbeOutcome.GONE, ProbeOutcome.UNREACHABLE])
async def test_a_bad_outcome_is_returned_and_not_cached(autojump_clock: MockClock, outcome: ProbeOutcome) -> None:
    async with open_harness() as harness:
        harness.says(outcome)
        assert await harness.check() is outcome
        harness.says(ProbeOutcome.ALIVE)
        assert await harness.check() is ProbeOutcome.ALIVE


async def test_h1_busy_is_believed_for_a_moment(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        harness.says(ProbeOutcome.BUSY)
        for _ in range(3):
            assert await harness.check() is ProbeOutcome.BUSY
        assert harness.probes == 1
        await trio.sleep(BUSY_SECONDS)
        harness.says(ProbeOutcome.ALIVE)
        assert await harness.check() is ProbeOutcome.ALIVE


async def test_an_answer_ends_busy_at_once(autojump_clock: MockClock) -> None:
    async with open_harness(ttl_seconds=0) as harness:  # so that "alive" does not hide it
        harness.says(ProbeOutcome.BUSY)
        await harness.check()
        harness.cache.record_alive(A)
        harness.says(ProbeOutcome.ALIVE)
        assert await harness.check() is ProbeOutcome.ALIVE


async def test_h4_a_leader_that_leaves_harms_no_follower(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        answered, seen = trio.Event(), list[ProbeOutcome]()
        harness.probe.wait = answered.wait

        async def leader() -> None:
            with trio.move_on_after(0.010):
                await harness.check()
                raise AssertionError("the leader was to leave before the answer")

        async def follower() -> None:
            seen.append(await harness.check())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leader)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(50):
                nursery.start_soon(follower)
            await trio.sleep(1)
            assert harness.cache.statistics().running == 1
            answered.set()
        assert seen == [ProbeOutcome.ALIVE] * 50
        assert harness.probes == 1
        assert harness.cache.statistics().shared == 50


async def test_two_replicas_are_probed_side_by_side(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        answered, other = trio.Event(), Target(ReplicaId("b"), MODEL, Address("127.0.0.1:2"), "t-b")
        harness.probe.wait = answered.wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.cache.check, TARGET)
            nursery.start_soon(harness.cache.check, other)
            await trio.testing.wait_all_tasks_blocked()
            assert set(harness.probe.asked) == {A, "b"}
            answered.set()


async def test_a_probe_that_breaks_down_counts_as_unreachable_and_ends_nothing_else(autojump_clock: MockClock) -> None:
    async def break_down() -> None:
        raise ZeroDivisionError

    async with open_harness() as harness:
        harness.probe.wait = break_down
        with capture_logs() as logs:
            assert await harness.check() is ProbeOutcome.UNREACHABLE
        assert [entry["event"] for entry in logs] == ["probe.failed"]
        harness.probe.wait = trio.lowlevel.checkpoint
        assert await harness.check() is ProbeOutcome.ALIVE


async def find_busy(harness: Harness, times: int) -> None:
    harness.says(ProbeOutcome.BUSY)
    for _ in range(times):
        await harness.check()
        await trio.sleep(BUSY_SECONDS)


async def test_h1_a_replica_that_is_busy_without_a_request_hangs(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        await find_busy(harness, HUNG_PROBES - 1)
        assert harness.hung == []
        await find_busy(harness, 3)
        assert harness.hung == [A]


async def test_h1_a_replica_that_is_busy_with_a_request_never_hangs(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        harness.calls[A] = 1
        await find_busy(harness, 60)
        assert harness.hung == []
        assert not harness.cache.was_silent_when_idle(A)
        harness.calls[A] = 0
        await find_busy(harness, HUNG_PROBES - 1)
        assert harness.hung == []


async def test_a_request_that_waits_for_what_hangs_is_no_sign_of_life(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        await find_busy(harness, HUNG_PROBES - 1)
        harness.calls[A] = 1
        await find_busy(harness, 60)
        assert harness.hung == []
        assert harness.cache.was_silent_when_idle(A)
        harness.calls[A] = 0
        await find_busy(harness, 1)
        assert harness.hung == [A]


@pytest.mark.parametrize("outcome", [ProbeOutcome.BUSY, ProbeOutcome.GONE, ProbeOutcome.UNREACHABLE])
async def test_a_probe_that_was_not_answered_ends_what_was_known(
    autojump_clock: MockClock, outcome: ProbeOutcome
) -> None:
    """Whoever asked it."""
    async with open_harness() as harness:
        await harness.check()
        await trio.sleep(1)
        harness.says(outcome)
        await harness.cache.ask(TARGET)
        assert await harness.check() is outcome


async def test_what_it_answered_while_it_was_probed_counts_more_than_the_probe(autojump_clock: MockClock) -> None:
    async def answer_meanwhile() -> None:
        await trio.sleep(1)
        harness.cache.record_alive(A)
        await trio.sleep(1)

    async with open_harness() as harness:
        harness.probe.wait = answer_meanwhile
        harness.says(ProbeOutcome.UNREACHABLE)
        await harness.cache.ask(TARGET)
        assert await harness.check() is ProbeOutcome.ALIVE
        assert harness.probes == 1


async def test_an_answer_in_between_starts_the_count_of_busy_probes_again(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        await find_busy(harness, HUNG_PROBES - 1)
        harness.cache.record_alive(A)
        await trio.sleep(TTL_SECONDS)
        await find_busy(harness, HUNG_PROBES - 1)
        assert harness.hung == []


@pytest.mark.parametrize("outcome", [ProbeOutcome.ALIVE, ProbeOutcome.GONE, ProbeOutcome.UNREACHABLE])
async def test_r8_a_held_lease_ends_when_the_replica_is_no_longer_busy(
    autojump_clock: MockClock, outcome: ProbeOutcome
) -> None:
    loads = LoadTracker()
    async with open_harness() as harness:
        harness.says(ProbeOutcome.BUSY)
        lease = loads.lease(view(replica(A)).candidates[MODEL][0], ORIGIN, trio.current_time())
        harness.cache.hold_until_answered(lease, TARGET)
        await trio.sleep(60)
        assert loads.statistics().in_flight == {A: 1}
        harness.says(outcome)
        await trio.sleep(HOLD_PAUSE_SECONDS)
        assert loads.statistics().in_flight == {}


async def test_leaving_the_cache_ends_its_probes_and_held_leases(autojump_clock: MockClock) -> None:
    loads = LoadTracker()
    async with open_harness() as harness:
        harness.probe.wait = trio.sleep_forever
        lease = loads.lease(view(replica(A)).candidates[MODEL][0], ORIGIN, trio.current_time())
        harness.cache.hold_until_answered(lease, TARGET)
        await trio.testing.wait_all_tasks_blocked()
        assert harness.cache.statistics().running == 1
    assert harness.cache.statistics().running == 0
    assert loads.statistics().in_flight == {}


async def test_replicas_that_left_the_fleet_are_forgotten(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        await harness.check()
        harness.cache.keep_only({A})
        await harness.check()
        assert harness.probes == 1
        harness.cache.keep_only(set())
        await harness.check()
        assert harness.probes == 2


async def test_outcomes_are_counted(autojump_clock: MockClock) -> None:
    async with open_harness(ttl_seconds=0) as harness:
        for outcome in (ProbeOutcome.ALIVE, ProbeOutcome.GONE, ProbeOutcome.GONE):
            harness.says(outcome)
            await harness.check()
        assert harness.cache.statistics().outcomes == {ProbeOutcome.ALIVE: 1, ProbeOutcome.GONE: 2}
