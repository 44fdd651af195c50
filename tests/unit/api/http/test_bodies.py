"""The budget of bytes over all request bodies: what fits, whose it is, and that all of it is given back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.http.bodies import SMALL_BYTES, BodyBudget, BodyCharge, BodyStatistics
from gateway.domain.errors import NoRoomForBody

MIB = 1024 * 1024
BUDGET_BYTES = 64 * MIB
BODY_BYTES_MAX = 16 * MIB


@pytest.fixture
def budget() -> BodyBudget:
    return BodyBudget(BUDGET_BYTES, BODY_BYTES_MAX)


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def arrive(held: ExitStack, budget: BodyBudget, caller: str, size_bytes: int) -> BodyCharge:
    """A body of that size that has arrived whole."""
    charge = held.enter_context(budget.open(caller, size_bytes))
    charge.record_arrived(size_bytes)
    return charge


def fill(budget: BodyBudget, add: Callable[[int], object]) -> None:
    """Adds until it is refused; what was refused has taken nothing."""
    for number in range(10_000):
        before = budget.statistics()
        try:
            add(number)
        except NoRoomForBody:
            break
    else:
        pytest.fail("nothing was refused")
    assert budget.statistics() == before


def test_what_has_arrived_is_counted_and_given_back(budget: BodyBudget) -> None:
    with budget.open("ann", 10 * MIB) as charge:
        charge.record_arrived(3 * MIB)
        assert budget.statistics() == BodyStatistics(bodies=1, held_bytes=3 * MIB)
        charge.record_kept(MIB)
        assert budget.statistics() == BodyStatistics(bodies=1, held_bytes=MIB)
    assert budget.statistics() == BodyStatistics(bodies=0, held_bytes=0)


def test_what_does_not_fit_is_refused_before_it_is_read(budget: BodyBudget, held: ExitStack) -> None:
    for caller in "abc":
        arrive(held, budget, caller, BODY_BYTES_MAX)
    with pytest.raises(NoRoomForBody) as refused:
        budget.open("d", BODY_BYTES_MAX)
    assert refused.value.status == 503
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after_seconds
    assert budget.statistics().bodies == 3


def test_one_that_does_not_say_its_size_is_refused_as_soon_as_it_does_not_fit(
    budget: BodyBudget, held: ExitStack
) -> None:
    for caller in "abc":
        arrive(held, budget, caller, BODY_BYTES_MAX)
    charge = held.enter_context(budget.open("d", None))
    charge.record_arrived(8 * MIB)
    with pytest.raises(NoRoomForBody):
        charge.record_arrived(8 * MIB + 1)
    assert budget.statistics().held_bytes == 56 * MIB


def test_announcements_of_one_caller_take_nothing_from_others(budget: BodyBudget, held: ExitStack) -> None:
    """The slow senders: they announce all they may, and send nothing."""
    fill(budget, lambda _: held.enter_context(budget.open("slow", BODY_BYTES_MAX)))
    assert budget.statistics().held_bytes == 0
    arrive(held, budget, "other", BODY_BYTES_MAX)
    arrive(held, budget, "third", BODY_BYTES_MAX)


def test_one_caller_never_has_the_whole_budget(budget: BodyBudget, held: ExitStack) -> None:
    fill(budget, lambda _: arrive(held, budget, "greedy", BODY_BYTES_MAX))
    assert budget.statistics().held_bytes <= BUDGET_BYTES // 2
    arrive(held, budget, "other", BODY_BYTES_MAX)


def test_large_bodies_leave_room_for_small_ones(budget: BodyBudget, held: ExitStack) -> None:
    fill(budget, lambda number: arrive(held, budget, f"caller-{number}", MIB))
    for number in range(50):
        arrive(held, budget, "small", SMALL_BYTES)
        arrive(held, budget, f"caller-{number}", SMALL_BYTES // 2)


def test_small_bodies_are_bounded_as_well(budget: BodyBudget, held: ExitStack) -> None:
    fill(budget, lambda number: arrive(held, budget, f"caller-{number}", SMALL_BYTES))
    assert budget.statistics().held_bytes == BUDGET_BYTES


def test_what_was_made_of_a_body_counts_as_it_is(budget: BodyBudget, held: ExitStack) -> None:
    charges = [arrive(held, budget, str(number), SMALL_BYTES) for number in range(20)]
    fill(budget, lambda number: charges[number].record_kept(4 * MIB))
    assert budget.statistics().held_bytes <= BUDGET_BYTES


def test_the_largest_body_fits_into_a_budget_that_is_no_larger() -> None:
    budget = BodyBudget(BODY_BYTES_MAX, BODY_BYTES_MAX)
    with budget.open("ann", BODY_BYTES_MAX) as charge:
        charge.record_arrived(BODY_BYTES_MAX)
        assert budget.statistics().held_bytes == BODY_BYTES_MAX


Step = tuple[int, int, int]
"""Which body, what happens to it, and the size that goes with it."""


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, BODY_BYTES_MAX)), max_size=60))
def test_whatever_happens_the_budget_holds_and_all_is_given_back(steps: list[Step]) -> None:
    budget, charges = BodyBudget(BUDGET_BYTES, BODY_BYTES_MAX), dict[int, BodyCharge]()
    for body, what, size in steps:
        try:
            take_step(budget, charges, body, what, size)
        except NoRoomForBody:
            pass
        statistics = budget.statistics()
        assert statistics.bodies == len(charges)
        assert statistics.held_bytes == sum(charge.held_bytes for charge in charges.values()) <= BUDGET_BYTES
    for charge in charges.values():
        budget.close(charge)
    assert budget.statistics() == BodyStatistics(0, 0)
    for caller in ("caller-0", "caller-1"):  # nothing of anybody's share is left behind
        budget.open(caller, BODY_BYTES_MAX).record_arrived(BODY_BYTES_MAX)


def take_step(budget: BodyBudget, charges: dict[int, BodyCharge], body: int, what: int, size: int) -> None:
    charge = charges.get(body)
    if charge is None:
        charges[body] = budget.open(f"caller-{body % 2}", size if what else None)
    elif what == 0:
        budget.close(charges.pop(body))
    elif what == 1:
        charge.record_arrived(max(size, charge.held_bytes))
    else:
        charge.record_kept(size)
