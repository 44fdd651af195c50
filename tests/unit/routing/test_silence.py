"""What a replica's silence means, case by case; `test_call_watch` has the watch around it."""

from math import inf

import pytest

from gateway.domain.cluster import ProbeOutcome
from gateway.domain.ids import ReplicaId
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.open_calls import FirstAnswers
from gateway.routing.silence import (
    LOOK_SECONDS_MAX,
    LOOK_SECONDS_MIN,
    SILENCE_SECONDS_MIN,
    Evidence,
    Silence,
    Tolerance,
    Verdict,
    hung_after_seconds,
    tolerance,
)

PATIENCE = Tolerance(misses=3, silence_seconds=15.0)
BUSY, UNREACHABLE, GONE = ProbeOutcome.BUSY, ProbeOutcome.UNREACHABLE, ProbeOutcome.GONE


def verdict_after(*outcomes: tuple[float, ProbeOutcome], witness: Evidence | None = None) -> Verdict:
    """Of questions that were answered so, at those seconds of a silence."""
    silence, now = Silence(0.0, 5.0, 0.0), 0.0
    for now, outcome in outcomes:
        silence.record_silence(outcome, now)
    return silence.verdict(witness or Evidence(15.0), PATIENCE, now)


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([(15, UNREACHABLE)], Verdict.SUSPECT),
        ([(1, UNREACHABLE), (2, UNREACHABLE), (14, UNREACHABLE)], Verdict.SUSPECT),
        ([(5, UNREACHABLE), (10, UNREACHABLE), (15, UNREACHABLE)], Verdict.LOST),
        ([(5, GONE), (10, UNREACHABLE), (15, GONE)], Verdict.LOST),
        ([(5, BUSY), (10, BUSY), (15, BUSY)], Verdict.HUNG),
    ],
)
def test_so_many_questions_and_so_long_a_silence(outcomes: list[tuple[float, ProbeOutcome]], verdict: Verdict) -> None:
    assert verdict_after(*outcomes) is verdict


def test_a_machine_that_is_back_is_no_replica_that_hangs_at_once() -> None:
    away: list[tuple[float, ProbeOutcome]] = [(5, UNREACHABLE), (10, UNREACHABLE), (14, UNREACHABLE)]
    back: list[tuple[float, ProbeOutcome]] = [(16, BUSY), (18, BUSY), (20, BUSY)]
    assert verdict_after(*away, *back) is Verdict.SUSPECT
    assert verdict_after(*away, *back, (31, BUSY)) is Verdict.HUNG


def test_a_node_that_is_offline_needs_no_more_time() -> None:
    offline = Evidence(inf, is_offline=True)
    assert verdict_after((1, BUSY), (2, UNREACHABLE), witness=offline) is Verdict.SUSPECT
    assert verdict_after((1, BUSY), (2, UNREACHABLE), (3, BUSY), witness=offline) is Verdict.LOST


def test_a_replica_is_asked_after_as_long_as_its_answers_usually_take_to_begin() -> None:
    answers = FirstAnswers()
    assert answers.expected_seconds == LOOK_SECONDS_MAX
    for _ in range(20):
        answers.record(0.05)
    assert answers.expected_seconds == LOOK_SECONDS_MIN
    for seconds in (1.0, 2.0, 3.0):
        answers.record(seconds)
    assert LOOK_SECONDS_MIN < answers.expected_seconds <= LOOK_SECONDS_MAX
    answers.record(600.0)
    assert answers.expected_seconds == LOOK_SECONDS_MAX
    assert answers.longest_seconds == 600.0


def test_short_heartbeats_end_no_call_in_a_moment() -> None:
    hasty = tolerance(3, 0.1)
    assert hasty.silence_seconds == SILENCE_SECONDS_MIN
    assert tolerance(3, 5.0) == PATIENCE
    known = {"calls": 1, "answered_beside": 0, "silent_when_idle": False, "longest_seconds": 0.0}
    assert hung_after_seconds(hasty, answers_always=True, **known) == SILENCE_SECONDS_MIN  # type: ignore[arg-type]
    assert hung_after_seconds(hasty, answers_always=False, **known) == inf  # type: ignore[arg-type]


def test_h1_what_other_gateways_have_there_may_be_what_keeps_it_busy() -> None:
    """Idle is a replica without a request in the whole fleet."""
    loads, replica_id = LoadTracker(lambda: 0.0), ReplicaId("a")
    assert loads.in_flight(replica_id) == 0
    loads.apply_peers({replica_id: 2})
    assert loads.in_flight(replica_id) == 2
