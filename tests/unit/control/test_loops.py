"""The planner's loop, the exchange of bulletins and a node's session, over the memory registry on the virtual clock."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Target
from gateway.control.failure_reporter import FailureReporter
from gateway.control.load_requests import Waiting
from gateway.control.peers.peer_table import PeerTable
from gateway.control.peers.sync import PeerSync
from gateway.control.reconciler import Reconciler
from gateway.control.sessions import node_session
from gateway.control.sessions.load_progress import LoadProgress
from gateway.control.sessions.log_streams import CHUNKS_MAX
from gateway.control.sessions.node_session import SUPERSEDED, SessionSettings, desired_set
from gateway.control.sessions.sessions import Sessions
from gateway.domain.cluster import ClusterState, Demand, NodeStatus, ProbeOutcome, Progress
from gateway.domain.ids import Address, BootId, GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import Capabilities, ModelSpec
from gateway.domain.peers import PeerState
from gateway.domain.resources import Capacity, Requirement
from gateway.domain.routability import EMPTY_VIEW, FleetView, build_view
from gateway.domain.session import (
    DesiredSet,
    EndTail,
    FromWorker,
    Heartbeat,
    Hello,
    Leaving,
    LogChunk,
    Registration,
    Report,
    SessionRefused,
    TailLogs,
    ToWorker,
)
from gateway.planner.builder import BACKOFF_FIRST_SECONDS
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.protocol import NotRegistered, RegistryError
from gateway.registry.snapshot import SnapshotStore, run_snapshot_watcher
from tests.fakes.fleet import GATEWAY, MODEL, NODE, at_once, node, replica, spec, state
from tests.fakes.planner import open_reconciler

HELLO = Hello(NODE, "box", BootId("boot-1"))
REGISTRATION = Registration("box", BootId("boot-1"), NODE)
HEARTBEAT_SECONDS = 5.0


@dataclass
class Control:
    """One gateway's control plane and one worker's end of its session."""

    registry: MemoryRegistry
    reconciler: Reconciler
    sync_peers: PeerSync
    views: SnapshotStore[FleetView]
    from_gateway: trio.MemoryReceiveChannel[ToWorker]
    to_gateway: trio.MemorySendChannel[FromWorker]
    session: trio.CancelScope
    sessions: Sessions
    outcomes: dict[ReplicaId, ProbeOutcome]
    """What a probe of a replica comes to; alive if it is not here."""
    probed: list[Target]
    ended: trio.Event
    over: list[str]
    """Why the session was over, if it was."""
    progress: LoadProgress
    waiting: dict[ModelName, Waiting] = field(default_factory=dict)

    async def ask_for(self, model: ModelName = MODEL, waiting: int = 1) -> None:
        self.waiting[model] = Waiting(waiting, 0.0)
        self.sync_peers.peers.report_demand()
        await trio.sleep(self.sync_peers.interval_seconds)

    async def report(self, replica_id: ReplicaId, observed: Observed, **fields: object) -> None:
        await self.to_gateway.send(replace(Report(replica_id, observed), **fields))  # type: ignore[arg-type]

    def received_nowait(self) -> list[ToWorker]:
        messages: list[ToWorker] = []
        try:
            while True:
                messages.append(self.from_gateway.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return messages

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
    await registry.register_node(REGISTRATION)
    views: SnapshotStore[FleetView] = SnapshotStore(EMPTY_VIEW)
    to_worker, from_gateway = trio.open_memory_channel[ToWorker](100)
    to_gateway, from_worker = trio.open_memory_channel[FromWorker](8)
    waiting: dict[ModelName, Waiting] = {}
    reporter = FailureReporter(registry)
    outcomes: dict[ReplicaId, ProbeOutcome] = {}
    probed: list[Target] = []
    progress = LoadProgress()

    async def probe(target: Target) -> ProbeOutcome:
        await trio.lowlevel.checkpoint()
        probed.append(target)
        return outcomes.get(target.replica_id, ProbeOutcome.ALIVE)

    sessions = Sessions(
        SessionSettings(
            gateway_id=GATEWAY,
            registry=registry,
            views=views,
            token_of=lambda who: f"t-{who}",
            probe=probe,
            report_broken=reporter.report_broken,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            node_changed=lambda: None,
            load_progress=progress,
        )
    )
    scope, ended, over = trio.CancelScope(), trio.Event(), list[str]()

    async def run_session(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            try:
                await sessions.run_session(HELLO, to_worker, from_worker, task_status=task_status)
            except SessionRefused as error:
                over.append(str(error))
        ended.set()

    async with open_reconciler(registry) as reconciler, trio.open_nursery() as nursery:
        await nursery.start(run_snapshot_watcher, registry, views, at_once(build_view))
        nursery.start_soon(_wake_on_change, views, reconciler)
        nursery.start_soon(reporter.run)
        exchange = open_exchange(registry, waiting, reconciler)
        await nursery.start(exchange.run)
        await nursery.start(run_session)
        yield Control(
            registry,
            reconciler,
            exchange,
            views,
            from_gateway,
            to_gateway,
            scope,
            sessions,
            outcomes,
            probed,
            ended,
            over,
            progress,
            waiting,
        )
        nursery.cancel_scope.cancel()


def open_exchange(registry: MemoryRegistry, waiting: Mapping[ModelName, Waiting], reconciler: Reconciler) -> PeerSync:
    """Says what waits, and has the planner look."""

    def with_demand(last: PeerState, _has_peers: bool) -> PeerState:
        rows = tuple(Demand(GATEWAY, model, each.waiting, 0.0) for model, each in waiting.items())
        if rows != last.demand:
            reconciler.wake.set()
        return replace(last, demand=rows)

    return PeerSync(
        registry,
        PeerTable(GATEWAY),
        interval_seconds=0.02,
        ttl_seconds=15,
        fast=with_demand,
        slow=lambda last: last,
        on_received=lambda _peers, _own: None,
        on_cut_off=lambda: None,
    )


async def _wake_on_change(views: SnapshotStore[FleetView], reconciler: Reconciler) -> None:
    view = views.current
    while True:
        view = await views.wait_change(view)
        reconciler.wake.set()


async def received(control: Control) -> DesiredSet:
    """The newest desired set, when all has come to rest."""
    await trio.testing.wait_all_tasks_blocked()
    sets = [message for message in control.received_nowait() if isinstance(message, DesiredSet)]
    return sets[-1]


async def test_demand_becomes_a_row_and_reaches_the_worker(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for(waiting=100)
        wanted = await received(control)
        [desired_replica] = wanted.replicas
        assert desired_replica.replica_id == await control.only_replica()
        assert (desired_replica.spec, desired_replica.desired, desired_replica.token) == (
            spec(),
            Desired.RUN,
            f"t-{desired_replica.replica_id}",
        )
        assert wanted.epoch == control.reconciler.election.epoch


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
        election = control.reconciler.election
        epochs = [election.epoch]
        await control.registry.leave(GATEWAY)  # as if it had been stopped for longer than its term
        assert await control.registry.acquire_or_renew(GatewayId("other"), 10) == 2
        await control.ask_for()
        assert (await control.state()).replicas == {}
        epochs.append(election.epoch)
        await trio.sleep(15)
        await control.only_replica()
        assert [*epochs, election.epoch] == [1, None, 3]


async def test_h12_a_session_that_breaks_changes_nothing_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"))
        before = await control.state()
        await control.to_gateway.aclose()
        after = await control.state()
        assert (after.nodes[NODE].status, after.replicas) == (NodeStatus.HEALTHY, before.replicas)
        assert [candidate.replica_id for candidate in control.views.current.candidates[MODEL]] == [replica_id]
        assert control.sessions.open == {}


async def test_h9_a_worker_that_leaves_is_offline_once_it_has_gone(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"))
        await control.state()
        await control.to_gateway.send(Leaving())
        await control.report(replica_id, Observed.GONE)
        await control.to_gateway.aclose()
        await control.ended.wait()
        after = await control.state()
        assert after.nodes[NODE].status is NodeStatus.OFFLINE
        assert replica_id not in after.replicas


async def test_h9_a_superseded_session_ends_and_its_reports_change_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.registry.join_node(HELLO, GatewayId("other"))
        await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"))
        assert (await control.state()).replicas[replica_id].observed is Observed.PLACED
        await control.ended.wait()


async def test_h9_the_end_of_an_older_session_leaves_the_newer_one_of_its_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control, trio.open_nursery() as nursery:
        await control.ask_for()
        replica_id = await control.only_replica()
        to_worker, from_gateway = trio.open_memory_channel[ToWorker](100)
        to_gateway, from_worker = trio.open_memory_channel[FromWorker](8)
        older = control.sessions.open[NODE]
        await nursery.start(control.sessions.run_session, HELLO, to_worker, from_worker)
        await control.ended.wait()
        assert control.over == [SUPERSEDED]
        newer = control.sessions.open[NODE]
        assert newer.number > older.number
        await to_gateway.send(Report(replica_id, Observed.READY, address=Address("127.0.0.1:9")))
        after = await control.state()
        assert (after.nodes[NODE].status, after.replicas[replica_id].observed) == (NodeStatus.HEALTHY, Observed.READY)
        async with control.sessions.open_tail(NODE, replica_id, 5, follow=True) as chunks:
            assert chunks is not None
        await to_gateway.aclose()
        await control.state()
        assert control.sessions.open == {}
        from_gateway.close()


async def test_a_session_says_nothing_before_its_view_shows_that_it_has_begun(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An older view may lack replicas that the worker runs: the worker would stop them under their requests."""
    registry = MemoryRegistry(trio.current_time)
    await registry.register_node(REGISTRATION)
    await registry.join_node(HELLO, GatewayId("before"))
    views: SnapshotStore[FleetView] = SnapshotStore(build_view(await registry.read_state()))
    to_worker, from_gateway = trio.open_memory_channel[ToWorker](100)
    _, from_worker = trio.open_memory_channel[FromWorker](8)
    settings = SessionSettings(
        gateway_id=GATEWAY,
        registry=registry,
        views=views,
        token_of=str,
        probe=_alive,
        report_broken=lambda _who, _why: None,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        node_changed=lambda: None,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(Sessions(settings).run_session, HELLO, to_worker, from_worker)
        await trio.sleep(60)
        assert not any(isinstance(each, DesiredSet) for each in _drained(from_gateway))
        views.publish(build_view(await registry.read_state()))
        await trio.testing.wait_all_tasks_blocked()
        assert any(isinstance(each, DesiredSet) for each in _drained(from_gateway))
        nursery.cancel_scope.cancel()


async def _alive(_target: Target) -> ProbeOutcome:
    return ProbeOutcome.ALIVE


def _drained(channel: trio.MemoryReceiveChannel[ToWorker]) -> list[ToWorker]:
    messages: list[ToWorker] = []
    with suppress(trio.WouldBlock):
        while True:
            messages.append(channel.receive_nowait())
    return messages


async def test_h9_a_session_ends_when_its_node_has_a_newer_one_at_another_gateway(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        await trio.testing.wait_all_tasks_blocked()
        await control.registry.join_node(HELLO, GatewayId("other"))
        await trio.testing.wait_all_tasks_blocked()
        assert control.over == ["a newer session of this node has begun"]
        node = (await control.state()).nodes[NODE]
        assert (node.gateway_id, node.condition) == ("other", NodeStatus.HEALTHY)


async def test_a_gateway_that_lost_its_registry_sends_its_workers_away(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await trio.testing.wait_all_tasks_blocked()
        control.sessions.end_all("this gateway has lost its registry")
        with trio.fail_after(60):
            await control.ended.wait()
        assert (control.over, control.sessions.open) == (["this gateway has lost its registry"], {})
        assert (await control.state()).nodes[NODE].gateway_id is None


async def test_h8_the_gateway_says_regularly_that_it_lives(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await trio.sleep(3.5 * HEARTBEAT_SECONDS)
        assert sum(isinstance(message, Heartbeat) for message in control.received_nowait()) == 4


async def test_a_report_of_any_kind_proves_life(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await trio.sleep(20)
        await control.to_gateway.send(Heartbeat())
        await trio.testing.wait_all_tasks_blocked()
        assert control.sessions.open[NODE].last_contact_at == trio.current_time()


async def test_what_the_node_has_is_written_down(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.to_gateway.send(Capacity(ram_bytes=7))
        assert (await control.state()).nodes[NODE].capacity == Capacity(ram_bytes=7)


async def test_ready_counts_once_the_replica_answers_at_its_advertised_address(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        control.outcomes[replica_id] = ProbeOutcome.UNREACHABLE
        await control.report(replica_id, Observed.READY, address=Address("10.0.0.9:9"))
        await trio.sleep(5)
        assert (await control.state()).replicas[replica_id].observed is Observed.PLACED
        control.outcomes[replica_id] = ProbeOutcome.ALIVE
        await trio.sleep(1)
        assert (await control.state()).replicas[replica_id].observed is Observed.READY
        assert {(target.address, target.token) for target in control.probed} == {("10.0.0.9:9", f"t-{replica_id}")}


async def test_a_replica_that_cannot_be_reached_is_stopped_and_the_reason_is_shown(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        control.outcomes[replica_id] = ProbeOutcome.UNREACHABLE
        await control.report(replica_id, Observed.READY, address=Address("10.0.0.9:9"))
        await trio.sleep(60)
        after = await control.state()
        assert after.replicas[replica_id].desired is Desired.STOP
        assert "worker.advertise" in after.failures[MODEL].cause


async def get_ready(control: Control, address: str = "10.0.0.9:9") -> ReplicaId:
    await control.ask_for()
    replica_id = await control.only_replica()
    await control.report(replica_id, Observed.READY, address=Address(address))
    assert (await control.state()).replicas[replica_id].observed is Observed.READY
    return replica_id


async def test_a_replica_that_moves_is_asked_at_its_new_address_before_it_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        replica_id = await get_ready(control)
        control.outcomes[replica_id] = ProbeOutcome.GONE
        await control.report(replica_id, Observed.READY, address=Address("10.0.0.9:10"))
        await trio.sleep(1)
        assert (await control.state()).replicas[replica_id].address == "10.0.0.9:9"
        assert control.probed[-1].address == "10.0.0.9:10"
        control.outcomes[replica_id] = ProbeOutcome.ALIVE
        await trio.sleep(1)
        assert (await control.state()).replicas[replica_id].address == "10.0.0.9:10"


async def test_a_replica_that_moves_to_where_nobody_answers_is_stopped(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        replica_id = await get_ready(control)
        control.outcomes[replica_id] = ProbeOutcome.GONE
        await control.report(replica_id, Observed.READY, address=Address("10.0.0.9:10"))
        await trio.sleep(60)
        row = (await control.state()).replicas[replica_id]
        assert (row.desired, row.address) == (Desired.STOP, "10.0.0.9:9")


async def test_an_address_that_was_said_before_is_asked_too(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever says it with `loading` and leaves it out with `ready` is not believed for that."""
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        control.outcomes[replica_id] = ProbeOutcome.GONE
        await control.report(replica_id, Observed.LOADING, address=Address("10.0.0.9:9"))
        await control.state()
        await control.report(replica_id, Observed.READY)
        await trio.sleep(1)
        assert (await control.state()).replicas[replica_id].observed is Observed.LOADING
        assert {target.address for target in control.probed} == {"10.0.0.9:9"}


async def test_a_replica_that_is_ready_nowhere_has_failed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.report(replica_id, Observed.READY)
        await control.state()
        assert "ready at no address" in (await control.state()).failures[MODEL].cause


async def test_a_replica_that_no_view_shows_yet_is_asked_once_one_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        known = control.views.current
        control.views.publish(replace(known, state=replace(known.state, replicas={})))
        control.outcomes[replica_id] = ProbeOutcome.GONE
        await control.report(replica_id, Observed.READY, address=Address("10.0.0.9:9"))
        await trio.sleep(1)
        assert (await control.state()).replicas[replica_id].observed is Observed.PLACED
        control.views.publish(known)
        control.outcomes[replica_id] = ProbeOutcome.ALIVE
        await trio.sleep(1)
        assert (await control.state()).replicas[replica_id].observed is Observed.READY
        assert control.probed


async def test_what_was_up_and_is_said_to_have_failed_is_ended(autojump_clock: trio.testing.MockClock) -> None:
    """A report with a value that can't be comes to this, in whatever state its replica is."""
    async with open_control() as control:
        replica_id = await get_ready(control)
        await control.report(replica_id, Observed.FAILED, error="its worker reports what can't be: 0 requests")
        await control.state()
        row = (await control.state()).replicas[replica_id]
        assert (row.observed, row.desired) == (Observed.READY, Desired.STOP)
        assert row.broken is not None
        assert "what can't be" in row.broken


async def test_a_worker_says_nothing_of_other_nodes_replicas(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        replica_id = await get_ready(control)
        known = control.views.current
        theirs = replace(known.state.replicas[replica_id], node_id=NodeId("n2"))
        control.views.publish(replace(known, state=replace(known.state, replicas={replica_id: theirs})))
        control.outcomes[replica_id] = ProbeOutcome.GONE
        asked = len(control.probed)
        await control.report(replica_id, Observed.FAILED)
        await control.report(replica_id, Observed.READY, address=Address("10.0.0.9:10"))
        await trio.sleep(20)
        assert len(control.probed) == asked
        assert (await control.state()).replicas[replica_id].broken is None


async def test_a_worker_that_says_much_is_written_down_little(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        replica_id = await get_ready(control)
        before = control.registry.statistics().version
        for number in range(2000):
            await control.to_gateway.send(Capacity(ram_bytes=number))
            await control.report(replica_id, Observed.READY, address=Address("10.0.0.9:9"), pid=number)
            await trio.sleep(0.01)
        await trio.sleep(5)
        after = await control.registry.read_state()
        assert (after.nodes[NODE].capacity.ram_bytes, after.replicas[replica_id].pid) == (1999, 1999)
        assert after.version - before < 300


async def test_a_worker_that_reports_without_end_is_sent_away(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_session, "UNWRITTEN_MAX", 100)
    async with open_control() as control:
        for number in range(101):
            await control.report(ReplicaId(f"r{number}"), Observed.READY, address=Address("10.0.0.9:9"))
        with trio.fail_after(60):
            await control.ended.wait()
        assert control.over == ["its worker calls more than 100 replicas ready at a time"]


async def test_a_replica_that_ends_while_it_is_asked_stays_ended(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        control.outcomes[replica_id] = ProbeOutcome.BUSY
        await control.report(replica_id, Observed.READY, address=Address("10.0.0.9:9"))
        await trio.sleep(1)
        await control.report(replica_id, Observed.GONE)
        control.outcomes[replica_id] = ProbeOutcome.ALIVE
        await trio.sleep(1)
        assert replica_id not in (await control.state()).replicas


async def test_h10_what_a_broken_session_lost_comes_with_the_next_hello(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.to_gateway.aclose()
        await control.ended.wait()
        to_worker, _from_gateway = trio.open_memory_channel[ToWorker](100)
        _to_gateway, from_worker = trio.open_memory_channel[FromWorker](1)
        again = replace(HELLO, replicas=(Report(replica_id, Observed.READY, address=Address("127.0.0.1:9")),))
        async with trio.open_nursery() as nursery:
            await nursery.start(control.sessions.run_session, again, to_worker, from_worker)
            assert (await control.state()).replicas[replica_id].observed is Observed.READY
            nursery.cancel_scope.cancel()


async def test_a_removed_node_has_to_register_again(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await trio.testing.wait_all_tasks_blocked()
        await control.registry.remove_node(NODE)
        await control.ended.wait()
        with pytest.raises(NotRegistered):
            await control.registry.join_node(HELLO, GATEWAY)


async def test_output_is_tailed_and_a_slow_reader_loses_whole_chunks(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await trio.testing.wait_all_tasks_blocked()
        control.received_nowait()
        async with control.sessions.open_tail(NODE, ReplicaId("r"), 5, follow=True) as chunks:
            assert chunks is not None
            [asked] = control.received_nowait()
            assert isinstance(asked, TailLogs)
            assert (asked.replica_id, asked.lines, asked.follow) == ("r", 5, True)
            for number in range(CHUNKS_MAX + 3):
                await control.to_gateway.send(LogChunk(asked.tail, (str(number),)))
            await trio.testing.wait_all_tasks_blocked()
            seen = [await chunks.receive() for _ in range(CHUNKS_MAX)]
            assert [chunk.lines for chunk in seen] == [(str(number),) for number in range(CHUNKS_MAX)]
            await control.to_gateway.send(LogChunk(asked.tail, ("last",), ended=True))
            assert await chunks.receive() == LogChunk(asked.tail, ("last",), skipped=3, ended=True)
            with pytest.raises(trio.EndOfChannel):
                await chunks.receive()


async def test_a_reader_that_leaves_ends_the_tail_at_the_worker(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await trio.testing.wait_all_tasks_blocked()
        async with control.sessions.open_tail(NODE, ReplicaId("r"), 5, follow=True):
            pass
        asked, ended = [message for message in control.received_nowait() if isinstance(message, TailLogs | EndTail)]
        assert (ended, type(asked)) == (EndTail(asked.tail), TailLogs)


async def test_a_tail_ends_with_its_session(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await trio.testing.wait_all_tasks_blocked()
        async with control.sessions.open_tail(NODE, ReplicaId("r"), 5, follow=True) as chunks:
            assert chunks is not None
            control.session.cancel()
            with pytest.raises(trio.EndOfChannel):
                await chunks.receive()
        async with control.sessions.open_tail(NODE, ReplicaId("r"), 5, follow=True) as none:
            assert none is None


async def test_demand_ends_when_nobody_waits(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control(spec(selector={"tier": "gpu"})) as control:
        await control.ask_for(waiting=3)
        assert [row.waiting for row in (await control.state()).demand] == [3]
        control.waiting.clear()
        control.sync_peers.peers.report_demand()
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
    wanted = desired_set(replace(seen, epoch=7), NODE, lambda who: f"t-{who}")
    assert (wanted.epoch, [desired_replica.replica_id for desired_replica in wanted.replicas]) == (7, ["mine"])


def test_a_replica_of_a_removed_model_stays_listed_by_the_spec_that_was_sent() -> None:
    """A worker stops what is not listed, which would cut the requests that a drain lets end."""
    before = desired_set(state([replica("mine")]), NODE, str)
    removed = state([replica("mine", desired=Desired.DRAIN), replica("unsent", slot=1)], specs=())
    after = desired_set(removed, NODE, str, before)
    assert [(each.replica_id, each.spec, each.desired) for each in after.replicas] == [
        ("mine", before.replicas[0].spec, Desired.DRAIN)
    ]
    assert desired_set(removed, NODE, str, after) == after


def test_a_token_does_not_show() -> None:
    wanted = desired_set(state([replica("mine")]), NODE, lambda _who: "very-secret")
    assert "very-secret" not in repr(wanted)


# Loads


async def test_l11_progress_is_shown_and_not_stored(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.report(replica_id, Observed.FETCHING, done_bytes=0, total_bytes=100)
        await control.state()
        statements = control.registry.statistics().statements
        await trio.sleep(1)
        await control.report(replica_id, Observed.FETCHING, done_bytes=25, total_bytes=100)
        await trio.testing.wait_all_tasks_blocked()
        assert control.progress.progress_of(replica_id, trio.current_time()) == Progress(25, 100, 25.0)
        assert control.registry.statistics().statements == statements
        await control.report(replica_id, Observed.LOADING)
        assert (await control.state()).replicas[replica_id].observed is Observed.LOADING


MEASURED = Requirement(ram_bytes=7 + 256 * 2**20, measured=True)
"""Of 7 bytes, with the prompt cache that is empty yet."""


async def test_p1_what_a_ready_replica_takes_is_written_down(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.report(replica_id, Observed.LOADING, ram_bytes=1)
        assert (await control.state()).requirements == {}
        await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"), ram_bytes=7)
        assert (await control.state()).requirements == {MODEL: MEASURED}


async def test_what_a_backend_says_of_its_model_is_written_down(autojump_clock: trio.testing.MockClock) -> None:
    can = Capabilities(generates=False, embeds=True)
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()
        await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"), capabilities=can)
        assert (await control.state()).capabilities == {MODEL: can}


async def test_p1_what_a_replica_takes_is_kept_while_the_registry_fails(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_control() as control:
        await control.ask_for()
        replica_id = await control.only_replica()

        async def fail(*_arguments: object) -> bool:
            raise RegistryError("busy")

        with monkeypatch.context() as patch:
            patch.setattr(control.registry, "record_requirement", fail)
            await control.report(replica_id, Observed.READY, address=Address("127.0.0.1:9"), ram_bytes=7)
            state = await control.state()
            assert (state.replicas[replica_id].observed, state.requirements) == (Observed.READY, {})
        await trio.sleep(1)
        assert (await control.state()).requirements == {MODEL: MEASURED}
