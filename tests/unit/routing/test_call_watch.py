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
from tests.fakes.routing_bench import LIMITS, ORIGIN, RoutingBench, generation

A, B = ReplicaId("a"), ReplicaId("b")
PROBE_SECONDS: Final = 2.0
"""What a question without an answer takes."""
SILENCE_SECONDS: Final = 15.0
SLACK_SECONDS: Final = 10.0
"""Beyond a bound: for the questions themselves and the pauses between them."""
PATIENT: Final = replace(LIMITS, load_wait_seconds=900, queue_timeout_seconds=900, queue_length_max=64)


@dataclass
class Bench:
    """`routing` with a watch over its calls; replicas named in `offline` are on nodes that are."""

    routing: RoutingBench
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
async def open_bench(*several: ReplicaId, refuses: bool = True, parallel: int = 4) -> AsyncIterator[Bench]:
    """`refuses`: the backends are of our own kind, which answers Health whatever it works on."""
    hung = list[str]()
    routing = RoutingBench(
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
    bench = Bench(routing, watch, hung, offline)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield bench
        nursery.cancel_scope.cancel()


def _replica(replica_id: ReplicaId, slot: int, parallel: int) -> Replica:
    return replace(replica(replica_id, slot=slot), parallel=parallel)


def _of_kind(shown: FleetView, *, refuses: bool) -> FleetView:
    changed = {
        model: tuple(replace(each, refuses_when_full=refuses) for each in several)
        for model, several in shown.candidates.items()
    }
    return FleetView(shown.state, changed)


async def _take_time(routing: RoutingBench) -> None:
    """Who answers does so at once."""
    silent = routing.probe.outcomes.get(routing.probe.asked[-1], ProbeOutcome.ALIVE) is not ProbeOutcome.ALIVE
    await trio.sleep(PROBE_SECONDS if silent else 0)


@dataclass
class Ends:
    """How requests ended: by whom they were answered, or the error."""

    routing: RoutingBench
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


async def test_requests_without_a_byte_go_elsewhere_when_their_machine_has_vanished(autojump_clock: MockClock) -> None:
    async with open_bench(A) as bench, trio.open_nursery() as nursery:
        bench.falls_silent(A)
        ends = Ends(bench.routing)
        for request in (ends.ask, ends.stream, ends.ask, ends.stream):
            nursery.start_soon(request)
        await trio.sleep(0.1)
        bench.says(A, ProbeOutcome.UNREACHABLE)
        bench.routing.show(view(replica(A), replica(B, slot=1)))
        await trio.sleep(SILENCE_SECONDS / 2)
        assert ends.all == []
        await bench.wait_for(lambda: len(ends.all) == 4, SILENCE_SECONDS + SLACK_SECONDS)
        assert ends.all == [B] * 4
        assert bench.routing.in_flight() == 0
        assert bench.routing.router.statistics().reroutes["lost"] == 4
        assert bench.hung == []  # who can't be reached from here may serve others


async def test_a_stream_that_has_begun_ends_with_an_error_when_its_machine_has_vanished(
    autojump_clock: MockClock,
) -> None:
    async with open_bench(A, B) as bench, trio.open_nursery() as nursery:
        bench.routing.backends.script(A, Delta("one"), trio.Event(), DONE)
        bench.routing.backends.script(B, Delta("one"), trio.Event(), DONE)
        bench.says(A, ProbeOutcome.UNREACHABLE)
        bench.says(B, ProbeOutcome.UNREACHABLE)
        bench.routing.probes.record_alive(A)
        bench.routing.probes.record_alive(B)
        ends = Ends(bench.routing)
        nursery.start_soon(ends.stream)
        await bench.wait_for(lambda: ends.all, LOOK_SECONDS_MAX + SILENCE_SECONDS + SLACK_SECONDS)
        assert "was lost in the middle of its answer" in ends.all[0]
        assert bench.routing.in_flight() == 0


async def test_a_client_that_reads_slowly_keeps_no_lease_on_a_machine_that_has_vanished(
    autojump_clock: MockClock,
) -> None:
    """Another request waits there, and shows that the machine is gone; the slow one is told when it reads on."""
    async with open_bench(A) as bench, trio.open_nursery() as nursery:
        bench.routing.backends.script(A, Delta("one"), trio.Event(), Delta("two"), DONE)
        async with bench.routing.router.open_stream(generation(), ORIGIN) as slow:
            await slow.receive_batch()
            bench.falls_silent(A)
            bench.says(A, ProbeOutcome.UNREACHABLE)
            nursery.start_soon(Ends(bench.routing).ask)
            await trio.sleep(0.1)
            assert bench.routing.in_flight() == 2
            await bench.wait_for(
                lambda: bench.routing.in_flight() == 0, LOOK_SECONDS_MAX + SILENCE_SECONDS + SLACK_SECONDS
            )
            with pytest.raises(BackendFailed, match="lost in the middle of its answer"):
                await slow.receive_batch()
        nursery.cancel_scope.cancel()


async def test_a_cut_that_is_shorter_costs_nothing(autojump_clock: MockClock) -> None:
    async with open_bench(A) as bench, trio.open_nursery() as nursery:
        wakes, ends = bench.falls_silent(A), Ends(bench.routing)
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        for _ in range(4):
            bench.says(A, ProbeOutcome.UNREACHABLE)
            await trio.sleep(SILENCE_SECONDS - LOOK_SECONDS_MAX - 1)
            bench.says(A, ProbeOutcome.ALIVE)
            await trio.sleep(SILENCE_SECONDS)
        wakes.set()
        await bench.wait_for(lambda: ends.all, 1)
        assert ends.all == [A]


async def test_silence_of_every_kind_counts_once_the_node_is_offline(autojump_clock: MockClock) -> None:
    async with open_bench(A, refuses=False) as bench, trio.open_nursery() as nursery:
        bench.falls_silent(A)
        ends = Ends(bench.routing)
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        bench.says(A, ProbeOutcome.BUSY)
        await trio.sleep(300)
        assert ends.all == []
        bench.routing.show(view(replica(A), replica(B, slot=1)))
        bench.offline.add(A)
        await bench.wait_for(lambda: ends.all, 2 * SLACK_SECONDS)
        assert ends.all == [B]
        assert bench.hung == []


async def test_calls_of_a_replica_that_has_left_the_fleet_end(autojump_clock: MockClock) -> None:
    async with open_bench(A) as bench, trio.open_nursery() as nursery:
        bench.falls_silent(A)
        ends = Ends(bench.routing)
        nursery.start_soon(ends.ask)
        await trio.sleep(1)
        bench.routing.show(view(replica(B)))
        bench.watch.keep_only({B})
        await bench.wait_for(lambda: ends.all, 1)
        assert ends.all == [B]


# Replicas that hang


async def test_a_frozen_replica_is_found_out_however_many_wait_for_it(autojump_clock: MockClock) -> None:
    """Stopped while it is idle, and then sent requests that overlap: there is no moment without one."""
    async with open_bench(A, parallel=64) as bench, trio.open_nursery() as nursery:
        bench.routing.probes.record_alive(A)
        bench.falls_silent(A)
        bench.says(A, ProbeOutcome.BUSY)
        ends, sent = Ends(bench.routing), 0
        while not bench.hung:
            nursery.start_soon(ends.ask if sent % 2 else ends.stream)
            sent += 1
            await trio.sleep(1)
            assert sent < LOOK_SECONDS_MAX + SILENCE_SECONDS + SLACK_SECONDS
        assert sent > SILENCE_SECONDS
        bench.routing.show(view(replica(B)))
        await bench.wait_for(lambda: len(ends.all) == sent, SLACK_SECONDS)
        assert ends.all == [B] * sent
        assert bench.routing.in_flight() == 0
        assert "it hangs" in bench.hung[0]


async def test_requests_that_come_and_go_do_not_hide_that_a_replica_hangs(autojump_clock: MockClock) -> None:
    async def ask_for(seconds: float) -> None:
        with trio.move_on_after(seconds):
            await Ends(bench.routing).ask()

    async with open_bench(A, parallel=64) as bench, trio.open_nursery() as nursery:
        bench.routing.probes.record_alive(A)
        bench.falls_silent(A)
        bench.says(A, ProbeOutcome.BUSY)
        with trio.fail_after(LOOK_SECONDS_MAX + SILENCE_SECONDS + SLACK_SECONDS):
            while not bench.hung:
                nursery.start_soon(ask_for, 3.0)
                await trio.sleep(2)
        nursery.cancel_scope.cancel()


async def test_h1_a_backend_of_one_thread_may_work_for_as_long_as_it_likes(autojump_clock: MockClock) -> None:
    async with open_bench(A, B, refuses=False) as bench, trio.open_nursery() as nursery:
        wakes, ends = bench.falls_silent(A), Ends(bench.routing)
        bench.routing.backends.script(B, trio.Event())
        bench.routing.show(_of_kind(view(replica(A)), refuses=False))
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        bench.says(A, ProbeOutcome.BUSY)
        await trio.sleep(3600)
        assert bench.hung == []
        wakes.set()
        await bench.wait_for(lambda: ends.all, 1)
        assert ends.all == [A]


async def test_a_foreign_backend_that_has_answered_beside_its_call_hangs_when_it_does_not(
    autojump_clock: MockClock,
) -> None:
    async with open_bench(A, refuses=False) as bench, trio.open_nursery() as nursery:
        bench.falls_silent(A)
        nursery.start_soon(Ends(bench.routing).ask)
        await trio.sleep(3 * LOOK_SECONDS_MAX)
        bench.says(A, ProbeOutcome.BUSY)
        await trio.sleep(FOREIGN_HUNG_SECONDS - SLACK_SECONDS)
        assert bench.hung == []
        await bench.wait_for(lambda: bench.hung, SLACK_SECONDS + 3 * SLACK_SECONDS)
        nursery.cancel_scope.cancel()


async def test_a_foreign_backend_may_be_silent_beside_more_calls_than_before(autojump_clock: MockClock) -> None:
    async with open_bench(A, refuses=False) as bench, trio.open_nursery() as nursery:
        bench.falls_silent(A)
        nursery.start_soon(Ends(bench.routing).ask)
        await trio.sleep(3 * LOOK_SECONDS_MAX)
        nursery.start_soon(Ends(bench.routing).ask)  # takes its last thread
        bench.says(A, ProbeOutcome.BUSY)
        await trio.sleep(3600)
        assert bench.hung == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("usual_seconds", "at_least", "at_most"),
    [(1.0, FOREIGN_HUNG_SECONDS, 90), (20.0, 200, 240), (None, FOREIGN_HUNG_SECONDS_MAX, 640)],
)
async def test_a_foreign_backend_that_was_silent_before_its_request_hangs_by_its_own_measure(
    autojump_clock: MockClock, usual_seconds: float | None, at_least: float, at_most: float
) -> None:
    async with open_bench(A, refuses=False) as bench, trio.open_nursery() as nursery:
        if usual_seconds is not None:
            bench.routing.calls.first_answers_of(A).record(usual_seconds)
        bench.falls_silent(A)
        bench.says(A, ProbeOutcome.BUSY)
        nursery.start_soon(Ends(bench.routing).ask)
        await trio.sleep(at_least - 5)
        assert bench.hung == []
        await bench.wait_for(lambda: bench.hung, at_most - at_least + 5)
        nursery.cancel_scope.cancel()


