"""How fast somebody may go who could go faster."""

from random import Random

import pytest

from gateway.domain.pacing import Backoff, TokenBucket, doubled_seconds


def test_a_burst_is_free_and_the_rest_waits_its_time() -> None:
    pace = TokenBucket(per_second=2.0, burst=3.0)
    assert [pace.take(1, 100.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]


def test_time_gives_back_what_was_used_and_no_more_than_the_burst() -> None:
    pace = TokenBucket(per_second=2.0, burst=3.0)
    pace.take(3, 100.0)
    assert (pace.take(1, 100.5), pace.take(1, 100.5)) == (0.0, 0.5)
    assert [pace.take(1, 200.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_a_caller_that_has_to_come_later_has_taken_nothing() -> None:
    pace = TokenBucket(per_second=2.0, burst=1.0)
    assert pace.try_take(1, 0.0) == 0.0
    assert [pace.try_take(1, 0.0) for _ in range(3)] == [0.5, 0.5, 0.5]
    assert pace.try_take(1, 0.5) == 0.0


def test_it_is_as_new_after_a_while() -> None:
    pace = TokenBucket(per_second=2.0, burst=2.0)
    assert pace.is_untouched(0.0)
    pace.take(2, 0.0)
    assert not pace.is_untouched(0.9)
    assert pace.is_untouched(1.0)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    pace = TokenBucket(per_second=2.0, burst=1.0)
    pace.take(1, 10.0)
    assert pace.try_take(1, 5.0) == 0.5


@pytest.mark.parametrize(("doublings", "seconds"), [(0, 0.1), (1, 0.2), (3, 0.8), (6, 5.0), (10**6, 5.0)])
def test_a_pause_doubles_up_to_its_bound(doublings: int, seconds: float) -> None:
    assert doubled_seconds(0.1, doublings, 5.0) == pytest.approx(seconds)


def test_without_chance_the_pauses_are_exact() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next_seconds() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_success_begins_again_with_the_first_pause() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next_seconds() for _ in range(3)] == [1.0, 2.0, 4.0]
    backoff.reset()
    assert backoff.next_seconds() == 1.0


def test_chance_shortens_a_pause_by_up_to_a_half() -> None:
    spread = [Backoff(1.0, 5.0, Random(seed)).next_seconds() for seed in range(100)]
    assert all(0.5 <= seconds <= 1.0 for seconds in spread)
    assert min(spread) < 0.6 < 0.9 < max(spread)


def test_what_is_given_back_can_be_taken_again_and_the_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(per_second=1.0, burst=2.0)
    assert bucket.try_take(2, now=0.0) == 0
    bucket.give_back(1)
    assert bucket.try_take(1, now=0.0) == 0
    assert bucket.try_take(1, now=0.0) == 1
    bucket.give_back(100)
    assert bucket.try_take(2, now=0.0) == 0
    assert bucket.try_take(1, now=0.0) == 1
