"""Calls whose replica has vanished, hangs, or merely works: who is asked, who is given up, and who waits on."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from gateway.backends.protocol import Target
from gateway.domain.cluster import ProbeOutcome, Replica
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import ReplicaId
from gateway.domain.inference import Completion, Delta
from gateway.domain.routability import FleetView
from gateway.routing.call_watch import CallWatch
from gateway.routing.silence import FOREIGN_HUNG_SECONDS, FOREIGN_HUNG_SECONDS_MAX, LOOK_SECONDS_MAX, Tolerance
from tests.fakes.backends import DONE
from tests.fakes.fleet import replica, view
from tests.fakes.routing_harness import LIMITS, ORIGIN, RoutingHarness, generation

A, B = ReplicaId("a"), ReplicaId("b")
PROBE_SECONDS: Final = 2.0
"""What a question without an answer takes."""
SILENCE_SECONDS: Final = 15.0
SLACK_SECONDS: Final = 10.0
"""Beyond a bound: for the questions themselves and the pauses between them."""
PATIENT: Final = replace(LIMITS, load_wait_seconds=900, queue_timeout_seconds=900, queue_length_max=64)


@dataclass
class Harness:
    """`routing` with a watch over its calls; replicas named in `offline` are on nodes that are."""

    routing: RoutingHarness
    watch: CallWatch
    hung: list[str] = field(default_factory=list)
    offline: set[ReplicaId] = field(default_factory=set)

    def says(self, replica_id: ReplicaId, outcome: ProbeOutcome) -> None:
        self.routing.probe.outcomes[replica_id] = outcome

    def falls_silent(self, replica_id: ReplicaId) -> trio.Event:
        """Its calls wait from now on; until the event is set, if they still do."""
        wakes = trio.Event()
        self.routing.backends.script(replica_id, wakes, Delta("late"), DONE)
        return wakes

    async def wait_for(self, look: Callable[[], object], seconds: float) -> None:
        with trio.fail_after(seconds):
            while not look():  # noqa: ASYNC110 - whatever the test looks at has no event
                await trio.sleep(0.1)


@asynccontextmanager
async def open_harness(*several: ReplicaId, refuses: bool = True, parallel: int = 4) -> AsyncIterator[Harness]:
    """`refuses`: the backends are of our own kind, which answers Health whatever it works on."""
    hung = list[str]()
    routing = RoutingHarness(
        *(_replica(each, slot, parallel) for slot, each in enumerate(several)),
        limits=PATIENT,
        report_broken=lambda replica_id, because: hung.append(f"{replica_id}: {because}"),
    )
    routing.view = _of_kind(routing.view, refuses=refuses)
    routing.probe.wait = partial(_take_time, routing)
    offline = set[ReplicaId]()
    watch = CallWatch(
        routing.calls,
        routing.loads,
        routing.probes,
        tolerance=Tolerance(3, SILENCE_SECONDS),
        is_offline=lambda each: each in offline,
    )
    harness = Harness(routing, watch, hung, offline)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield harness
        nursery.cancel_scope.cancel()


def _replica(replica_id: ReplicaId, slot: int, parallel: int) -> Replica:
    return replace(replica(replica_id, slot=slot), parallel=parallel)


def _of_kind(shown: FleetView, *, refuses: bool) -> FleetView:
    changed = {
        model: tuple(replace(each, refuses_when_full=refuses) for each in several)
        for model, several in shown.candidates.items()
    }
    return FleetView(shown.state, changed)


async def _take_time(routing: RoutingHarness) -> None:
    """Who answers does so at once."""
    silent = routing.probe.outcomes.get(routing.probe.asked[-1], ProbeOutcome.ALIVE) is not ProbeOutcome.ALIVE
    await trio.sleep(PROBE_SECONDS if silent else 0)


@dataclass
class Ends:
    """How requests ended: by whom they were answered, or the error."""

    routing: RoutingHarness
    all: list[str] = field(default_factory=list)

    async def ask(self) -> None:
        try:
            self.all.append((await self.routing.generate())[1])
        except BackendFailed as error:
            self.all.append(error.message)

    async def stream(self) -> None:
        try:
            async with self.routing.router.open_stream(generation(), ORIGIN) as stream:
                while not isinstance((await stream.receive_batch())[-1], Completion):
                    pass
                self.all.append(stream.candidate.replica_id)
        except BackendFailed as error:
            self.all.append(error.message)


# Machines that are out of reach


async def test_requests_without_a_byte_are_rerouted_when_their_machine_has_vanished(autojump_clock: MockClock) -> None:
    async with open_harness(A) as harness, trio.open_nursery() as nursery:
        harness.falls_silent(A)
        ends = Ends(harness.routing)
        for request in (ends.ask, ends.stream, ends.ask, ends.stream):
            nursery.start_soon(request)
        await trio.sleep(0.1)
        harness.says(A, ProbeOutcome.UNREACHABLE)
        harness.routing.show(view(replica(A), replica(B, slot=1)))
        await trio.sleep(SILENCE_SECONDS / 2)
        assert ends.all == []
        await harness.wait_for(lambda: len(ends.all) == 4, SILENCE_SECONDS + SLACK_SECONDS)
        assert ends.all == [B] * 4
        assert harness.routing.in_flight() == 0
        assert harness.routing.router.statistics().reroutes["lost"] == 4
        assert harness.hung == []  # who can't be reached from here may serve others


async def test_a_stream_that_has_begun_ends_with_an_error_when_its_machine_has_vanished(
    autojump_clock: MockClock,
) -> None:
    async with open_harness(A, B) as harness, trio.open_nursery() as nursery:
        harness.routing.backends.script(A, Delta("one"), trio.Event(), DONE)
        harness.routing.backends.script(B, Delta("one"), trio.Event(), DONE)
        harness.says(A, ProbeOutcome.UNREACHABLE)
        harness.says(B, ProbeOutcome.UNREACHABLE)
        harness.routing.probes.record_alive(A)
        harness.routing.probes.record_alive(B)
        ends = Ends(harness.routing)
        nursery.start_soon(ends.stream)
        await harness.wait_for(lambda: ends.all, LOOK_SECONDS_MAX + SILENCE_SECONDS + SLACK_SECONDS)
        assert "was lost in the middle of its answer" in ends.all[0]
        assert harness.routing.in_flight() == 0


@pytest.mark.parametrize("is_alone", [False, True])
async def test_a_client_that_reads_slowly_keeps_no_lease_on_a_machine_that_has_vanished(
    autojump_clock: MockClock, is_alone: bool
) -> None:
    """Whether another request waits there or not, the machine is found to be gone. The slow client learns of it when it
    reads on."""
    async with open_harness(A) as harness, trio.open_nursery() as nursery:
        harness.routing.backends.script(A, Delta("one"), trio.Event(), Delta("two"), DONE)
        async with harness.routing.router.open_stream(generation(), ORIGIN) as slow:
            await slow.receive_batch()
            harness.falls_silent(A)
            harness.says(A, ProbeOutcome.UNREACHABLE)
            if not is_alone:
                nursery.start_soon(Ends(harness.routing).ask)
                await trio.sleep(0.1)
            assert harness.routing.in_flight() == (1 if is_alone else 2)
            await harness.wait_for(
                lambda: harness.routing.in_flight() == 0, LOOK_SECONDS_MAX + SILENCE_SECONDS + SLACK_SECONDS
            )
            with pytest.raises(BackendFailed, match="lost in the middle of its answer"):
                await slow.receive_batch()
        nursery.cancel_scope.cancel()


async def test_a_cut_that_is_shorter_costs_nothing(autojump_clock: MockClock) -> None:
    async with open_harness(A) as harness, trio.open_nursery() as nursery:
        wakes, ends = harness.falls_silent(A), Ends(harness.routing)
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        for _ in range(4):
            harness.says(A, ProbeOutcome.UNREACHABLE)
            await trio.sleep(SILENCE_SECONDS - LOOK_SECONDS_MAX - 1)
            harness.says(A, ProbeOutcome.ALIVE)
            await trio.sleep(SILENCE_SECONDS)
        wakes.set()
        await harness.wait_for(lambda: ends.all, 1)
        assert ends.all == [A]


async def test_silence_of_every_kind_counts_once_the_node_is_offline(autojump_clock: MockClock) -> None:
    async with open_harness(A, refuses=False) as harness, trio.open_nursery() as nursery:
        harness.falls_silent(A)
        ends = Ends(harness.routing)
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        harness.says(A, ProbeOutcome.BUSY)
        await trio.sleep(300)
        assert ends.all == []
        harness.routing.show(view(replica(A), replica(B, slot=1)))
        harness.offline.add(A)
        await harness.wait_for(lambda: ends.all, 2 * SLACK_SECONDS)
        assert ends.all == [B]
        assert harness.hung == []


async def test_calls_of_a_replica_that_has_left_the_fleet_end(autojump_clock: MockClock) -> None:
    async with open_harness(A) as harness, trio.open_nursery() as nursery:
        harness.falls_silent(A)
        ends = Ends(harness.routing)
        nursery.start_soon(ends.ask)
        await trio.sleep(1)
        harness.routing.show(view(replica(B)))
        harness.watch.keep_only({B})
        await harness.wait_for(lambda: ends.all, 1)
        assert ends.all == [B]


# Replicas that hang


async def test_a_frozen_replica_is_found_out_however_many_wait_for_it(autojump_clock: MockClock) -> None:
    """Stopped while it is idle, and then sent requests that overlap: there is no moment without one."""
    async with open_harness(A, parallel=64) as harness, trio.open_nursery() as nursery:
        harness.routing.probes.record_alive(A)
        harness.falls_silent(A)
        harness.says(A, ProbeOutcome.BUSY)
        ends, sent = Ends(harness.routing), 0
        while not harness.hung:
            nursery.start_soon(ends.ask if sent % 2 else ends.stream)
            sent += 1
            await trio.sleep(1)
            assert sent < LOOK_SECONDS_MAX + SILENCE_SECONDS + SLACK_SECONDS
        assert sent > SILENCE_SECONDS
        harness.routing.show(view(replica(B)))
        await harness.wait_for(lambda: len(ends.all) == sent, SLACK_SECONDS)
        assert ends.all == [B] * sent
        assert harness.routing.in_flight() == 0
        assert "it hangs" in harness.hung[0]


async def test_requests_that_come_and_go_do_not_hide_that_a_replica_hangs(autojump_clock: MockClock) -> None:
    async def ask_for(seconds: float) -> None:
        with trio.move_on_after(seconds):
            await Ends(harness.routing).ask()

    async with open_harness(A, parallel=64) as harness, trio.open_nursery() as nursery:
        harness.routing.probes.record_alive(A)
        harness.falls_silent(A)
        harness.says(A, ProbeOutcome.BUSY)
        with trio.fail_after(LOOK_SECONDS_MAX + SILENCE_SECONDS + SLACK_SECONDS):
            while not harness.hung:
                nursery.start_soon(ask_for, 3.0)
                await trio.sleep(2)
        nursery.cancel_scope.cancel()


async def test_h1_a_backend_of_one_thread_may_work_for_as_long_as_it_likes(autojump_clock: MockClock) -> None:
    async with open_harness(A, B, refuses=False) as harness, trio.open_nursery() as nursery:
        wakes, ends = harness.falls_silent(A), Ends(harness.routing)
        harness.routing.backends.script(B, trio.Event())
        harness.routing.show(_of_kind(view(replica(A)), refuses=False))
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        harness.says(A, ProbeOutcome.BUSY)
        await trio.sleep(3600)
        assert harness.hung == []
        wakes.set()
        await harness.wait_for(lambda: ends.all, 1)
        assert ends.all == [A]


async def test_a_foreign_backend_that_has_answered_beside_its_call_hangs_when_it_does_not(
    autojump_clock: MockClock,
) -> None:
    async with open_harness(A, refuses=False) as harness, trio.open_nursery() as nursery:
        harness.falls_silent(A)
        nursery.start_soon(Ends(harness.routing).ask)
        await trio.sleep(3 * LOOK_SECONDS_MAX)
        harness.says(A, ProbeOutcome.BUSY)
        await trio.sleep(FOREIGN_HUNG_SECONDS - SLACK_SECONDS)
        assert harness.hung == []
        await harness.wait_for(lambda: harness.hung, SLACK_SECONDS + 3 * SLACK_SECONDS)
        nursery.cancel_scope.cancel()


async def test_a_foreign_backend_may_be_silent_beside_more_calls_than_before(autojump_clock: MockClock) -> None:
    async with open_harness(A, refuses=False) as harness, trio.open_nursery() as nursery:
        harness.falls_silent(A)
        nursery.start_soon(Ends(harness.routing).ask)
        await trio.sleep(3 * LOOK_SECONDS_MAX)
        nursery.start_soon(Ends(harness.routing).ask)  # takes its last thread
        harness.says(A, ProbeOutcome.BUSY)
        await trio.sleep(3600)
        assert harness.hung == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("usual_seconds", "at_least", "at_most"),
    [(1.0, FOREIGN_HUNG_SECONDS, 90), (20.0, 200, 240), (None, FOREIGN_HUNG_SECONDS_MAX, 640)],
)
async def test_a_foreign_backend_that_was_silent_before_its_request_hangs_by_its_own_measure(
    autojump_clock: MockClock, usual_seconds: float | None, at_least: float, at_most: float
) -> None:
    async with open_harness(A, refuses=False) as harness, trio.open_nursery() as nursery:
        if usual_seconds is not None:
            harness.routing.calls.first_answers[A].record(usual_seconds)
        harness.falls_silent(A)
        harness.says(A, ProbeOutcome.BUSY)
        nursery.start_soon(Ends(harness.routing).ask)
        await trio.sleep(at_least - 5)
        assert harness.hung == []
        await harness.wait_for(lambda: harness.hung, at_most - at_least + 5)
        nursery.cancel_scope.cancel()


# Replicas that work


@pytest.mark.parametrize("outcome", [ProbeOutcome.BUSY, ProbeOutcome.UNREACHABLE, ProbeOutcome.GONE])
async def test_h12_a_stream_that_flows_is_never_ended(autojump_clock: MockClock, outcome: ProbeOutcome) -> None:
    """Nor are others of the same replica."""
    async with open_harness(A) as harness, trio.open_nursery() as nursery:
        arrivals = [trio.Event() for _ in range(40)]
        items = [item for event in arrivals for item in (event, Delta("x"))]
        harness.routing.backends.script(A, *items, DONE)
        ends = Ends(harness.routing)
        nursery.start_soon(ends.stream)
        await trio.sleep(0.1)
        wakes = harness.falls_silent(A)
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        harness.says(A, outcome)
        for event in arrivals:
            await trio.sleep(8)
            event.set()
        await harness.wait_for(lambda: ends.all, 1)
        wakes.set()
        await harness.wait_for(lambda: len(ends.all) == 2, 1)
        assert ends.all == [A, A]
        assert harness.hung == []


async def test_health_that_answers_lets_a_call_wait_for_an_hour_and_is_asked_now_and_then(
    autojump_clock: MockClock,
) -> None:
    async with open_harness(A, B) as harness, trio.open_nursery() as nursery:
        harness.routing.show(view(replica(A)))
        wakes, ends = harness.falls_silent(A), Ends(harness.routing)
        nursery.start_soon(ends.ask)
        await trio.sleep(3600)
        assert 600 < len(harness.routing.probe.asked) < 3600 / LOOK_SECONDS_MAX + 2
        wakes.set()
        await harness.wait_for(lambda: ends.all, 1)
        assert ends.all == [A]


async def test_a_client_that_reads_slowly_is_no_silence_of_the_backend(autojump_clock: MockClock) -> None:
    async with open_harness(A) as harness:
        harness.says(A, ProbeOutcome.BUSY)
        harness.routing.probes.record_alive(A)
        async with harness.routing.router.open_stream(generation(), ORIGIN) as stream:
            await trio.sleep(600)
            assert harness.hung == []
            batch = await stream.receive_batch()
        assert batch == [Delta("hello"), DONE]


# Those who come after


@pytest.mark.parametrize("usual_seconds", [None, 0.1])
async def test_new_requests_go_to_others_once_a_call_is_silent_for_longer_than_usual(
    autojump_clock: MockClock, usual_seconds: float | None
) -> None:
    """Though the others have more to do, and though the silent one was heard of just now."""
    async with open_harness(A, B) as harness, trio.open_nursery() as nursery:
        if usual_seconds is not None:
            for _ in range(10):
                harness.routing.calls.first_answers[A].record(usual_seconds)
        harness.routing.backends.on_call = lambda target: target_called.append(target)
        target_called = list[Target]()
        harness.falls_silent(A)
        harness.falls_silent(B)
        for each in (A, B):
            harness.routing.probes.record_alive(each)
        harness.says(A, ProbeOutcome.BUSY)
        ends = Ends(harness.routing)
        harness.routing.show(view(replica(A)))
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        harness.routing.show(view(_replica(A, 0, 4), _replica(B, 1, 4)))
        await trio.sleep((LOOK_SECONDS_MAX if usual_seconds is None else 1.0) + 1.0)
        for _ in range(3):
            nursery.start_soon(ends.ask)
            await trio.sleep(1)
        assert [target.replica_id for target in target_called] == [A, B, B, B]
        nursery.cancel_scope.cancel()