# Replicas that work


@pytest.mark.parametrize("outcome", [ProbeOutcome.BUSY, ProbeOutcome.UNREACHABLE, ProbeOutcome.GONE])
async def test_h12_a_stream_that_flows_is_never_ended(autojump_clock: MockClock, outcome: ProbeOutcome) -> None:
    """Nor are others of the same replica."""
    async with open_bench(A) as bench, trio.open_nursery() as nursery:
        pieces = [trio.Event() for _ in range(40)]
        items = [item for event in pieces for item in (event, Delta("x"))]
        bench.routing.backends.script(A, *items, DONE)
        ends = Ends(bench.routing)
        nursery.start_soon(ends.stream)
        await trio.sleep(0.1)
        wakes = bench.falls_silent(A)
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        bench.says(A, outcome)
        for event in pieces:
            await trio.sleep(8)
            event.set()
        await bench.wait_for(lambda: ends.all, 1)
        wakes.set()
        await bench.wait_for(lambda: len(ends.all) == 2, 1)
        assert ends.all == [A, A]
        assert bench.hung == []


async def test_health_that_answers_lets_a_call_wait_for_an_hour_and_is_asked_now_and_then(
    autojump_clock: MockClock,
) -> None:
    async with open_bench(A, B) as bench, trio.open_nursery() as nursery:
        bench.routing.show(view(replica(A)))
        wakes, ends = bench.falls_silent(A), Ends(bench.routing)
        nursery.start_soon(ends.ask)
        await trio.sleep(3600)
        assert 600 < len(bench.routing.probe.asked) < 3600 / LOOK_SECONDS_MAX + 2
        wakes.set()
        await bench.wait_for(lambda: ends.all, 1)
        assert ends.all == [A]


