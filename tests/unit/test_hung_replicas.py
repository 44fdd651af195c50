"""From a replica that is busy without any request to another one in its place (H1)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.control.entries import Plan
from gateway.control.plan import plan
from gateway.control.reconciler import Reconciler
from gateway.domain.cluster import ClusterState
from gateway.domain.ids import BootId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.session import Hello, Registration, Report
from gateway.registry.memory import MemoryRegistry
from tests.fakes.fleet import GATEWAY, NODE, Ids, node, replica, spec, state

A, B = ReplicaId("a"), ReplicaId("b")
TWO = spec(min_replicas=2, max_replicas=2)


def decide(seen: ClusterState, *hung: ReplicaId) -> Plan:
    return plan(seen, 1000.0, Ids(), dict.fromkeys(hung, "it hangs"))


def test_what_hangs_is_stopped_with_a_reason() -> None:
    decided = decide(state([replica(A)]), A)
    assert [(want.replica_id, want.desired, want.because) for want in decided.want] == [(A, Desired.STOP, "it hangs")]
    assert decided.start == ()


def test_a_drain_that_hangs_is_stopped_too() -> None:
    [want] = decide(state([replica(A, desired=Desired.DRAIN)]), A).want
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
    assert [wait.because for wait in decided.wait] == ["waiting for its room on name-n1"]


@pytest.mark.parametrize("hung", [B, ReplicaId("long gone")])
def test_others_stay_as_they_are(hung: ReplicaId) -> None:
    decided = decide(state([replica(A), replica(B, slot=1)]), hung)
    assert A not in [want.replica_id for want in decided.want]


@asynccontextmanager
async def open_reconciler() -> AsyncIterator[tuple[MemoryRegistry, Reconciler, int]]:
    """With one ready replica of a model that has to have one; and the session of its node."""
    registry = MemoryRegistry(trio.current_time)
    await registry.declare_models([spec(min_replicas=1)])
    await registry.register_node(Registration("box", BootId("boot"), NODE))
    session = await registry.join_node(Hello(NODE, "box", BootId("boot"), max_replicas_per_model=2), GATEWAY)
    reconciler = Reconciler(registry, GATEWAY, interval_seconds=30)
    async with trio.open_nursery() as nursery:
        await nursery.start(reconciler.run)
        [only] = (await registry.read_state()).replicas
        await registry.observe(NODE, session, [Report(only, Observed.READY)])
        yield registry, reconciler, session
        nursery.cancel_scope.cancel()


async def test_the_reconciler_replaces_what_it_is_told_of_and_then_forgets_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_reconciler() as (registry, reconciler, session):
        [hung] = (await registry.read_state()).replicas
        reconciler.note_broken(hung, "it hangs")
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == 0  # it was woken
        replicas = (await registry.read_state()).replicas
        assert replicas[hung].desired is Desired.STOP
        [successor] = replicas.keys() - {hung}
        assert replicas[successor].desired is Desired.RUN
        assert reconciler.broken == {hung: "it hangs"}

        await registry.observe(NODE, session, [Report(hung, Observed.GONE)])
        await trio.sleep(61)
        assert list((await registry.read_state()).replicas) == [successor]
        assert reconciler.broken == {}
