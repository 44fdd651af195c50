"""How fast somebody may go who could go faster."""

from gateway.domain.token_bucket import TokenBucket


def test_a_burst_is_free_and_the_rest_waits_its_time() -> None:
    pace = TokenBucket(per_second=2.0, burst=3.0)
    assert [pace.take(1, 100.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]


def test_time_gives_back_what_was_used_and_no_more_than_the_burst() -> None:
    pace = TokenBucket(per_second=2.0, burst=3.0)
    pace.take(3, 100.0)
    assert (pace.take(1, 100.5), pace.take(1, 100.5)) == (0.0, 0.5)
    assert [pace.take(1, 200.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_who_is_told_to_come_later_has_taken_nothing() -> None:
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