async def test_a_client_that_reads_slowly_is_no_silence_of_the_backend(autojump_clock: MockClock) -> None:
    async with open_bench(A) as bench:
        bench.says(A, ProbeOutcome.UNREACHABLE)
        bench.routing.probes.record_alive(A)
        async with bench.routing.router.open_stream(generation(), ORIGIN) as stream:
            await trio.sleep(600)
            batch = await stream.receive_batch()
        assert batch == [Delta("hello"), DONE]


# Those who come after


@pytest.mark.parametrize("usual_seconds", [None, 0.1])
async def test_new_requests_go_to_others_once_a_call_is_silent_for_longer_than_usual(
    autojump_clock: MockClock, usual_seconds: float | None
) -> None:
    """Though the others have more to do, and though the silent one was heard of just now."""
    async with open_bench(A, B) as bench, trio.open_nursery() as nursery:
        if usual_seconds is not None:
            for _ in range(10):
                bench.routing.calls.first_answers_of(A).record(usual_seconds)
        bench.routing.backends.on_call = lambda target: target_called.append(target)
        target_called = list[Target]()
        bench.falls_silent(A)
        bench.falls_silent(B)
        for each in (A, B):
            bench.routing.probes.record_alive(each)
        bench.says(A, ProbeOutcome.BUSY)
        ends = Ends(bench.routing)
        bench.routing.show(view(replica(A)))
        nursery.start_soon(ends.ask)
        await trio.sleep(0.1)
        bench.routing.show(view(_replica(A, 0, 4), _replica(B, 1, 4)))
        await trio.sleep((LOOK_SECONDS_MAX if usual_seconds is None else 1.0) + 1.0)
        for _ in range(3):
            nursery.start_soon(ends.ask)
            await trio.sleep(1)
        assert [target.replica_id for target in target_called] == [A, B, B, B]
        nursery.cancel_scope.cancel()
