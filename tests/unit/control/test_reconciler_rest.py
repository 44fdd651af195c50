"""The planner's loop leaves the event loop to the requests for as long as it took from them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from gateway.control.reconciler import REST_SECONDS_MAX, Reconciler
from gateway.domain.activity import Usage
from gateway.domain.ids import ReplicaId
from gateway.planner.planning_input import NO_USAGE
from gateway.registry.embedded.memory import MemoryRegistry
from tests.fakes.planner import open_reconciler


@dataclass
class SlowPlanning:
    """A plan takes so long by the virtual clock, since what is known of requests is told so slowly."""

    clock: trio.testing.MockClock
    seconds: float
    began: list[float] = field(default_factory=list)

    def usage(self, _now: float) -> Mapping[ReplicaId, Usage]:
        self.began.append(trio.current_time())
        self.clock.jump(self.seconds)
        return NO_USAGE


@asynccontextmanager
async def open_slow(planning: SlowPlanning) -> AsyncIterator[Reconciler]:
    """Woken whenever it plans and once in the beginning, so back to back."""

    def usage(now: float) -> Mapping[ReplicaId, Usage]:
        reconciler.wake.set()
        return planning.usage(now)

    async with open_reconciler(MemoryRegistry(trio.current_time)) as reconciler:
        reconciler.usage = usage
        reconciler.wake.set()
        yield reconciler
        reconciler.usage = lambda _now: NO_USAGE


@pytest.mark.parametrize(
    ("seconds", "rest"), [(0.001, 0.001), (0.25, 0.25), (REST_SECONDS_MAX, REST_SECONDS_MAX), (4.0, REST_SECONDS_MAX)]
)
async def test_rounds_back_to_back_rest_as_long_as_they_planned(
    autojump_clock: trio.testing.MockClock, seconds: float, rest: float
) -> None:
    planning = SlowPlanning(autojump_clock, seconds)
    async with open_slow(planning):
        await trio.sleep(3 * (seconds + rest))
    first, second, third = planning.began[:3]
    assert second - first == pytest.approx(seconds + rest)
    assert third - second == pytest.approx(seconds + rest)


async def test_a_wake_during_the_rest_is_not_lost_and_nobody_rests_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    planning = SlowPlanning(autojump_clock, 0.5)
    async with open_reconciler(MemoryRegistry(trio.current_time)) as reconciler:
        reconciler.usage = planning.usage
        reconciler.wake.set()
        await trio.sleep(0.6)
        reconciler.wake.set()
        await trio.sleep(10)
        reconciler.wake.set()
        await trio.sleep(1)
    began, after_rest, later = planning.began
    assert after_rest - began == pytest.approx(1)
    assert later - after_rest > 9
