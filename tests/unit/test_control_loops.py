"""The planner's loop, the demand publisher and a node's session, over the memory registry on the virtual clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio
import trio.testing

from gateway.control.demand import DemandPublisher, Waiting
from gateway.control.plan import BACKOFF_FIRST_SECONDS
from gateway.control.reconciler import Reconciler
from gateway.control.sessions import NodeSession, desired_set
from gateway.domain.cluster import ClusterState, NodeStatus
from gateway.domain.ids import Address, BootId, GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.session import DesiredSet, Hello, Report
from gateway.registry.memory import MemoryRegistry
from gateway.registry.snapshot import SnapshotStore, run_snapshot_watcher
from gateway.routing.eligibility import EMPTY_VIEW, RoutingView, build_view
from tests.fakes.fleet import GATEWAY, MODEL, NODE, node, replica, spec, state

HELLO = Hello(NODE, "box", BootId("boot-1"))


@dataclass
class Control:
    """One gateway's control plane and one worker's end of its session."""

    registry: MemoryRegistry
    reconciler: Reconciler
    demand: DemandPublisher
    views: SnapshotStore[RoutingView]
    desired: trio.MemoryReceiveChannel[DesiredSet]
    reports: trio.MemorySendChannel[Report]
    waiting: dict[ModelName, Waiting] = field(default_factory=dict)

    async def ask_for(self, model: ModelName = MODEL, waiting: int = 1) -> None:
        self.waiting[model] = Waiting(waiting, 0.0)
        self.demand.changed.set()

    async def report(self, replica_id: ReplicaId, observed: Observed, **fields: object) -> None:
        await self.reports.send(replace(Report(replica_id, observed), **fields))  # type: ignore[arg-type]

    async def state(self) -> ClusterState:
        await trio.testing.wait_all_tasks_blocked()
        return await self.registry.read_state()

    async def only_replica(self) -> ReplicaId:
        [replica_id] = (await self.state()).replicas
        return replica_id


@asynccontextmanager
async def open_control(*specs: ModelSpec) -> AsyncIterator[Control]:
    registry = MemoryRegistry(trio.current_time)
    await registry.declare_models(specs or [spec()])
    views: SnapshotStore[RoutingView] = SnapshotStore(EMPTY_VIEW)
    send_desired, desired = trio.open_memory_channel[DesiredSet](1)
    reports, receive_reports = trio.open_memory_channel[Report](8)
    reconciler = Reconciler(registry, GATEWAY, interval_seconds=30)
    waiting: dict[ModelName, Waiting] = {}
    demand = DemandPublisher(registry, GATEWAY, lambda: waiting, reconciler.wake.set, 0.02)
    session = NodeSession(
        HELLO,
        GATEWAY,
        registry,
        views,
        lambda: reconciler.epoch or 0,
        lambda who: f"t-{who}",
        send_desired,
        receive_reports,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(run_snapshot_watcher, registry, views, build_view)
        nursery.start_soon(_wake_on_change, views, reconciler)
        nursery.start_soon(demand.run)
        await nursery.start(reconciler.run)
        await nursery.start(session.run)
        yield Control(registry, reconciler, demand, views, desired, reports, waiting)
        nursery.cancel_scope.cancel()


async def _wake_on_change(views: SnapshotStore[RoutingView], reconciler: Reconciler) -> None:
    view = views.current
    while True:
        view = await views.wait_change(view)
        reconciler.wake.set()


async def received(control: Control) -> DesiredSet:
    """The newest desired set, when all has come to rest."""
    await trio.testing.wait_all_tasks_blocked()
    newest = await control.desired.receive()
    while True:
        await trio.testing.wait_all_tasks_blocked()
        try:
            newest = control.desired.receive_nowait()
        except trio.WouldBlock:
            return newest


async def test_demand_becomes_a_row_and_reaches_the_worker(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for(waiting=100)
        wanted = await received(control)
        [wish] = wanted.replicas
        assert wish.replica_id == await control.only_replica()
        assert (wish.spec, wish.desired, wish.token) == (spec(), Desired.RUN, f"t-{wish.replica_id}")
        assert wanted.epoch == control.reconciler.epoch


async def test_reports_make_a_replica_routable(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.report(replica_id, Observed.LOADING)
        await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"), pid=7)
        await trio.testing.wait_all_tasks_blocked()
        [candidate] = control.views.current.candidates[MODEL]
        assert (candidate.replica_id, candidate.address, candidate.slots) == (replica_id, "127.0.0.1:9", 4)


async def test_l10_a_failed_load_is_known_to_everyone_and_tried_again_after_its_backoff(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        await control.ask_for()
        first = await control.only_replica()
        await control.report(first, Observed.FAILED, error="exited with code 3")
        failed = await control.state()
        assert failed.replicas == {}
        assert failed.failures[MODEL].cause == "exited with code 3"
        before = trio.current_time()
        await trio.sleep(BACKOFF_FIRST_SECONDS + 0.001)
        second = await control.only_replica()
        assert second != first
        assert trio.current_time() - before < 30, "waited for the next regular round instead of the end of the backoff"


async def test_a_dead_replica_leaves_the_view_at_once_and_is_replaced_on_demand(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        await control.ask_for()
        first = await control.only_replica()
        await control.report(first, Observed.READY, address=Address("127.0.0.1:9"))
        await control.report(first, Observed.GONE, error="was killed by SIGKILL")
        assert await control.only_replica() != first
        assert control.views.current.candidates == {}


async def test_l17_a_floor_is_filled_without_demand_and_refilled(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control(spec(min_replicas=1)) as control:
        first = await control.only_replica()
        await control.report(first, Observed.GONE)
        assert await control.only_replica() != first


async def test_l13_a_leader_that_was_replaced_stops_planning_and_takes_over_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        await trio.testing.wait_all_tasks_blocked()
        old = control.reconciler.epoch
        await control.registry.lead(GatewayId("other"))
        await control.ask_for()
        await control.only_replica()
        assert control.reconciler.epoch is not None
        assert old is not None
        assert control.reconciler.epoch > old + 1


async def test_the_end_of_a_session_takes_the_node_out_of_routing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"))
        await control.reports.aclose()
        assert (await control.state()).nodes[NODE].status is NodeStatus.OFFLINE
        assert control.views.current.candidates == {}


async def test_h9_reports_of_a_superseded_session_change_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.registry.join_node(HELLO, GatewayId("other"))
        await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"))
        assert (await control.state()).replicas[replica_id].observed is Observed.PLACED


async def test_demand_ends_when_nobody_waits(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control(spec(selector={"tier": "gpu"})) as control:
        await control.ask_for(waiting=3)
        assert [row.waiting for row in (await control.state()).demand] == [3]
        control.waiting.clear()
        control.demand.changed.set()
        await trio.sleep(1)
        assert (await control.state()).demand == ()


def test_the_desired_set_is_complete_and_only_the_nodes_own() -> None:
    seen = state(
        [
            replica("mine"),
            replica("ended", slot=1, observed=Observed.GONE),
            replica("elsewhere", node_id=NodeId("n2")),
            replica("orphan", spec("removed")),
        ],
        nodes=[node(), node("n2")],
    )
    wanted = desired_set(seen, NODE, 7, lambda who: f"t-{who}")
    assert (wanted.epoch, [wish.replica_id for wish in wanted.replicas]) == (7, ["mine"])


def test_a_token_does_not_show() -> None:
    wanted = desired_set(state([replica("mine")]), NODE, 7, lambda _who: "very-secret")
    assert "very-secret" not in repr(wanted)
