"""Loads that were asked for without a request: they are demand until they have come to something."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.control.load_requests import REQUEST_SECONDS, LoadRequests, Waiting
from gateway.domain.cluster import LoadFailure
from gateway.domain.lifecycle import Observed
from gateway.domain.routability import EMPTY_VIEW, FleetView
from gateway.registry.snapshot import SnapshotStore
from tests.fakes.fleet import MODEL, replica, view

LOADED = view(replica("r"))
LOADING = view(replica("r", observed=Observed.LOADING))
NOT_LOADED = view()
FAILED = view(failures={MODEL: LoadFailure("exit 3", 1, 10.0)})
FAILED_AGAIN = view(failures={MODEL: LoadFailure("exit 3", 2, 30.0)})


@dataclass
class Harness:
    views: SnapshotStore[FleetView]
    load_requests: LoadRequests
    changes: list[bool] = field(default_factory=list)
    """Whether the wish was open, at each change."""

    async def see(self, seen: FleetView) -> None:
        self.views.publish(seen)
        self.load_requests.wake.set()
        await wait_all_tasks_blocked()

    @property
    def is_open(self) -> bool:
        return self.load_requests.is_open(MODEL)


@asynccontextmanager
async def open_harness(seen: FleetView = NOT_LOADED) -> AsyncIterator[Harness]:
    views: SnapshotStore[FleetView] = SnapshotStore(seen)
    harness = Harness(views, LoadRequests(views, lambda: harness.changes.append(harness.is_open)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.load_requests.run)
        yield harness
        nursery.cancel_scope.cancel()


async def test_a_load_request_is_demand_until_a_replica_serves(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        harness.load_requests.request(MODEL)
        await trio.sleep(3)
        assert harness.load_requests.waiting() == {MODEL: Waiting(1, 3.0)}
        await harness.see(LOADING)
        assert harness.is_open
        await harness.see(LOADED)
        assert harness.load_requests.waiting() == {}
        assert harness.changes == [True, False]


async def test_a_model_that_serves_already_has_no_load_request() -> None:
    async with open_harness(LOADED) as harness:
        harness.load_requests.request(MODEL)
        assert (harness.load_requests.waiting(), harness.changes) == ({}, [])


async def test_l10_a_failure_ends_a_load_request() -> None:
    async with open_harness() as harness:
        harness.load_requests.request(MODEL)
        await harness.see(LOADING)
        await harness.see(FAILED)
        assert not harness.is_open


async def test_l9_an_earlier_failure_is_no_answer() -> None:
    async with open_harness(FAILED) as harness:
        harness.load_requests.request(MODEL)
        await harness.see(view(failures=FAILED.state.failures))
        assert harness.is_open
        await harness.see(FAILED_AGAIN)
        assert not harness.is_open


async def test_w12_an_unload_ends_a_load_request_at_whatever_gateway_it_was_asked_for() -> None:
    async with open_harness(view(unloads={MODEL: 5.0})) as harness:
        harness.load_requests.request(MODEL)
        await harness.see(view(unloads={MODEL: 5.0}))
        assert harness.is_open  # that one was before it
        await harness.see(view(replica("r", observed=Observed.LOADING), unloads={MODEL: 6.0}))
        assert not harness.is_open


async def test_w12_a_load_request_after_an_unload_is_another_one() -> None:
    """Also if the unload and the second wish come before anybody has looked."""
    async with open_harness() as harness:
        harness.load_requests.request(MODEL)
        harness.views.publish(view(unloads={MODEL: 6.0}))
        harness.load_requests.request(MODEL)
        await harness.see(view(unloads={MODEL: 6.0}))
        assert harness.is_open
        assert harness.changes == [True, False, True]


async def test_a_removed_model_has_no_load_request() -> None:
    async with open_harness() as harness:
        harness.load_requests.request(MODEL)
        await harness.see(EMPTY_VIEW)
        assert not harness.is_open


async def test_a_load_request_that_nothing_comes_of_ends(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        harness.load_requests.request(MODEL)
        await trio.sleep(REQUEST_SECONDS - 1)
        harness.load_requests.request(MODEL)
        await trio.sleep(REQUEST_SECONDS - 1)
        assert harness.is_open
        await trio.sleep(2)
        assert not harness.is_open


async def test_l6_a_load_may_take_as_long_as_it_takes(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        harness.load_requests.request(MODEL)
        await harness.see(LOADING)
        await trio.sleep(10 * REQUEST_SECONDS)
        assert harness.is_open
        await harness.see(NOT_LOADED)
        await trio.sleep(REQUEST_SECONDS + 1)
        assert not harness.is_open


async def test_a_dropped_load_request_ends_the_waits_for_it(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        harness.load_requests.request(MODEL)
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(harness.load_requests.wait_over, MODEL)
                await wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 1
                harness.load_requests.cancel(MODEL)
                harness.load_requests.cancel(MODEL)
        assert harness.changes == [True, False]
