"""What a probe and the end of a call mean for the request, and what they teach of the replica."""

from dataclasses import replace

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Lost, Refused, RouteError, Stale, Target, Unreachable
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.errors import BackendFailed, BadRequest, Timeout
from gateway.domain.ids import ReplicaId
from gateway.routing.attempt import Attempt, Retries
from gateway.routing.probe_cache import BUSY_SECONDS, HOLD_PAUSE_SECONDS
from tests.fakes.fleet import MODEL, replica, spec, view
from tests.fakes.routing_harness import ORIGIN, RoutingHarness

A = ReplicaId("a")
ENDINGS = (None, ValueError("a bug"), KeyboardInterrupt())
"""Ways to leave a call which its backend has not ended."""


class RouteHarness(RoutingHarness):
    """One replica, one request, one lease at a time."""

    def __init__(self, *, attempts: int = 3, refuses_when_full: bool = True) -> None:
        super().__init__(replica(A))
        self.refuses_when_full = refuses_when_full
        self.request = self.admission.open_request(MODEL, ORIGIN)
        self.retries = Retries(self.admission, attempts)

    async def attempt(self) -> Attempt:
        lease = await self.admission.wait_lease(self.request)
        lease.candidate = replace(lease.candidate, refuses_when_full=self.refuses_when_full)
        target = Target(A, MODEL, lease.candidate.address, "t")
        return Attempt(lease, target, self.request.decision.attempts[-1], self.loads, self.probes)

    @property
    def penalties(self) -> int:
        return self.loads.load_of(A).penalties(trio.current_time())

    @property
    def outcomes(self) -> list[str]:
        return [record.outcome for record in self.request.decision.attempts]


@pytest.mark.parametrize("outcome", ProbeOutcome)
async def test_what_a_probe_means(outcome: ProbeOutcome) -> None:
    harness = RouteHarness()
    with await harness.attempt() as attempt:
        assert harness.retries.accepts(harness.request, outcome, attempt) == (outcome is ProbeOutcome.ALIVE)
        assert attempt.record.probe == outcome.value
        assert attempt.lease.called == (outcome is ProbeOutcome.ALIVE)
    assert harness.in_flight() == 0


async def test_h2_a_busy_replica_is_left_once_and_taken_when_the_pick_comes_back() -> None:
    harness = RouteHarness()
    with await harness.attempt() as first:
        assert not harness.retries.accepts(harness.request, ProbeOutcome.BUSY, first)
    with await harness.attempt() as second:
        assert harness.retries.accepts(harness.request, ProbeOutcome.BUSY, second)
        second.record_progress(done=True)
    assert harness.outcomes == ["busy", "served"]
    assert harness.retries.counts == {"busy": 1}
    assert harness.penalties == 0


async def test_h2_busy_is_no_failure_and_uses_up_no_attempt(autojump_clock: trio.testing.MockClock) -> None:
    harness = RouteHarness(attempts=1)
    with await harness.attempt() as attempt:
        harness.retries.accepts(harness.request, ProbeOutcome.BUSY, attempt)
    use = harness.loads.load_of(A)
    assert (use.failures, use.busy_until) == (0, trio.current_time() + BUSY_SECONDS)
    assert harness.request.excluded == set()


@pytest.mark.parametrize("outcome", [ProbeOutcome.GONE, ProbeOutcome.UNREACHABLE])
async def test_a_replica_that_is_not_there_is_a_failed_attempt(outcome: ProbeOutcome) -> None:
    harness = RouteHarness()
    with await harness.attempt() as attempt:
        harness.retries.accepts(harness.request, outcome, attempt)
    assert harness.request.excluded == {A}
    assert harness.outcomes == ["unreachable"]
    assert harness.penalties == 1


@pytest.mark.parametrize(
    ("error", "cause", "excluded", "penalties"),
    [
        (Refused(draining=False), "full", False, 0),
        (Refused(draining=True), "draining", True, 0),
        (Stale("not loaded"), "stale", True, 1),
        (Unreachable("refused"), "unreachable", True, 1),
        (Lost("reset"), "lost", True, 1),
    ],
)
async def test_what_a_failed_call_means(error: RouteError, cause: str, excluded: bool, penalties: int) -> None:
    harness = RouteHarness()
    with await harness.attempt() as attempt:
        harness.retries.accepts(harness.request, ProbeOutcome.ALIVE, attempt)
        harness.retries.record(harness.request, error, attempt)
    assert harness.outcomes == [cause]
    assert harness.request.reason == cause
    assert harness.retries.counts == {cause: 1}
    assert (A in harness.request.excluded) == excluded
    assert harness.penalties == penalties
    assert harness.in_flight() == 0


