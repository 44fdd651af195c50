"""A health monitor over the memory registry, with the sessions and replicas that a test gives it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
import trio.testing

from gateway.control.health_monitor import HealthMonitor
from gateway.control.node_health import HealthSettings
from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import Address, BootId, NodeId, ReplicaId
from gateway.domain.lifecycle import Observed
from gateway.domain.plan_write import ControlWrite
from gateway.domain.routability import EMPTY_VIEW, FleetView, build_view
from gateway.domain.session import Hello, Registration, Report
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.protocol import RegistryError
from gateway.registry.snapshot import SnapshotStore, run_snapshot_watcher
from tests.contract.samples import lead
from tests.fakes.fleet import GATEWAY, NODE, at_once, replica, spec
from tests.fakes.planner import open_reconciler
from tests.fakes.routing_harness import FakeProbe

SETTINGS = HealthSettings(heartbeat_seconds=5, stale_after_seconds=45, misses=3)
OTHER_NODE = NodeId("n2")
BOOT = BootId("boot")


class MarkedRegistry(MemoryRegistry):
    """Remembers what is said of nodes' links, and can be down for that."""

    def __init__(self) -> None:
        self.skew_seconds = 0.0
        super().__init__(lambda: trio.current_time() + self.skew_seconds)
        self.down = False
        self.marks: list[tuple[NodeId, NodeStatus]] = []
        self.ended: list[bool] = []
        """Whether each of the marks said that nobody holds a session."""

    async def mark_node(self, node_id: NodeId, session: int, link: NodeStatus | None, *, ended: bool = False) -> bool:
        if self.down:
            raise RegistryError("the disk is full")
        assert link is not None
        self.marks.append((node_id, link))
        self.ended.append(ended)
        return await super().mark_node(node_id, session, link, ended=ended)


@dataclass
class FakeSession:
    number: int
    last_contact_at: float
    leaving: bool = False


@dataclass
class HealthHarness:
    registry: MarkedRegistry
    views: SnapshotStore[FleetView] = field(default_factory=lambda: SnapshotStore(EMPTY_VIEW))
    probe: FakeProbe = field(default_factory=FakeProbe)
    sessions: dict[NodeId, FakeSession] = field(default_factory=dict)
    judges: bool = True
    """Whether nodes without a session here are for this gateway to judge."""
    is_paused: bool = False
    """The registry is away."""
    broken: dict[ReplicaId, tuple[float, str]] = field(default_factory=dict)
    """When the monitor said so first (trio clock, seconds), and why."""

    def __post_init__(self) -> None:
        self.monitor = HealthMonitor(
            registry=self.registry,
            views=self.views,
            settings=SETTINGS,
            sessions=lambda: self.sessions,
            probe=self.probe,
            token_of=lambda who: f"t-{who}",
            report_broken=self._note_broken,
            is_responsible_for=lambda _node: self.judges,
            is_paused=lambda: self.is_paused,
        )

    def _note_broken(self, replica_id: ReplicaId, because: str) -> None:
        self.broken.setdefault(replica_id, (trio.current_time(), because))

    @property
    def marks(self) -> list[NodeStatus]:
        """What was said of `NODE`."""
        return [link for node_id, link in self.registry.marks if node_id == NODE]

    def status(self) -> NodeStatus:
        """Of `NODE`, as routing sees it."""
        return self.views.current.state.nodes[NODE].status

    async def join(self, node_id: NodeId = NODE, *, connect: bool = True) -> int:
        """Begins a session. Without `connect`, at a gateway that is not there any more."""
        await self.registry.register_node(Registration(node_id, BOOT, node_id))
        hello = Hello(node_id, node_id, BOOT, max_replicas_per_model=9)
        number = await self.registry.join_node(hello, GATEWAY)
        if connect:
            self.sessions[node_id] = FakeSession(number, trio.current_time())
            self.monitor.wake.set()
        return number

    def hear(self, node_id: NodeId = NODE) -> None:
        self.sessions[node_id].last_contact_at = trio.current_time()
        self.monitor.wake.set()

    def break_session(self, node_id: NodeId = NODE) -> None:
        del self.sessions[node_id]
        self.monitor.wake.set()

    async def run_heartbeats(self, node_id: NodeId = NODE) -> None:
        """For as long as the session is the same."""
        session = self.sessions[node_id]
        while self.sessions.get(node_id) is session:
            session.last_contact_at = trio.current_time()
            await trio.sleep(SETTINGS.heartbeat_seconds)

    async def run_planner(self) -> None:
        """Plans whenever the view changes."""
        async with open_reconciler(self.registry, interval_seconds=3600) as reconciler:
            while True:
                await self.views.wait_change(self.views.current)
                reconciler.wake.set()

    async def place(self, *replica_ids: ReplicaId, node_id: NodeId = NODE, observed: Observed = Observed.READY) -> None:
        """Replicas that the node has reported as `observed`, with an address."""
        rows = [
            replica(each, node_id=node_id, slot=slot, observed=Observed.PLACED, address=None)
            for slot, each in enumerate(replica_ids)
        ]
        await self.registry.declare_models([spec()])
        await self.registry.apply(await lead(self.registry), ControlWrite(create=tuple(rows)))
        reports = [Report(each, observed, address=Address(f"127.0.0.1:{each}")) for each in replica_ids]
        session = (await self.registry.read_state()).nodes[node_id].session
        await self.registry.record_reports(node_id, session, reports)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def open_health_harness(*, run: bool = True) -> AsyncIterator[HealthHarness]:
    """Without `run` the monitor is for the test to start."""
    harness = HealthHarness(MarkedRegistry())
    async with trio.open_nursery() as nursery:
        await nursery.start(run_snapshot_watcher, harness.registry, harness.views, at_once(build_view))
        if run:
            await nursery.start(harness.monitor.run)
        yield harness
        nursery.cancel_scope.cancel()
