"""What is heard of loads: how far they are, at which rate, and how each one ended, once."""

import pytest

from gateway.control.sessions.load_progress import LoadOutcome, LoadProgress
from gateway.domain.cluster import Progress
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Observed
from gateway.domain.session import Report

R = ReplicaId("r")


def fetching(done: int | None = None, total: int | None = None) -> Report:
    return Report(R, Observed.FETCHING, done_bytes=done, total_bytes=total)


@pytest.fixture
def ends() -> list[tuple[ReplicaId, LoadOutcome, float | None]]:
    return []


@pytest.fixture
def watch(ends: list[tuple[ReplicaId, LoadOutcome, float | None]]) -> LoadProgress:
    return LoadProgress(lambda *end: ends.append(end))


def progress_at(watch: LoadProgress, now: float) -> Progress:
    progress = watch.progress_of(R, now)
    assert progress is not None
    return progress


def test_l11_nothing_is_guessed_of_what_was_not_reported(watch: LoadProgress) -> None:
    assert watch.progress_of(R, 0) is None
    watch.record(fetching(), 0)
    assert progress_at(watch, 5) == Progress()
    assert (Progress().fraction, Progress().eta_seconds) == (None, None)
    assert (Progress(5).fraction, Progress(5, 10).eta_seconds, Progress(5, 0).fraction) == (None, None, None)


def test_l11_the_rate_is_what_was_fetched_since_the_first_number(watch: LoadProgress) -> None:
    watch.record(fetching(), 0)
    watch.record(fetching(100, 1000), 10)
    assert progress_at(watch, 10) == Progress(100, 1000)
    watch.record(fetching(300, 1000), 20)
    assert progress_at(watch, 20) == Progress(300, 1000, 20.0)
    assert (progress_at(watch, 20).fraction, progress_at(watch, 20).eta_seconds) == (0.3, 35.0)


def test_l11_a_fetch_that_stalls_has_a_longer_estimate(watch: LoadProgress) -> None:
    watch.record(fetching(0, 1000), 0)
    watch.record(fetching(500, 1000), 10)
    assert (progress_at(watch, 10).eta_seconds, progress_at(watch, 40).eta_seconds) == (10.0, 40.0)


def test_more_than_all_is_all() -> None:
    assert (Progress(11, 10, 1.0).fraction, Progress(11, 10, 1.0).eta_seconds) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (Observed.READY, LoadOutcome.READY),
        (Observed.FAILED, LoadOutcome.FAILED),
        (Observed.GONE, LoadOutcome.STOPPED),
    ],
)
def test_a_load_ends_once(
    watch: LoadProgress, ends: list[tuple[ReplicaId, LoadOutcome, float | None]], end: Observed, outcome: LoadOutcome
) -> None:
    watch.record(fetching(), 2)
    watch.record(Report(R, Observed.LOADING), 5)
    for _ in range(2):
        watch.record(Report(R, end), 12)
    watch.record(Report(R, Observed.GONE), 20)
    assert ends == [(R, outcome, 10.0)]
    assert watch.progress_of(R, 20) is None


def test_h10_what_was_loaded_before_the_first_report_is_no_load(
    watch: LoadProgress, ends: list[tuple[ReplicaId, LoadOutcome, float | None]]
) -> None:
    watch.record(Report(R, Observed.READY), 1)
    watch.record(Report(R, Observed.GONE), 2)
    assert ends == []


def test_l10_a_failure_counts_even_without_an_earlier_report(
    watch: LoadProgress, ends: list[tuple[ReplicaId, LoadOutcome, float | None]]
) -> None:
    watch.record(Report(R, Observed.FAILED), 1)
    assert ends == [(R, LoadOutcome.FAILED, None)]


def test_forgotten_replicas_are_forgotten(watch: LoadProgress) -> None:
    watch.record(fetching(1, 2), 0)
    watch.keep_only({R})
    assert watch.progress_of(R, 0) is not None
    watch.keep_only(())
    assert watch.progress_of(R, 0) is None
