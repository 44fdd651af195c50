"""What the planner's loop keeps of its last plan, and that room which was made is used at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

import trio
import trio.testing

from gateway.control.reconciler import Reconciler
from gateway.domain.cluster import Replica
from gateway.domain.ids import Address, BootId, GatewayId, ModelName
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.peers import PeerState, PendingReason
from gateway.domain.resources import Capacity, Requirement
from gateway.domain.session import Hello, Registration, Report
from gateway.planner.preemption import MIN_RESIDENCE_SECONDS
from gateway.registry.embedded.memory import MemoryRegistry
from tests.fakes.fleet import GATEWAY, MODEL, NODE, demand, spec
from tests.fakes.planner import open_reconciler

OTHER = ModelName("other")


class Fleet:
    """A machine with ten bytes of memory, and two models that need eight each."""

    def __init__(self) -> None:
        self.registry = MemoryRegistry(trio.current_time)
        self.reconciler: Reconciler
        self.session = 0

    async def ask_for(self, *models: str) -> None:
        waiting = tuple(demand(model, since=trio.current_time()) for model in models)
        await self.registry.sync_peers(PeerState(GATEWAY, demand=waiting), inf)
        await self.rest()

    async def rest(self) -> None:
        self.reconciler.wake.set()
        await trio.testing.wait_all_tasks_blocked()

    async def report(self, replica: Replica, observed: Observed) -> None:
        await self.registry.record_reports(NODE, self.session, [Report(replica.id, observed, address=Address("h:1"))])
        await self.rest()

    async def only(self) -> Replica:
        [replica] = (await self.registry.read_state()).replicas.values()
        return replica


@asynccontextmanager
async def open_fleet(min_replicas: int = 0) -> AsyncIterator[Fleet]:
    fleet = Fleet()
    specs = [spec(min_replicas=min_replicas, max_replicas=2), spec(OTHER)]
    await fleet.registry.declare_models(specs)
    for each in specs:
        await fleet.registry.record_requirement(each.name, each.revision, Requirement(ram_bytes=8))
    await fleet.registry.register_node(Registration("box", BootId("boot"), NODE))
    memory = Capacity(ram_bytes=10, ram_free_bytes=10)
    hello = Hello(NODE, "box", BootId("boot"), capacity=memory, max_replicas_per_model=2)
    fleet.session = await fleet.registry.join_node(hello, GATEWAY)
    async with open_reconciler(fleet.registry) as fleet.reconciler:
        yield fleet


async def another_leads(registry: MemoryRegistry) -> None:
    """As after a takeover that the former leader does not know of yet."""
    await registry.leave(GATEWAY)
    assert await registry.acquire_or_renew(GatewayId("another"), inf) is not None


async def test_p5_a_floor_that_cannot_be_met_is_kept_for_whoever_asks(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fleet(min_replicas=2) as fleet:
        await fleet.only()
        shortage = "no healthy node has room for it (box: needs 8 bytes of memory, 2 bytes free)"
        assert fleet.reconciler.outcome.unsatisfiable == {MODEL: f"1 of 2 replicas: {shortage}"}
        assert fleet.reconciler.outcome.pending == {MODEL: PendingReason(shortage, is_shortage=True)}
        version = (await fleet.registry.read_state()).version
        await trio.sleep(300)
        assert (await fleet.registry.read_state()).version == version
        await another_leads(fleet.registry)
        await fleet.registry.declare_models([])
        await fleet.rest()
        assert (fleet.reconciler.outcome.unsatisfiable, fleet.reconciler.outcome.pending) == ({}, {})


async def test_w11_an_evicted_model_has_gone_before_the_other_is_placed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fleet() as fleet:
        await fleet.ask_for(OTHER)
        victim = await fleet.only()
        await fleet.report(victim, Observed.READY)
        await fleet.registry.record_capacity(NODE, fleet.session, Capacity(ram_bytes=10, ram_free_bytes=2))
        await fleet.ask_for(MODEL)
        wait = fleet.reconciler.outcome.pending[MODEL]
        assert "in use: other" in wait.because
        assert wait.is_shortage
        await trio.sleep(MIN_RESIDENCE_SECONDS + 1)
        leaving = await fleet.only()
        assert (leaving.id, leaving.desired) == (victim.id, Desired.DRAIN)
        assert fleet.reconciler.outcome.pending == {MODEL: PendingReason("evicting other on box", is_shortage=False)}
        await fleet.report(leaving, Observed.GONE)
        assert (await fleet.only()).model == MODEL


async def test_a_load_that_nobody_waits_for_any_more_is_stopped_without_any_event(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet() as fleet:
        await fleet.ask_for(MODEL)
        loading = await fleet.only()
        await trio.sleep(100)
        assert (await fleet.only()).desired is Desired.RUN
        await fleet.ask_for()
        await trio.sleep(29)
        assert (await fleet.only()).desired is Desired.RUN
        await trio.sleep(2)
        assert ((await fleet.only()).id, (await fleet.only()).desired) == (loading.id, Desired.STOP)


async def test_w11_what_a_model_gave_back_is_there_for_the_next_although_no_reading_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet() as fleet:
        await fleet.ask_for(OTHER)
        loaded = await fleet.only()
        await fleet.report(loaded, Observed.READY)
        await fleet.registry.record_capacity(NODE, fleet.session, Capacity(ram_bytes=10, ram_free_bytes=2))
        await fleet.ask_for()
        await fleet.report(loaded, Observed.GONE)
        await trio.sleep(1)
        await fleet.ask_for(MODEL)
        assert (await fleet.only()).model == MODEL


async def test_who_does_not_lead_any_more_says_nothing_of_what_is_wanted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet(min_replicas=2) as fleet:
        assert fleet.reconciler.outcome.pending != {}
        await another_leads(fleet.registry)
        await fleet.registry.declare_models([spec(context_size=9, min_replicas=1)])
        await fleet.rest()
        assert (fleet.reconciler.outcome.unsatisfiable, fleet.reconciler.outcome.pending) == ({}, {})
