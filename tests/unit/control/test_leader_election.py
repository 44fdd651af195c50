"""Who leads, for how long, and who takes over when; on the virtual clock."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from gateway.control.leader_election import LeaderElection
from gateway.domain.ids import GatewayId
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.protocol import RegistryError

TTL_SECONDS = 15.0
ONE, TWO = GatewayId("one"), GatewayId("two")


class FarRegistry(MemoryRegistry):
    """Can be out of reach of one gateway, and can keep its calls, or its answers, waiting."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.away_for: set[GatewayId] = set()
        self.answers_at: dict[GatewayId, float] = {}
        self.answer_takes: dict[GatewayId, float] = {}
        """Seconds for which an answer is under way; what was asked for is done by then."""

    async def acquire_or_renew(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        await trio.sleep_until(self.answers_at.get(gateway_id, 0.0))
        if gateway_id in self.away_for:
            raise RegistryError("no route to the database")
        epoch = await super().acquire_or_renew(gateway_id, term_seconds)
        await trio.sleep(self.answer_takes.get(gateway_id, 0.0))
        return epoch


@dataclass
class Two:
    registry: FarRegistry
    one: LeaderElection
    two: LeaderElection
    stop_one: trio.CancelScope = field(default_factory=trio.CancelScope)
    changes: list[tuple[float, GatewayId, int | None]] = field(default_factory=list)

    def leaders(self) -> dict[GatewayId, int]:
        return {each.gateway_id: each.epoch for each in (self.one, self.two) if each.epoch is not None}


@asynccontextmanager
async def open_two() -> AsyncIterator[Two]:
    """The first one leads."""
    registry = FarRegistry()
    two = Two(registry, LeaderElection(registry, ONE, TTL_SECONDS), LeaderElection(registry, TWO, TTL_SECONDS))
    for each in (two.one, two.two):
        each.changed = _noting(two, each)

    async def run_one(*, task_status: trio.TaskStatus[None]) -> None:
        with two.stop_one:
            await two.one.run(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run_one)
        await nursery.start(two.two.run)
        yield two
        nursery.cancel_scope.cancel()


def _noting(two: Two, election: LeaderElection) -> Callable[[], None]:
    return lambda: two.changes.append((trio.current_time(), election.gateway_id, election.epoch))


async def test_l15_one_leads_for_as_long_as_it_lives(autojump_clock: MockClock) -> None:
    async with open_two() as two:
        for _ in range(100):
            await trio.sleep(1)
            assert two.leaders() == {ONE: 1}
        assert two.registry.statistics().version == 1


@pytest.mark.parametrize("seconds_before_death", [0.0, 1.0, 2.2, 5.0, 7.3])
async def test_l12_after_the_leaders_death_another_one_leads_within_the_ttl(
    autojump_clock: MockClock, seconds_before_death: float
) -> None:
    async with open_two() as two:
        await trio.sleep(seconds_before_death)
        two.stop_one.cancel()
        await trio.sleep(TTL_SECONDS - 0.5)
        assert two.leaders() == {TWO: 2}


async def test_a_leader_that_says_goodbye_is_followed_at_the_next_try(autojump_clock: MockClock) -> None:
    async with open_two() as two:
        two.stop_one.cancel()
        await two.registry.leave(ONE)
        await trio.sleep(2)
        assert two.two.epoch == 2


async def test_l13_a_leader_without_a_registry_ceases_to_lead_before_another_one_begins(
    autojump_clock: MockClock,
) -> None:
    async with open_two() as two:
        await trio.sleep(20)
        two.registry.away_for.add(ONE)
        for _ in range(1500):
            assert two.leaders() in ({ONE: 1}, {}, {TWO: 2})
            await trio.sleep(0.01)
        assert two.leaders() == {TWO: 2}
        two.registry.away_for.clear()
        await trio.sleep(100)
        assert two.leaders() == {TWO: 2}


async def test_l13_an_answer_that_was_long_under_way_counts_from_when_it_was_asked(autojump_clock: MockClock) -> None:
    async with open_two() as two:
        await trio.sleep(1)
        two.registry.answers_at[ONE] = trio.current_time() + 8.5
        two.registry.away_for.add(TWO)
        await trio.sleep(9)
        believed_until = two.one._until
        assert believed_until <= two.registry._leader.expires_at


async def test_l13_a_term_whose_answer_comes_late_is_over_when_the_registry_says_so(autojump_clock: MockClock) -> None:
    """It has begun when it was asked for, not when that was heard."""
    async with open_two() as two:
        two.registry.away_for.add(TWO)
        two.registry.answer_takes[ONE] = 5.0
        await trio.sleep(two.one.term_seconds / 4 + 5.1)  # the first renewal, and its answer
        assert two.leaders() == {ONE: 1}
        two.registry.away_for.add(ONE)
        term_ends = two.registry._leader.expires_at
        assert term_ends == pytest.approx(two.one.term_seconds * 5 / 4)
        await trio.sleep_until(term_ends - 0.01)
        assert two.leaders() == {ONE: 1}
        await trio.sleep_until(term_ends + 0.01)
        assert two.leaders() == {}


async def test_a_short_outage_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_two() as two:
        two.registry.away_for |= {ONE, TWO}
        await trio.sleep(5)
        two.registry.away_for.clear()
        await trio.sleep(20)
        assert two.leaders() == {ONE: 1}
        assert [change[1:] for change in two.changes] == [(ONE, 1)]


async def test_who_leads_again_after_a_lapse_says_so(autojump_clock: MockClock) -> None:
    """Whoever looked meanwhile found nobody leading, and waits to be told."""
    async with open_two() as two:
        two.registry.away_for.add(TWO)
        two.registry.answers_at[ONE] = two.one.term_seconds + 0.5
        await trio.sleep(two.one.term_seconds + 0.2)
        assert two.leaders() == {}
        await trio.sleep(5)
        assert two.leaders() == {ONE: 1}
        assert [change[1:] for change in two.changes] == [(ONE, 1), (ONE, 1)]


async def test_who_has_lost_asks_again_at_once(autojump_clock: MockClock) -> None:
    async with open_two() as two:
        await two.registry.leave(ONE)
        assert await two.registry.acquire_or_renew(TWO, 9) == 2
        two.one.lose()
        assert two.one.epoch is None
        await two.registry.leave(TWO)
        await trio.testing.wait_all_tasks_blocked()
        assert two.one.epoch == 3
