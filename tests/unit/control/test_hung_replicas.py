"""From a replica that is busy without any request to another one in its place (H1)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.control.failure_reporter import FailureReporter
from gateway.control.reconciler import Reconciler
from gateway.domain.cluster import ClusterState
from gateway.domain.ids import BootId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.session import Hello, Registration, Report
from gateway.planner.plan import Plan
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.protocol import RETRY_SECONDS, RegistryError
from tests.fakes.fleet import GATEWAY, NODE, node, replica, spec, state
from tests.fakes.planner import open_reconciler
from tests.fakes.planning import plan_for

A, B = ReplicaId("a"), ReplicaId("b")
TWO = spec(min_replicas=2, max_replicas=2)


def decide(seen: ClusterState, *hung: ReplicaId) -> Plan:
    return plan_for(seen, 1000.0, broken=dict.fromkeys(hung, "it hangs"))


def test_what_hangs_is_stopped_with_a_reason() -> None:
    decided = decide(state([replica(A)]), A)
    assert [(want.replica_id, want.desired, want.because) for want in decided.set_desired] == [
        (A, Desired.STOP, "it hangs")
    ]
    assert decided.start == ()


def test_a_drain_that_hangs_is_stopped_too() -> None:
    [want] = decide(state([replica(A, desired=Desired.DRAIN)]), A).set_desired
    assert want.desired is Desired.STOP


def test_what_is_to_stop_is_not_planned_again() -> None:
    assert decide(state([replica(A, desired=Desired.STOP)]), A) == Plan()


def test_another_one_is_started_at_once_where_there_is_room() -> None:
    fleet = state([replica(A, TWO), replica(B, TWO, slot=1)], specs=[TWO], nodes=[node(max_replicas_per_model=3)])
    [start] = decide(fleet, A).start
    assert (start.replica.slot, start.because) == (2, "min_replicas is 2")


def test_else_it_waits_for_the_slot() -> None:
    fleet = state([replica(A, TWO), replica(B, TWO, slot=1)], specs=[TWO], nodes=[node(max_replicas_per_model=2)])
    decided = decide(fleet, A)
    assert decided.start == ()
    assert [wait.because for wait in decided.pending] == ["waiting for its room on name-n1"]


@pytest.mark.parametrize("hung", [B, ReplicaId("long gone")])
def test_others_stay_as_they_are(hung: ReplicaId) -> None:
    decided = decide(state([replica(A), replica(B, slot=1)]), hung)
    assert A not in [want.replica_id for want in decided.set_desired]


@asynccontextmanager
async def open_fleet() -> AsyncIterator[tuple[MemoryRegistry, Reconciler, FailureReporter, int]]:
    """With one ready replica of a model that has to have one; and the session of its node."""
    registry = MemoryRegistry(trio.current_time)
    await registry.declare_models([spec(min_replicas=1)])
    await registry.register_node(Registration("box", BootId("boot"), NODE))
    session = await registry.join_node(Hello(NODE, "box", BootId("boot"), max_replicas_per_model=2), GATEWAY)
    reporter = FailureReporter(registry)
    async with open_reconciler(registry) as reconciler, trio.open_nursery() as nursery:
        nursery.start_soon(reporter.run)
        [only] = (await registry.read_state()).replicas
        await registry.record_reports(NODE, session, [Report(only, Observed.READY)])
        yield registry, reconciler, reporter, session
        nursery.cancel_scope.cancel()


async def test_a_reported_failure_is_known_to_all_and_its_replica_is_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet() as (registry, reconciler, reporter, session):
        [hung] = (await registry.read_state()).replicas
        version = (await registry.read_state()).version
        for because in ("it hangs", "it still does"):
            reporter.report_broken(hung, because)
            await trio.testing.wait_all_tasks_blocked()
        assert (await registry.read_state()).version == version + 1
        assert (await registry.read_state()).replicas[hung].broken == "it hangs"
        reconciler.wake.set()
        await trio.testing.wait_all_tasks_blocked()
        replicas = (await registry.read_state()).replicas
        assert replicas[hung].desired is Desired.STOP
        [successor] = replicas.keys() - {hung}
        assert replicas[successor].desired is Desired.RUN

        await registry.record_reports(NODE, session, [Report(hung, Observed.GONE)])
        await trio.sleep(61)
        assert list((await registry.read_state()).replicas) == [successor]


async def test_a_reported_failure_waits_for_the_registry(autojump_clock: trio.testing.MockClock) -> None:
    registry = FlakyRegistry()
    reporter = FailureReporter(registry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reporter.run)
        reporter.report_broken(A, "it hangs")
        reporter.report_lost(B, "nothing listens")
        await trio.sleep(10)
        assert registry.peer_states == []
        reporter.report_lost(A, "nothing listens")
        registry.down = False
        await trio.sleep(2 * RETRY_SECONDS)
        nursery.cancel_scope.cancel()
    assert registry.peer_states == [(A, "nothing listens", True), (B, "nothing listens", True)]


class FlakyRegistry(MemoryRegistry):
    """Is down at first."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.down = True
        self.peer_states: list[tuple[ReplicaId, str, bool]] = []

    async def record_broken(self, replica_id: ReplicaId, because: str, *, lost: bool = False) -> bool:
        if self.down:
            raise RegistryError("the disk is full")
        self.peer_states.append((replica_id, because, lost))
        return await super().record_broken(replica_id, because, lost=lost)