@pytest.mark.parametrize("error", [Stale("x"), Unreachable("x"), Lost("x")])
async def test_a_failure_is_asked_about_before_the_next_call_and_a_refusal_is_not(error: RouteError) -> None:
    harness = RouteHarness()
    with await harness.attempt() as attempt:
        harness.retries.record(harness.request, Refused(draining=False), attempt)
        assert await harness.probes.check(attempt.target) is ProbeOutcome.ALIVE
        assert harness.probe.asked == []
        harness.retries.record(harness.request, error, attempt)
        await harness.probes.check(attempt.target)
        assert harness.probe.asked == [A]


@pytest.mark.parametrize(("error", "tries"), [(Unreachable("refused"), 3), (Lost("reset"), 2)])
async def test_m7_attempts_end_and_a_loss_is_repeated_once(error: RouteError, tries: int) -> None:
    harness = RouteHarness(attempts=3)
    for _ in range(tries - 1):
        with await harness.attempt() as attempt:
            harness.retries.record(harness.request, error, attempt)
        harness.request.excluded.clear()
    with await harness.attempt() as attempt, pytest.raises(BackendFailed, match=str(error)):
        harness.retries.record(harness.request, error, attempt)
    assert harness.in_flight() == 0


async def test_refusals_are_no_attempts(autojump_clock: trio.testing.MockClock) -> None:
    harness = RouteHarness(attempts=1)
    for _ in range(50):
        with await harness.attempt() as attempt:
            harness.retries.record(harness.request, Refused(draining=False), attempt)
    assert harness.outcomes == ["full"] * 50


async def test_progress_ends_the_attempt_only_when_it_was_the_last_thing() -> None:
    harness = RouteHarness()
    harness.loads.record_failure(A, trio.current_time())
    with await harness.attempt() as attempt:
        attempt.record_progress(done=False)
        assert harness.outcomes == ["running"]
        assert harness.penalties == 0
        attempt.record_progress(done=True)
    assert harness.outcomes == ["served"]


async def leave(harness: RouteHarness, ending: BaseException | None, *, called: bool = True) -> None:
    """A attempt that is left by `ending`."""
    attempt = await harness.attempt()
    attempt.lease.called = called
    attempt.__exit__(None, ending, None)


@pytest.mark.parametrize("error", [BackendFailed("broke"), Timeout("late")])
async def test_a_backends_failure_weighs_on_it(error: BackendFailed) -> None:
    harness = RouteHarness(refuses_when_full=False)
    await leave(harness, error)
    assert harness.outcomes == ["failed"]
    assert harness.penalties == 1
    assert harness.in_flight() == 0  # it has ended the call itself: there is nothing to hold


async def test_a_request_that_was_refused_for_itself_speaks_for_the_replica() -> None:
    harness = RouteHarness(refuses_when_full=False)
    await leave(harness, BadRequest("too long"))
    assert harness.outcomes == ["refused"]
    assert harness.penalties == harness.in_flight() == 0
    assert harness.probes.statistics().running == 0
    with await harness.attempt() as attempt:
        await harness.probes.check(attempt.target)
    assert harness.probe.asked == []


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
async def test_r8_the_lease_of_a_call_that_was_left_is_held_until_a_foreign_backend_answers(
    autojump_clock: trio.testing.MockClock, ending: BaseException | None
) -> None:
    harness = RouteHarness(refuses_when_full=False)
    harness.probe.outcomes[A] = ProbeOutcome.BUSY
    await leave(harness, ending, called=True)
    await trio.sleep(60)
    assert harness.in_flight() == harness.loads.in_flight(A) == 1
    harness.probe.outcomes[A] = ProbeOutcome.ALIVE
    await trio.sleep(HOLD_PAUSE_SECONDS)
    assert harness.in_flight() == 0
    assert harness.outcomes == ["left"]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
@pytest.mark.parametrize(("called", "refuses_when_full"), [(False, False), (True, True)])
async def test_a_lease_ends_at_once_without_a_call_or_where_cancels_are_noticed(
    ending: BaseException | None, called: bool, refuses_when_full: bool
) -> None:
    harness = RouteHarness(refuses_when_full=refuses_when_full)
    await leave(harness, ending, called=called)
    assert harness.in_flight() == 0
    assert harness.outcomes == ["left"]
    assert harness.probe.asked == []


async def test_a_lease_that_waits_for_a_probe_is_no_request_of_the_replica() -> None:
    """Else nothing could ever be found to hang: whoever asks has a lease already."""
    harness = RouteHarness()
    with await harness.attempt() as attempt:
        assert harness.in_flight() == 1
        assert harness.loads.in_flight(A) == 0
        harness.retries.accepts(harness.request, ProbeOutcome.ALIVE, attempt)
        assert harness.loads.in_flight(A) == 1


async def test_the_view_says_which_backends_refuse() -> None:
    foreign = spec(backend="whisper")
    assert not view(replica(A, foreign), specs=[foreign]).candidates[MODEL][0].refuses_when_full
    assert view(replica(A)).candidates[MODEL][0].refuses_when_full
