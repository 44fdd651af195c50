"""The order in which waiting requests are served: by arrival within a caller, in turn between callers."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from gateway.routing.fair_queue import FairQueue, Share


@dataclass(frozen=True)
class Waiting:
    number: int
    caller: str


Shares = Callable[[str], Share]


def nothing_had(_caller: str) -> Share:
    return Share(held=0, last_turn=0)


def holding(**slots: int) -> Shares:
    """Slots by caller; nobody had one before another."""
    return lambda caller: Share(slots[caller], last_turn=0)


def queue_of(*callers: str) -> tuple[FairQueue[Waiting], list[Waiting]]:
    """One waiter for each letter, in order of arrival."""
    queue, waiters = FairQueue[Waiting](), [Waiting(number, caller) for number, caller in enumerate(callers)]
    for waiter in waiters:
        queue.add(waiter)
    return queue, waiters


def test_one_caller_is_served_in_order_of_arrival() -> None:
    queue, waiters = queue_of("a", "a", "a")
    served = []
    while (waiter := queue.next_in_turn(nothing_had)) is not None:
        queue.remove(waiter)
        served.append(waiter)
    assert served == waiters
    assert len(queue) == 0


def test_who_holds_the_fewest_slots_is_next() -> None:
    queue, (_, _, single) = queue_of("heavy", "heavy", "light")
    assert queue.next_in_turn(holding(heavy=1, light=0)) is single


def test_who_holds_as_many_is_served_by_how_long_it_got_none() -> None:
    """With a single slot nobody holds one when it is given away."""
    queue, (_, light, _) = queue_of("heavy", "light", "heavy")
    last_turns = {"heavy": 8, "light": 3}
    assert queue.next_in_turn(lambda caller: Share(0, last_turns[caller])) is light


def test_who_has_had_as_much_is_served_by_arrival() -> None:
    queue, (first, *_) = queue_of("heavy", "heavy", "light")
    assert queue.next_in_turn(holding(heavy=2, light=2)) is first


def test_slots_are_shared_equally_while_both_wait() -> None:
    queue, _ = queue_of(*["heavy"] * 1000, *["light"] * 4)
    held = Counter[str]()
    for _ in range(8):
        waiter = queue.next_in_turn(lambda caller: Share(held[caller], last_turn=0))
        assert waiter is not None
        queue.remove(waiter)
        held[waiter.caller] += 1
    assert held == {"heavy": 4, "light": 4}


def test_nobodys_share_matters_when_only_one_caller_waits() -> None:
    def unasked(_caller: str) -> Share:
        raise AssertionError("there is nobody to compare with")

    queue, (first, _) = queue_of("a", "a")
    assert queue.next_in_turn(unasked) is first


def test_who_is_passed_over_leaves_the_turn_to_the_next_of_its_line() -> None:
    queue, (first, second, other) = queue_of("a", "a", "b")
    assert queue.next_in_turn(nothing_had, {first}) is second
    assert queue.next_in_turn(nothing_had, {first, second}) is other
    assert queue.next_in_turn(nothing_had, {first, second, other}) is None


def test_one_that_comes_back_has_kept_its_place() -> None:
    queue, (first, second) = queue_of("a", "a")
    queue.remove(first)
    assert queue.is_first(second)
    queue.add(first)
    assert queue.is_first(first)
    assert not queue.is_first(second)


def test_leaving_names_who_is_first_then() -> None:
    queue, (first, second, third) = queue_of("a", "a", "a")
    assert queue.remove(second) is None
    assert queue.remove(first) is third
    assert queue.remove(third) is None


def test_a_queue_knows_who_waits() -> None:
    queue, (first, second) = queue_of("a", "b")
    assert len(queue) == 2
    assert set(queue) == {first, second}
    queue.remove(first)
    assert first not in queue
    assert second in queue


def test_a_waiter_may_leave_while_all_are_looked_at() -> None:
    queue, waiters = queue_of("a", "a", "b")
    for waiter in queue:
        queue.remove(waiter)
    assert len(queue) == 0
    assert len(waiters) == 3


def test_the_latest_of_the_longest_line_makes_room() -> None:
    queue, (_, _, latest, _) = queue_of("heavy", "heavy", "heavy", "light")
    assert queue.to_displace("new") is latest
    assert queue.to_displace("light") is latest


def test_nobody_makes_room_for_a_line_that_would_be_as_long() -> None:
    queue, _ = queue_of("a", "a", "b")
    assert queue.to_displace("a") is None
    assert queue.to_displace("b") is None


def test_an_empty_queue_has_nobody_to_displace() -> None:
    assert FairQueue[Waiting]().to_displace("a") is None
